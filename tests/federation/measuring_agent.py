"""Which agent says how its training goes and what its models score? ``python -m ... DATA``.

The null agent, with a training process that tells progress, losses and made-up figures, as a real
one tells measured ones.
"""

import sys
from pathlib import Path

from benchmark import null_trainer
from fedreid import launch
from fedreid.console import run_program
from fedreid.contract import EvaluationResult, ModelKind
from fedreid.jobs import Progress, ProgressSink, serve
from silo_agent.learning.jobs import EvaluateJob, EvaluateReport, TrainJob, TrainReport

_STEPS = 5


def figures(kind: ModelKind, score: float) -> EvaluationResult:
    """A model's figures."""
    return EvaluationResult(
        model=kind, rank1=score, rank5=score, rank10=score, map=0.8 * score, minp=0.5 * score,
        queries=10,
    )  # fmt: skip


def train(job: TrainJob, tell: ProgressSink) -> TrainReport:
    """A null round that is told step by step; models become better from round to round."""
    for step in range(_STEPS + 1):
        tell(Progress(phase="training", done=step, total=_STEPS, loss=4.0 / (job.round + step)))
    learned = 1.0 - 0.5 / job.round
    report = null_trainer.train(job, tell)
    results = (
        figures("global", 0.9 * learned),
        figures("local", 0.8 * learned),
        figures("standalone", 0.6 * learned),
    )
    return TrainReport(
        num_images=report.num_images,
        num_identities=report.num_identities,
        cosine_distance=report.cosine_distance,
        train_loss=4.0 / job.round,
        num_steps=report.num_steps,
        evaluations=results,
    )


def evaluate(job: EvaluateJob, tell: ProgressSink) -> EvaluateReport:
    """The figures of the run's last model."""
    return EvaluateReport(evaluations=(figures("global", 0.9),))


def main() -> None:
    """Take part until told to stop."""
    from fedreid.console import say
    from silo_agent.config import Folders
    from silo_agent.service import run

    run(Folders(Path(sys.argv[1])), say, trainer="tests.federation.measuring_agent")


if __name__ == "__main__":
    if len(sys.argv) == 1:  # the agent starts this module as its training process
        serve({TrainJob: train, EvaluateJob: evaluate})
    else:
        launch.prepare()
        run_program(main)
