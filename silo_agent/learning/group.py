"""How do the training processes of one silo work as one? Each takes a share of every batch.

With several devices the agent starts ``python -m silo_agent.learning.group COUNT MODULE``, which
is ``torchrun``: COUNT processes run MODULE. The first speaks with the agent and hands each job to
the others; all train on their share, and after every step the gradients are averaged by the size
of the shares, so that the step is that of the whole batch. A process that dies ends them all.

BatchNorm sees a process's own share, as in PyTorch's own data parallelism; its running statistics
are averaged at the end.
"""

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from fedreid.errors import JobFailed, UsageError
from fedreid.jobs import as_child
from fedreid.seeds import derive_seed
from silo_agent.learning.sampling import IndexArray

_PATIENCE = timedelta(days=365)
"""Of a process that waits for the next job: a federation may pause for long."""

_LEAST_SHARE = 2
"""Images that a process trains on, or none: BatchNorm can't train on one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The place of this process among those that train together."""

    rank: int
    size: int

    @property
    def leads(self) -> bool:
        """Whether this is the process that speaks with the agent."""
        return self.rank == 0

    def share(self, batch_N: IndexArray) -> IndexArray:
        """The part of a batch for this process; empty where the batch is too small for all."""
        parts = min(self.size, max(1, len(batch_N) // _LEAST_SHARE))
        if self.rank >= parts:
            return batch_N[:0]
        return np.array_split(batch_N, parts)[self.rank]

    def own_random(self, random: np.random.Generator, seed: int) -> np.random.Generator:
        """Random numbers for this process's images: the leader goes on with ``random``."""
        if self.leads:
            return random
        torch.manual_seed(derive_seed(seed, "process", self.rank))
        return np.random.default_rng(derive_seed(seed, "process", self.rank))

    def average(self, values: Sequence[Tensor], weight: float) -> None:
        """Replace each value by its sum over the processes, weighted; the weights add up to 1."""
        if self.size == 1:
            return
        flat = torch.cat([(value.detach() * weight).flatten() for value in values])
        with _together():
            dist.all_reduce(flat)
        with torch.no_grad():
            parts = torch.split(flat, [value.numel() for value in values])
            for value, part in zip(values, parts, strict=True):
                value.copy_(part.view_as(value))

    def settle(self, module: nn.Module) -> None:
        """Average running statistics, and make sure that all processes hold the same weights.

        Raises:
            JobFailed: they do not.
        """
        if self.size == 1:
            return
        running = [buffer for buffer in module.buffers() if buffer.is_floating_point()]
        if running:
            self.average(running, 1.0 / self.size)
        own = [float(parameter.detach().double().sum()) for parameter in module.parameters()]
        sums = self.gathered(own)
        if any(other != sums[0] for other in sums):
            raise JobFailed(
                "The training processes of this silo have come apart",
                why="their weights differ after the same steps",
                next_step="Train with one process (processes = 1 in agent.toml) and report this.",
            )

    def hand_out(self, job: object) -> None:
        """The leader gives all others a job, or None: there will be no more."""
        self.handed(job)

    def jobs(self) -> Iterator[Any]:
        """What the leader hands out, until there will be no more."""
        while True:
            job = self.handed(None)
            if job is None:
                return
            yield job

    def handed(self, own: Any) -> Any:
        """What the leader holds, at every process."""
        if self.size == 1:
            return own
        handed = [own]
        with _together():
            dist.broadcast_object_list(handed, src=0)
        return handed[0]

    def agreed(self, own: bool) -> bool:
        """What the leader says, at every process: cheap enough to ask after each step."""
        if self.size == 1:
            return own
        said = torch.tensor([own])
        with _together():
            dist.broadcast(said, src=0)
        return bool(said)

    def gathered(self, own: object) -> list[Any]:
        """What every process holds, by rank."""
        every: list[Any] = [own] * self.size
        if self.size > 1:
            with _together():
                dist.all_gather_object(every, own)
        return every

    def device(self) -> torch.device:
        """A GPU of this process's own, or the CPU where the machine has none."""
        return torch.device("cuda", self.rank) if torch.cuda.is_available() else torch.device("cpu")


ALONE = Group(rank=0, size=1)
"""One process for the whole silo."""


@contextmanager
def _together() -> Iterator[None]:
    """Talk among the processes: where it fails, another one has died, and its end is the news."""
    try:
        yield
    except RuntimeError as error:
        sys.exit(f"another training process is gone: {error}")


@contextmanager
def joined() -> Iterator[Group]:
    """The group that torchrun has started this process in, if it has.

    Raises:
        UsageError: the machine has GPUs, and fewer than there are processes.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    group = Group(rank=int(os.environ["RANK"]), size=size)
    cuda = torch.cuda.is_available()
    if cuda:
        gpus = torch.cuda.device_count()
        if size > gpus:
            raise UsageError(
                f"{size} training processes are asked for",
                why=f"this machine has {gpus} GPUs, and two processes can't share one",
                next_step=f"Set processes = {gpus} in agent.toml.",
            )
        torch.cuda.set_device(group.device())
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_PATIENCE)
    try:
        yield group
    finally:
        dist.destroy_process_group()


def launch(count: int, module: str) -> None:
    """Run ``count`` processes of ``module`` to their end.

    Raises:
        SystemExit: one failed, and so all have been ended; its last words.
    """
    from torch.distributed import run

    os.setsid()  # Ctrl-C on a terminal is the agent's to handle
    as_child()
    with tempfile.TemporaryDirectory(prefix="fedreid-group-") as logs:
        options = ["--standalone", f"--nproc-per-node={count}", f"--log-dir={logs}"]
        try:
            run.main([*options, "--module", module])
        except ChildFailedError as error:
            sys.exit(last_words(error, count))


def last_words(error: ChildFailedError, count: int) -> str:
    """Which process failed first and how: one that was killed, or that left its error."""
    rank, failure = min(
        error.failures.items(),
        key=lambda item: (
            item[1].exitcode >= 0,
            isinstance(item[1].message, str),  # it left no error of its own
            item[1].timestamp,
        ),
    )
    told = failure.message
    if failure.exitcode < 0:
        told = f"signal {failure.signal_name()}"
    elif isinstance(told, dict):  # as @record writes it
        told = told["message"]
    return f"training process {rank + 1} of {count} ended: {told}"


if __name__ == "__main__":
    launch(int(sys.argv[1]), sys.argv[2])
