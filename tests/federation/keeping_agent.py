"""Which agent keeps something of its own from round to round? ``python -m ... DATA``.

The null agent, with a training process that hands on a file in ``private/`` as a classifier is
handed on: the numbers of all the rounds that it has seen.
"""

import sys
from pathlib import Path

from benchmark import null_trainer
from fedreid import launch
from fedreid.console import run_program
from fedreid.jobs import ProgressSink, serve
from silo_agent.learning.jobs import EvaluateJob, TrainJob, TrainReport


def train(job: TrainJob, tell: ProgressSink) -> TrainReport:
    """A null round, and one number more beside it."""
    report = null_trainer.train(job, tell)
    before = Path(job.previous) / "private" / "classifier"
    numbers = before.read_text() if job.previous else ""
    (Path(job.out) / "private" / "classifier").write_text(f"{numbers} {job.round}")
    return report


def main() -> None:
    """Take part until told to stop."""
    from fedreid.console import say
    from silo_agent.config import Folders
    from silo_agent.service import run

    run(Folders(Path(sys.argv[1])), say, trainer="tests.federation.keeping_agent")


if __name__ == "__main__":
    if len(sys.argv) == 1:  # the agent starts this module as its training process
        serve({TrainJob: train, EvaluateJob: null_trainer.evaluate})
    else:
        launch.prepare()
        run_program(main)
