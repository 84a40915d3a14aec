"""Which models come of a round? Made from a hash of all that went in, so that nothing can hide.

The worker computes them from the files that it is given, :func:`published_digest` from the round's
state alone. They agree only if each counted update was there, whole, once, and on the right base.
"""

import asyncio
from collections.abc import Sequence
from random import Random
from typing import Any

import blake3
import numpy as np

from coordinator.learning import jobs
from coordinator.learning.jobs import Contribution, Flag
from coordinator.rounds.machine import RoundState
from coordinator.rounds.orders import rules_of
from fedreid.contract import EvaluationResult
from fedreid.errors import DatasetError, JobFailed, StorageError
from fedreid.files import digest_of, make_folder
from fedreid.jobs import Job, Worker
from fedreid.plan import Plan
from fedreid.wire.tensors import (
    FloatArray,
    Layout,
    TensorFile,
    TensorSpec,
    digest_of_tensors,
    save_tensors,
)
from tests.simulation.disk import MemoryPath

_NAME = "trunk.weight"
LAYOUT = Layout.of((TensorSpec(_NAME, (4,)),))
_SUSPECT: tuple[Flag, ...] = ("outlier",)


def made_of(*parts: object) -> FloatArray:
    """Values between 1 and 2 that depend on every part."""
    hashed = blake3.blake3(repr(parts).encode()).digest(length=16)
    return 1.0 + np.frombuffer(hashed, "<u4").astype(np.float32) / np.float32(2**32)


def payload_of(values: FloatArray) -> bytes:
    """An update as it is sent."""
    return values.tobytes()


def published_digest(state: RoundState, plan: Plan) -> str:
    """Digest of the model that a round's updates lead to, where nothing ever fails."""
    sources = [(update.silo, update.payload_digest) for update in state.updates]
    digest = digest_of_tensors({_NAME: made_of("aggregate", state.base_digest, sources)})
    if rules_of(plan, state).distils:
        screened = state.flags if plan.aggregation.screen else {}
        teachers = [source for source in sources if source[0] not in screened]
        digest = digest_of_tensors({_NAME: made_of("distil", digest, teachers)})
    return digest


class MemoryWorker(Worker):
    """Does the coordinator's jobs on the disk in memory; it may take long, or fail."""

    def __init__(self, random: Random, *, failing: float, suspecting: float) -> None:
        self._random = random
        self.failing = failing
        """How probable it is that a job fails, or never ends."""
        self.suspecting = suspecting
        """How probable it is that an update is flagged."""

    async def run(self, job: Job, returns: Any, progress: Any) -> Any:
        """Do one job."""
        await asyncio.sleep(self._random.random() * 4.0)
        fate = self._random.random()
        if fate < self.failing:
            await self._fail(fate / self.failing)
        return self._done(job)

    async def close(self) -> None:
        """There is no process to end."""

    async def _fail(self, how: float) -> None:
        if how < 0.3:
            await asyncio.sleep(1e6)
        if how < 0.6:
            raise JobFailed("The process ended in the middle of a job")
        if how < 0.8:
            raise StorageError("Can't write the aggregate", why="the disk is full")
        raise DatasetError("The public images can't be read")

    def _done(self, job: Job) -> Any:
        if isinstance(job, jobs.InitialiseJob):
            _write(job.out, made_of("start", job.seed))
            return jobs.InitialiseReport(parameters=4)
        if isinstance(job, jobs.AggregateJob):
            return self._aggregate(job)
        if isinstance(job, jobs.ClusterJob):
            names = [each.silo for each in job.contributions]
            halves = tuple(names[::2]), tuple(names[1::2])
            return jobs.ClusterReport(clusters=tuple(half for half in halves if half))
        if isinstance(job, jobs.DistilJob):
            student = digest_of(MemoryPath(job.student))
            _write(job.out, made_of("distil", student, _sources(job.contributions)))
            return jobs.DistilReport(images=8, loss_before=2.0, loss_after=1.0)
        assert isinstance(job, jobs.EvaluateJob)
        return jobs.EvaluateReport(result=_result(digest_of(MemoryPath(job.model))))

    def _aggregate(self, job: jobs.AggregateJob) -> jobs.AggregateReport:
        base = digest_of(MemoryPath(job.base))
        values = made_of("aggregate", base, _sources(job.contributions))
        _write(job.out, values, over=job.spare)
        silos = [each.silo for each in job.contributions]
        looks = {silo: made_of("looks", base, silo)[0] - 1.0 for silo in silos}
        suspects = [silo for silo in silos if looks[silo] < self.suspecting]
        return jobs.AggregateReport(
            weights=dict.fromkeys(silos, 1.0 / len(silos)),
            all_distances_zero=False,
            update_norm=1.0,
            update_norms=dict.fromkeys(silos, 1.0),
            flags=dict.fromkeys(suspects, _SUSPECT),
        )


def _write(path: str, values: FloatArray, *, over: str = "") -> None:
    out = MemoryPath(path)
    make_folder(out.parent)
    save_tensors(out, {_NAME: values}, over=over)


def _sources(contributions: Sequence[Contribution]) -> list[tuple[str, str]]:
    """Who sent what, as it lies in the spool."""
    found: list[tuple[str, str]] = []
    for each in contributions:
        with TensorFile(MemoryPath(each.path)) as file:
            found.append((each.silo, digest_of(file.path, start=file.data_offset)))
    return found


def _result(digest: str) -> EvaluationResult:
    value = int(digest[:4], 16) / 0xFFFF
    return EvaluationResult(
        model="global", rank1=value, rank5=1.0, rank10=1.0, map=value, minp=value, queries=8
    )
