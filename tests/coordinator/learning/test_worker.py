"""Does the worker, as a real child process, do each job, tell errors by code, and survive death?"""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from coordinator.learning.jobs import (
    AggregateJob,
    AggregateReport,
    DistilJob,
    DistilReport,
    EncodeJob,
    EncodeReport,
    EvaluateJob,
    EvaluateReport,
    InitialiseJob,
    InitialiseReport,
)
from fedreid.errors import DatasetError, JobFailed, StorageError, UsageError
from fedreid.files import digest_of
from fedreid.jobs import Progress, Worker
from fedreid.plan import AggregationPlan, BackbonePlan, DistillationPlan
from fedreid.wire.encoding import decode
from fedreid.wire.tensors import TensorFile, is_statistic
from tests.coordinator.learning.sites import (
    TINY,
    contribution,
    labelled_folder,
    public_folder,
)

MODULE = "coordinator.learning.worker"

Result = TypeVar("Result")


def with_worker(use: Callable[[Worker], Awaitable[Result]]) -> Result:
    async def run() -> Result:
        worker = Worker(MODULE)
        try:
            return await use(worker)
        finally:
            await worker.close()

    return asyncio.run(run())


def ignore(step: Progress) -> None:
    pass


class Round:
    """Two updates and public images on disk, and the jobs on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.public = public_folder(folder, 12)
        self.contributions = tuple(
            contribution(folder, silo, seed) for silo, seed in (("north", 2), ("east", 3))
        )

    def initialise(self, backbone: BackbonePlan = TINY) -> InitialiseJob:
        return InitialiseJob(backbone=backbone, seed=5, out=str(self.folder / "first"))

    def aggregate(self, base: str = "") -> AggregateJob:
        return AggregateJob(
            base=base or self.contributions[0].path,
            contributions=self.contributions,
            aggregation=AggregationPlan(),
            out=str(self.folder / "aggregate"),
        )

    def distil(
        self, *, epochs: int = 1, images: str = "", rate: float = 1e-5, out: str = "distilled"
    ) -> DistilJob:
        return DistilJob(
            backbone=TINY,
            student=self.contributions[0].path,
            contributions=self.contributions,
            weights={},
            distillation=DistillationPlan(
                images=images or str(self.public),
                epochs=epochs,
                learning_rate=rate,
                batch_size=4,
                loss="paper",
            ),
            distil=True,
            recalibrate=False,
            seed=1,
            out=str(self.folder / out),
        )


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Round:
    return Round(tmp_path_factory.mktemp("round"))


def holds_torch(pid: int | None) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


def test_aggregation_and_encoding_leave_torch_out(work: Round) -> None:
    async def use(worker: Worker) -> tuple[EncodeReport, EncodeReport]:
        steps: list[Progress] = []
        report = await worker.run(work.aggregate(), AggregateReport, steps.append)
        assert report.weights == {"east": 0.5, "north": 0.5}
        assert list(dict.fromkeys(step.phase for step in steps)) == ["comparing", "aggregating"]
        assert steps[-1].done == steps[-1].total
        model, out = str(work.folder / "aggregate"), str(work.folder / "payload")
        encoded = [
            await worker.run(
                EncodeJob(model=model, encoding=encoding, out=out), EncodeReport, ignore
            )
            for encoding in ("fp32", "bf16")
        ]
        assert not holds_torch(worker.pid)
        await worker.run(work.initialise(), InitialiseReport, ignore)
        assert holds_torch(worker.pid)
        return encoded[0], encoded[1]

    fp32, bf16 = with_worker(use)
    with TensorFile(work.folder / "aggregate") as file:
        statistics = sum(s.size_bytes for s in file.layout.specs if is_statistic(s.name))
        learned = file.layout.size_bytes - statistics
    assert fp32.size_bytes == statistics + learned
    assert bf16.size_bytes == statistics + learned // 2
    assert bf16.digest == digest_of(work.folder / "payload")


def test_a_model_that_is_encoded_as_differences_becomes_what_they_say(
    work: Round, tmp_path: Path
) -> None:
    async def use(worker: Worker) -> EncodeReport:
        await worker.run(work.aggregate(), AggregateReport, ignore)
        return await worker.run(job, EncodeReport, ignore)

    model, out = work.folder / "aggregate", tmp_path / "payload"
    base = Path(work.contributions[0].path)
    job = EncodeJob(model=str(model), encoding="int8_delta_zstd", base=str(base), out=str(out))
    first = with_worker(use)
    made = digest_of(model)
    with (
        TensorFile(base) as file,
        out.open("rb") as payload,
        (tmp_path / "decoded").open("wb") as stream,
    ):
        decode(payload, file.layout, "int8_delta_zstd", stream, file)
    assert digest_of(tmp_path / "decoded") == made != digest_of(base)
    assert with_worker(use) == first  # the whole phase again, after a crash
    assert digest_of(model) == made


def test_every_job_that_needs_torch_is_done_by_one_child(work: Round, tmp_path: Path) -> None:
    async def use(worker: Worker) -> None:
        first = await worker.run(work.initialise(), InitialiseReport, ignore)
        pid, digest = worker.pid, digest_of(work.folder / "first")
        with TensorFile(work.folder / "first") as file:
            specs = file.layout.specs
            assert all(np.isfinite(values).all() for values in file.read_all().values())
        assert first.parameters == sum(s.elements for s in specs if not is_statistic(s.name))
        await worker.run(work.initialise(), InitialiseReport, ignore)
        assert digest_of(work.folder / "first") == digest

        steps: list[Progress] = []
        distilled = await worker.run(work.distil(), DistilReport, steps.append)
        assert distilled.images == 12
        done = [step.done for step in steps if step.phase == "distilling"]
        assert done == sorted(done) and done[-1] == steps[-1].total == 3

        job = EvaluateJob(
            backbone=TINY,
            model=str(work.folder / "distilled"),
            folder=str(labelled_folder(tmp_path)),
            threads=1,
        )
        evaluated = await worker.run(job, EvaluateReport, ignore)
        assert evaluated.result.queries == 4
        assert worker.pid == pid

    with_worker(use)


def test_errors_come_back_as_what_they_are_and_the_child_lives_on(work: Round) -> None:
    async def use(worker: Worker) -> None:
        with pytest.raises(DatasetError, match=r"no folder .*Correct the path"):
            await worker.run(work.distil(images="/nowhere"), DistilReport, ignore)
        pid = worker.pid
        damaged = work.folder / "damaged"
        damaged.write_bytes(b"short")
        with pytest.raises(StorageError, match="damaged"):
            await worker.run(work.aggregate(base=str(damaged)), AggregateReport, ignore)
        with pytest.raises(UsageError, match="resnet18"):
            unknown = BackbonePlan(name="resnet-18")
            await worker.run(work.initialise(unknown), InitialiseReport, ignore)
        with pytest.raises(JobFailed, match="diverged"):
            await worker.run(work.distil(rate=1e30), DistilReport, ignore)
        assert worker.pid == pid

    with_worker(use)


def test_a_child_killed_in_the_middle_fails_its_job_and_the_next_one_works(work: Round) -> None:
    async def use(worker: Worker) -> None:
        killed: list[int] = []

        def kill(step: Progress) -> None:
            if not killed and worker.pid is not None:
                killed.append(worker.pid)
                os.kill(worker.pid, signal.SIGKILL)

        with pytest.raises(JobFailed, match=r"middle of a job \(signal SIGKILL\)"):
            await worker.run(work.distil(epochs=50, out="killed"), DistilReport, kill)
        assert not (work.folder / "killed").exists()
        report = await worker.run(work.aggregate(), AggregateReport, ignore)
        assert report.weights == {"east": 0.5, "north": 0.5}
        assert worker.pid not in killed

    with_worker(use)
