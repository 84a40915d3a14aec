"""How does the agent's training process answer jobs? ``python -m silo_agent.learning.worker``."""

import os
from pathlib import Path

import torch

from fedreid.jobs import Progress, ProgressSink, serve
from fedreid.reid.backbone import load_backbone
from fedreid.reid.measuring import measure
from fedreid.wire.tensors import load_tensors
from silo_agent.learning.holding import Holding
from silo_agent.learning.jobs import EvaluateJob, EvaluateReport, TrainJob, TrainReport
from silo_agent.learning.local_round import LocalRound, own_batch_norm


class SiloWorker:
    """The handlers of both jobs, and the images they share."""

    def __init__(self) -> None:
        self._holding = Holding()
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._default_threads = torch.get_num_threads()

    def train(self, job: TrainJob, tell: ProgressSink) -> TrainReport:
        """One round; see :class:`silo_agent.learning.local_round.LocalRound`."""
        self._use_threads(job.training.threads)
        data = self._holding.get(job.silo, job.backbone)
        return LocalRound(job=job, data=data, device=self._device, tell=tell).run()

    def evaluate(self, job: EvaluateJob, tell: ProgressSink) -> EvaluateReport:
        """Measure one published model; no result where no query has a match."""
        self._use_threads(job.threads)
        data = self._holding.get(job.silo, job.backbone)
        tensors = load_tensors(Path(job.model))
        tensors.update(own_batch_norm(job.previous, job.bn))
        backbone = load_backbone(job.backbone, tensors).to(self._device)
        result = measure(
            backbone,
            data.test,
            "global",
            device=self._device,
            tell=lambda done, total: tell(Progress(phase="evaluating", done=done, total=total)),
        )
        return EvaluateReport(evaluations=(result,) if result is not None else ())

    def _use_threads(self, threads: int) -> None:
        torch.set_num_threads(threads or self._default_threads)


def make_deterministic() -> None:
    """Let torch choose only algorithms that give the same bits every time."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs it for that
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a debugging aid, and slow


def main() -> None:
    """Serve jobs until standard input is closed."""
    make_deterministic()
    worker = SiloWorker()
    serve({TrainJob: worker.train, EvaluateJob: worker.evaluate})


if __name__ == "__main__":
    main()
