"""Is what a phase is built on looked at before it is used, each time?"""

import asyncio
from pathlib import Path

import blake3
import msgspec
import numpy as np
import pytest

from coordinator.config import Config, initialise, load_model_key
from coordinator.folders import Folders
from coordinator.rounds.journal import Journal
from coordinator.rounds.machine import (
    Accepted,
    Event,
    Phase,
    ResultsLost,
    RoundState,
    UpdatesLost,
)
from coordinator.rounds.orders import update_path
from coordinator.rounds.phases import Phases
from coordinator.rounds.publishing import Models
from fedreid.contract import UpdateReport
from fedreid.errors import StorageError
from fedreid.files import digest_of
from fedreid.jobs import Worker
from fedreid.names import FederationName
from tests.coordinator.rounds.states import opened
from tests.coordinator.trust.planted import plant
from tests.parties import FakeClock

REPORT = UpdateReport(num_images=10, cosine_distance=0.5, train_loss=1.0, num_steps=4)
TENSORS = {"w": np.ones(64, dtype=np.float32)}
WORKED = [Phase.AGGREGATING, Phase.DISTILLING, Phase.EVALUATING, Phase.PUBLISHING]


class Round:
    """A round with two updates and an aggregate, and whoever does its work."""

    def __init__(self, root: Path) -> None:
        self.folders = Folders(root)
        initialise(self.folders, Config(federation="harbour", hostnames=("h",)), FakeClock())
        base = plant(self.folders, TENSORS, "min_silos = 2")
        self.journal = Journal(self.folders.journal)
        key, federation = load_model_key(self.folders), FederationName("harbour")
        models = Models(self.folders, self.journal, federation, key)
        self.phases = Phases(
            federation=federation,
            folders=self.folders,
            journal=self.journal,
            models=models,
            worker=Worker("no.such.module"),
            tell=lambda activity: None,
        )
        self.base = models.path(base)
        state = msgspec.structs.replace(opened("a", "b"), base_digest=base)
        self.updates = {silo: update_path(self.folders, state, silo) for silo in ("a", "b")}
        self.aggregate = self.folders.work(state.run, state.number) / "aggregate.safetensors"
        for path in (*self.updates.values(), self.aggregate):
            path.write_bytes(path.name.encode())
        self.state = msgspec.structs.replace(
            state,
            updates=tuple(
                Accepted(
                    silo=silo,
                    payload_digest="d" * 64,
                    size_bytes=4,
                    file_digest=digest_of(path),
                    report=REPORT,
                )
                for silo, path in self.updates.items()
            ),
        )

    def in_phase(self, phase: Phase) -> RoundState:
        made = {} if phase is Phase.AGGREGATING else {self.aggregate.name: self._made}
        return msgspec.structs.replace(self.state, phase=phase, results=made)

    def damage(self, phase: Phase) -> Event | None:
        return asyncio.run(self.phases.damage(self.in_phase(phase)))

    @property
    def _made(self) -> str:
        return str(blake3.blake3(self.aggregate.name.encode()).hexdigest())


@pytest.fixture
def round_(tmp_path: Path) -> Round:
    """A round whose files are all as they were written."""
    return Round(tmp_path / "coordinator")


@pytest.mark.parametrize("phase", WORKED)
def test_what_is_whole_is_used(round_: Round, phase: Phase) -> None:
    assert round_.damage(phase) is None


@pytest.mark.parametrize("phase", [Phase.AGGREGATING, Phase.DISTILLING])
def test_updates_that_changed_or_went_are_lost(round_: Round, phase: Phase) -> None:
    round_.updates["a"].write_bytes(b"b.safetensors")
    assert round_.damage(phase) == UpdatesLost(silos=("a",))
    round_.updates["b"].unlink()
    assert round_.damage(phase) == UpdatesLost(silos=("a", "b"))


def test_an_update_from_before_its_digest_was_noted_is_believed(round_: Round) -> None:
    updates = tuple(msgspec.structs.replace(u, file_digest="") for u in round_.state.updates)
    round_.state = msgspec.structs.replace(round_.state, updates=updates)
    round_.updates["a"].write_bytes(b"other bytes")
    assert round_.damage(Phase.AGGREGATING) is None


@pytest.mark.parametrize("phase", WORKED[1:])
@pytest.mark.parametrize("gone", [False, True])
def test_a_model_of_the_round_that_changed_or_went_is_made_again(
    round_: Round, phase: Phase, gone: bool
) -> None:
    if gone:
        round_.aggregate.unlink()
    else:
        round_.aggregate.write_bytes(b"Aggregate.safetensors")
    assert round_.damage(phase) == ResultsLost()


def test_a_round_is_not_aggregated_on_a_damaged_base(round_: Round) -> None:
    round_.base.write_bytes(round_.base.read_bytes()[:-1] + b"\1")
    with pytest.raises(StorageError, match="damaged or gone"):
        round_.damage(Phase.AGGREGATING)
