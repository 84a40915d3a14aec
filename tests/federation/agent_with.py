"""Which agent trains in a process of the tests' own? ``python -m … TRAINER DATA``."""

import sys
from pathlib import Path

from fedreid import launch
from fedreid.console import run_program


def main() -> None:
    """Take part until told to stop."""
    from fedreid.console import say
    from silo_agent.config import Folders
    from silo_agent.service import run

    run(Folders(Path(sys.argv[2])), say, trainer=sys.argv[1])


if __name__ == "__main__":
    launch.prepare()
    run_program(main)
