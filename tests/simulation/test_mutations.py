"""Would the simulation notice a mistake in the product? Each one made here must be found."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

import fedreid.files
from coordinator import folders
from coordinator.folders import Folders
from coordinator.rounds import conductor, current, intake, machine, publishing, recovery
from coordinator.rounds.chronicle import Chronicle
from coordinator.rounds.current import Current
from coordinator.rounds.intake import Announcement
from coordinator.rounds.journal import ModelRow
from coordinator.rounds.machine import Event, RoundState, SiloGone
from fedreid.errors import StorageError
from fedreid.work import off_loop
from tests.simulation.memory import MemoryJournal
from tests.simulation.world import play

_ENOUGH = 2000
Mutation = Callable[[pytest.MonkeyPatch], None]


def what_a_phase_was_done_from_is_not_compared(patch: pytest.MonkeyPatch) -> None:
    whole = Current.apply

    async def apply(self: Current, event: Event, *, seen: RoundState | None = None) -> None:
        await whole(self, event)

    patch.setattr(Current, "apply", apply)


def who_was_counted_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RoundState, "accepted", lambda self, silo: None)


def the_deadline_is_forgotten_at_a_restart(patch: pytest.MonkeyPatch) -> None:
    whole = Current.replay

    def replay(self: Current) -> None:
        whole(self)
        if self.round is not None and not self.round.ended:
            self.round = msgspec.structs.replace(self.round, deadline_s=1e12)

    patch.setattr(Current, "replay", replay)


def the_journal_answers_before_it_has_stored(patch: pytest.MonkeyPatch) -> None:
    whole = MemoryJournal.save_round
    waiting: list[tuple[Any, Any]] = []

    def save(self: MemoryJournal, state: RoundState, models: Sequence[ModelRow] = ()) -> None:
        waiting.append((state, models))
        while len(waiting) > 1 or (state.ended and waiting):
            whole(self, *waiting.pop(0))

    booted = Current.replay

    def replay(self: Current) -> None:
        waiting.clear()
        booted(self)

    patch.setattr(Current, "replay", replay)
    patch.setattr(MemoryJournal, "save_round", save)


def an_update_is_not_synced_before_it_counts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(intake, "move_file", unsynced(fedreid.files.move_file))


def a_model_is_not_synced_before_it_is_published(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(publishing, "link_file", unsynced(fedreid.files.link_file))


def unsynced(whole: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
    """The same without syncing the folder."""

    def place(path: Path, to: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fedreid.files, "sync_folder", lambda folder: None)
            whole(path, to)

    return place


def a_new_folder_is_not_synced(patch: pytest.MonkeyPatch) -> None:
    def make(path: Path, *, mode: int = 0o755) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        return path

    patch.setattr(folders, "make_folder", make)


def who_has_gone_stays_in_the_round(patch: pytest.MonkeyPatch) -> None:
    whole = machine.advance

    def advance(state: RoundState, event: Event, *more: Any) -> RoundState:
        return state if isinstance(event, SiloGone) else whole(state, event, *more)

    patch.setattr(current, "advance", advance)


def who_went_in_a_crash_stays_in_the_round(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(recovery, "drop_gone", lambda current, registry: None)


def an_update_of_another_round_counts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Announcement, "is_for", lambda self, state: self.run == state.run)


def a_round_begins_with_an_older_model(patch: pytest.MonkeyPatch) -> None:
    whole = machine.open_round

    def opened(*, base_digest: str, before: RoundState | None, **more: Any) -> RoundState:
        older = base_digest if before is None else before.base_digest
        return whole(base_digest=older, before=before, **more)

    patch.setattr(conductor, "open_round", opened)


def a_restart_throws_away_what_was_received(patch: pytest.MonkeyPatch) -> None:
    def tidy(current: Current, folders: Folders) -> None:
        for folder in folders.rounds():
            fedreid.files.remove_folder(folder)

    patch.setattr(recovery, "tidy", tidy)


def a_full_audit_log_takes_a_step_back(patch: pytest.MonkeyPatch) -> None:
    """As it was until the simulation found it: the journal had gone on, and memory had not."""
    take = Current.take
    before: dict[Current, RoundState | None] = {}

    def remembered(self: Current, state: RoundState) -> None:
        before[self] = self.round
        take(self, state)

    async def undone(function: Callable[..., Any], *args: Any, **more: Any) -> Any:
        auditing = getattr(function, "__func__", None) is Chronicle.settle
        try:
            done = await off_loop(function, *args, **more)
        except StorageError:
            if auditing:
                for each, state in before.items():
                    each.round = state
            raise
        if auditing:
            before.clear()
        return done

    patch.setattr(Current, "take", remembered)
    for module in (current, conductor):
        patch.setattr(module, "off_loop", undone)


MUTATIONS: list[tuple[Mutation, str]] = [
    (what_a_phase_was_done_from_is_not_compared, "1345"),
    (who_was_counted_is_forgotten, "12"),
    (the_deadline_is_forgotten_at_a_restart, "6"),
    (the_journal_answers_before_it_has_stored, "12"),
    (an_update_is_not_synced_before_it_counts, "1"),
    (a_model_is_not_synced_before_it_is_published, "4"),
    (a_new_folder_is_not_synced, "1"),
    (who_has_gone_stays_in_the_round, "5"),
    (who_went_in_a_crash_stays_in_the_round, "5"),
    (an_update_of_another_round_counts, "12"),
    (a_round_begins_with_an_older_model, "4"),
    (a_restart_throws_away_what_was_received, "1"),
    (a_full_audit_log_takes_a_step_back, "24"),
]


@pytest.mark.parametrize(
    ("mutation", "promises"), MUTATIONS, ids=[each.__name__ for each, _ in MUTATIONS]
)
def test_a_mistake_is_found(
    mutation: Mutation, promises: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutation(monkeypatch)
    for seed in range(_ENOUGH):
        failure = play(seed).failure
        if failure:
            broken = [line[0] for line in failure.splitlines() if line[1:2] == ":"]
            assert set(broken) & set(promises), f"seed {seed} found something else: {failure}"
            return
    pytest.fail(f"{_ENOUGH} schedules have not noticed it")
