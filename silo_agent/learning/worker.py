"""How does the agent's training process answer jobs? ``python -m silo_agent.learning.worker``."""

import tempfile
from pathlib import Path

import torch
from msgspec.structs import replace
from torch.distributed.elastic.multiprocessing.errors import record

from fedreid.jobs import Progress, ProgressSink, as_child, serve
from fedreid.memory import give_back
from fedreid.reid.backbone import load_backbone
from fedreid.reid.measuring import measure
from fedreid.reid.settling import settle_torch
from fedreid.wire.tensors import load_tensors
from silo_agent.learning.checkpoints import Pace
from silo_agent.learning.group import ALONE, Group, joined
from silo_agent.learning.holding import Holding
from silo_agent.learning.jobs import EvaluateJob, EvaluateReport, TrainJob, TrainReport
from silo_agent.learning.local_round import LocalRound, own_batch_norm


class SiloWorker:
    """The handlers of both jobs, and the images they share."""

    def __init__(self, group: Group = ALONE, pace: Pace | None = None) -> None:
        self._group = group
        self._pace = pace or Pace()
        self._holding = Holding()
        self._device = group.device()
        self._default_threads = torch.get_num_threads()

    def train(self, job: TrainJob, tell: ProgressSink) -> TrainReport:
        """One round; see :class:`silo_agent.learning.local_round.LocalRound`."""
        if self._group.leads:
            self._group.hand_out(job)
        self._use_threads(job.training.threads)
        data = self._holding.get(job.silo, job.backbone)
        return LocalRound(
            job=job,
            data=data,
            device=self._device,
            tell=tell,
            group=self._group,
            pace=self._pace,
        ).run()

    def follow(self) -> None:
        """Train with the leader, job after job; what comes out is the leader's to keep."""
        for job in self._group.jobs():
            with tempfile.TemporaryDirectory() as out:
                self.train(replace(job, out=out, evaluate=()), lambda progress: None)
            give_back()

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


@record
def main(pace: Pace | None = None) -> None:
    """Serve jobs until standard input is closed; in a group, one process speaks for all."""
    settle_torch()
    with joined() as group:
        worker = SiloWorker(group, pace)
        if not group.leads:
            as_child()
            worker.follow()
            return
        serve({TrainJob: worker.train, EvaluateJob: worker.evaluate})
        group.hand_out(None)


if __name__ == "__main__":
    main()
