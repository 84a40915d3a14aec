"""What does a federation cost without learning? ``python -m benchmark.null_agent DATA``.

The agent as it is, with a training process that adds a constant to every tensor: all of the
wire, none of the learning.
"""

import sys
from pathlib import Path

from fedreid import launch
from fedreid.console import run_program


def main() -> None:
    """Take part until told to stop."""
    from fedreid.console import say
    from silo_agent.config import Folders
    from silo_agent.service import run

    run(Folders(Path(sys.argv[1])), say, trainer="benchmark.null_trainer")


if __name__ == "__main__":
    launch.prepare()
    run_program(main)
