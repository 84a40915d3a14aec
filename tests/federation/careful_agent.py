"""Which agent writes a checkpoint after each step? For tests that kill it: its argument is DATA."""

import sys
from pathlib import Path

from fedreid import launch
from fedreid.console import run_program, say
from silo_agent.config import Folders
from silo_agent.service import run


def main() -> None:
    """Take part until told to stop."""
    trainer = "tests.silo_agent.learning.worker_of_many_checkpoints"
    run(Folders(Path(sys.argv[1])), say, trainer=trainer)


if __name__ == "__main__":
    launch.prepare()
    run_program(main)
