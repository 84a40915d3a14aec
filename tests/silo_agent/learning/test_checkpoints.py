"""Does a training that was killed end with the bits of one that was not?"""

import asyncio
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from fedreid import files
from fedreid.errors import StorageError
from fedreid.files import digest_of
from fedreid.jobs import Progress, Worker
from fedreid.limits import CHECKPOINT_S, CHECKPOINT_SHARE
from fedreid.plan import TrainingPlan
from silo_agent.learning import checkpoints, local_round
from silo_agent.learning.checkpoints import Checkpoints, Pace, Position, Trainee, numpy_state
from silo_agent.learning.jobs import TrainJob, TrainReport
from silo_agent.learning.worker import SiloWorker
from silo_agent.service import training_worker
from tests.parties import FakeClock
from tests.silo_agent.learning.sites import TRAINING, draw_silo, first_model, quiet, train_job
from tests.silo_agent.learning.test_group import ranks

AFTER_EACH_STEP = Pace(pause_s=0.0, share=math.inf)
KILLED = "tests.silo_agent.learning.worker_of_many_checkpoints"
HARD = replace(
    TRAINING,
    epochs=2,
    optimiser="adam",
    images_per_identity=2,
    triplet_margin=0.3,
    label_smoothing=0.1,
    random_erasing=0.5,
    proximal=0.1,
    learning_rate=1e-3,
    backbone_learning_rate=1e-3,
)
"""Everything that has a state or draws random numbers."""


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture
def silo(tmp_path: Path) -> Path:
    return draw_silo(tmp_path / "images")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return first_model(tmp_path / "w0.safetensors")


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """What a round gives that nobody interrupts, and that keeps no checkpoints."""
    return uninterrupted(tmp_path_factory.mktemp("calm"), TRAINING)


class Site:
    """A silo that begins the same round again and again."""

    def __init__(self, root: Path, silo: Path, base: Path, training: TrainingPlan) -> None:
        self._root, self._silo, self._base, self._training = root, silo, base, training
        self._attempts = 0
        self.checkpoints = root / "checkpoints"
        self.out = root

    def job(self, **changes: Any) -> TrainJob:
        """The next attempt, into a folder of its own."""
        self._attempts += 1
        self.out = self._root / f"attempt-{self._attempts}"
        job = train_job(self._silo, self._base, self.out, training=self._training, standalone=True)
        return replace(job, **{"checkpoints": str(self.checkpoints), **changes})

    def attempt(self, *, until: tuple[str, int] | None = None, **changes: Any) -> TrainReport:
        """Train; killed once ``until``, a step of a phase, is taken."""

        def tell(progress: Progress) -> None:
            if (progress.phase, progress.done) == until:
                raise Killed

        return SiloWorker(pace=AFTER_EACH_STEP).train(self.job(**changes), tell)

    def result(self, report: TrainReport) -> tuple[object, ...]:
        """Every file of the last attempt, and what it told, but for where it began."""
        paths = sorted(path for path in self.out.rglob("*") if path.is_file())
        named = [(str(path.relative_to(self.out)), digest_of(path)) for path in paths]
        return (*named, replace(report, notes=()))


def uninterrupted(root: Path, training: TrainingPlan) -> tuple[object, ...]:
    """What such a round gives."""
    silo, base = draw_silo(root / "images"), first_model(root / "w0.safetensors")
    site = Site(root, silo, base, training)
    return site.result(SiloWorker().train(site.job(checkpoints=""), quiet))


@pytest.mark.parametrize(
    ("phase", "step", "begun"),
    [("training", 1, 0), ("training", 3, 2), ("standalone", 1, 2), ("standalone", 3, 2)],
)
def test_a_round_killed_at_any_step_of_either_training_ends_with_the_same_bits(
    tmp_path: Path, silo: Path, base: Path, calm: object, phase: str, step: int, begun: int
) -> None:
    site = Site(tmp_path / "site", silo, base, TRAINING)
    with pytest.raises(Killed):
        site.attempt(until=(phase, step))
    heard: list[Progress] = []
    report = SiloWorker(pace=AFTER_EACH_STEP).train(site.job(), heard.append)
    assert site.result(report) == calm
    first = {line.phase: line.done for line in reversed(heard)}
    assert first == {"training": begun + 1, "standalone": step if phase == "standalone" else 1}
    told = (f"went on from step {begun}, where it was interrupted",) if begun else ()
    assert report.notes == told


@pytest.mark.parametrize(("kept", "read"), [(False, 0), (True, 1)])
def test_the_base_model_is_read_for_checkpoints_alone_and_once_for_both_trainings(
    tmp_path: Path,
    silo: Path,
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
    kept: bool,
    read: int,
) -> None:
    hashed: list[Path] = []

    def counted(path: Path) -> str:
        hashed.append(path)
        return digest_of(path)

    monkeypatch.setattr(local_round, "digest_of", counted)
    site = Site(tmp_path / "site", silo, base, TRAINING)
    job = site.job() if kept else site.job(checkpoints="")
    SiloWorker().train(job, quiet)
    assert hashed == [base] * read


def test_a_round_killed_again_and_again_ends_with_the_same_bits(
    tmp_path: Path, silo: Path, base: Path
) -> None:
    site = Site(tmp_path / "site", silo, base, HARD)
    for until in (("training", 2), ("training", 3), ("training", 4), ("standalone", 3)):
        with pytest.raises(Killed):
            site.attempt(until=until)
    assert site.result(site.attempt()) == uninterrupted(tmp_path / "calm", HARD)


def test_a_killed_process_goes_on_from_its_checkpoint(
    tmp_path: Path, silo: Path, base: Path, calm: object
) -> None:
    site = Site(tmp_path / "site", silo, base, TRAINING)

    async def story() -> TrainReport:
        worker = Worker(KILLED)

        def kill(progress: Progress) -> None:
            if (progress.phase, progress.done) == ("training", 3):
                os.kill(worker.pid or 0, signal.SIGKILL)

        try:
            # The third step is told after the second checkpoint was written.
            with pytest.raises(Exception, match="SIGKILL"):
                await worker.run(site.job(), TrainReport, kill)
            return await worker.run(site.job(), TrainReport, quiet)
        finally:
            await worker.close()

    report = asyncio.run(story())
    assert report.notes == ("went on from step 2, where it was interrupted",)
    assert site.result(report) == calm


@pytest.mark.slow
def test_two_processes_go_on_together(tmp_path: Path, silo: Path, base: Path) -> None:
    plan = replace(TRAINING, epochs=2, batch_size=6)
    site = Site(tmp_path / "site", silo, base, plan)

    async def story() -> list[object]:
        worker = training_worker(KILLED, 2)

        def kill(progress: Progress) -> None:
            if (progress.phase, progress.done) == ("training", 3):
                os.kill(ranks(worker.pid or 0)["1"].pid, signal.SIGKILL)

        try:
            whole = await worker.run(site.job(checkpoints=""), TrainReport, quiet)
            wanted = site.result(whole)
            with pytest.raises(Exception, match="SIGKILL"):
                await worker.run(site.job(), TrainReport, kill)
            report = await worker.run(site.job(), TrainReport, quiet)
            return [wanted, site.result(report), report.notes]
        finally:
            await worker.close()

    wanted, ended, notes = asyncio.run(story())
    assert ended == wanted
    assert notes == ("went on from step 2, where it was interrupted",)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_checkpoint_is_told_of_and_not_used(
    tmp_path: Path, silo: Path, base: Path, calm: object, damage: str
) -> None:
    site = Site(tmp_path / "site", silo, base, TRAINING)
    with pytest.raises(Killed):
        site.attempt(until=("training", 3))
    file = site.checkpoints / "training"
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.write_bytes(
        {
            "flip": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            "cut": whole[:middle],
            "empty": b"",
        }[damage]
    )
    report = site.attempt()
    assert report.notes == ("began the training anew: its checkpoint is damaged",)
    assert site.result(report) == calm


@pytest.mark.parametrize(
    "change",
    [
        {"round": 2},
        {"seed": 8},
        {"training": replace(TRAINING, learning_rate=0.004)},
        {"learning_rate_factor": 0.5},
        {"run": "other"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_checkpoint_of_another_round_or_plan_is_not_used(
    tmp_path: Path, silo: Path, base: Path, change: dict[str, Any]
) -> None:
    site = Site(tmp_path / "site", silo, base, TRAINING)
    with pytest.raises(Killed):
        site.attempt(until=("training", 3))
    report = site.attempt(**change)
    assert ["another round, plan" in note for note in report.notes] == [True]


def test_a_checkpoint_of_other_images_or_another_model_is_not_used(
    tmp_path: Path, silo: Path, base: Path
) -> None:
    site = Site(tmp_path / "site", silo, base, TRAINING)
    with pytest.raises(Killed):
        site.attempt(until=("training", 3))
    kept = (site.checkpoints / "training").read_bytes()
    first_model(base, seed=2)
    assert ["another" in note for note in site.attempt().notes] == [True]
    first_model(base)
    (site.checkpoints / "training").write_bytes(kept)
    min((silo / "bounding_box_train").iterdir()).unlink()
    assert ["another" in note for note in site.attempt().notes] == [True]


def test_only_its_owner_can_read_a_checkpoint_and_it_names_no_image(
    tmp_path: Path, silo: Path, base: Path
) -> None:
    site = Site(tmp_path / "site", silo, base, TRAINING)
    with pytest.raises(Killed):
        site.attempt(until=("standalone", 3))
    files_kept = sorted(site.checkpoints.iterdir())
    assert [file.name for file in files_kept] == ["standalone", "training"]
    assert site.checkpoints.stat().st_mode & 0o777 == 0o700
    for file in files_kept:
        assert file.stat().st_mode & 0o777 == 0o600
        assert b".png" not in file.read_bytes()
        assert str(silo).encode() not in file.read_bytes()


def test_a_full_disk_ends_the_checkpoints_and_not_the_round(
    tmp_path: Path,
    silo: Path,
    base: Path,
    calm: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(path: Path, *, mode: int) -> object:
        if path.parent == site.checkpoints:
            raise StorageError(f"Can't write {path}", why="the disk is full")
        return files.replacing(path, mode=mode)

    monkeypatch.setattr(checkpoints, "replacing", full)
    site = Site(tmp_path / "site", silo, base, TRAINING)
    report = site.attempt()
    assert set(report.notes) == {"trains on without checkpoints: the disk is full"}
    assert site.result(report) == calm


def test_what_a_write_that_was_cut_off_left_is_removed(
    tmp_path: Path, silo: Path, base: Path
) -> None:
    site = Site(tmp_path / "site", silo, base, TRAINING)
    site.checkpoints.mkdir(parents=True)
    (site.checkpoints / ".training.0011.tmp").write_bytes(b"half")
    site.attempt()
    assert sorted(path.name for path in site.checkpoints.iterdir()) == ["standalone", "training"]


def test_checkpoints_wait_for_the_pause_and_take_a_small_share_of_the_time(tmp_path: Path) -> None:
    clock = FakeClock()
    file = tmp_path / "training"
    kept = Checkpoints(file, "key", pace=Pace(clock=clock))
    layer = torch.nn.Linear(1, 1)
    trainee = Trainee(
        modules=(layer,),
        optimiser=torch.optim.SGD(layer.parameters(), lr=0.1),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        device=torch.device("cpu"),
    )
    random = numpy_state(np.random.default_rng(1))
    at = Position(random=random)

    def written() -> bool:
        file.unlink(missing_ok=True)
        kept.keep(trainee, at)
        return file.exists()

    assert not written()
    clock.move(CHECKPOINT_S)
    assert written() and not written()
    clock.move(CHECKPOINT_S)
    state = Trainee.state
    took_s = 10.0

    def slowly(self: Trainee) -> dict[str, object]:
        clock.move(took_s)
        return state(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainee, "state", slowly)
        assert written()
    clock.move(took_s / CHECKPOINT_SHARE - 1)
    assert not written()
    clock.move(1)
    assert written()
