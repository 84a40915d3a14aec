"""Is a trained round there wholly or not at all, and found again as it was put?"""

import os
from pathlib import Path

import msgspec
import pytest

from fedreid.contract import ModelKind, PrivacyReport
from fedreid.errors import StorageError
from fedreid.files import digest_of
from fedreid.limits import FIGURES_KEPT
from silo_agent.config import Folders
from silo_agent.outbox import (
    RESIDUAL_AFTER_FILE,
    RESIDUAL_BEFORE_FILE,
    UPDATE_FILE,
    FinishedRound,
    ModelFigures,
    Outbox,
)
from tests.silo_agent.example_round import RESULT
from tests.silo_agent.example_round import ROUND as EXAMPLE

ROUND = msgspec.structs.replace(EXAMPLE, bn="local", encoding="bf16")


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    """An empty outbox."""
    return Outbox(Folders(tmp_path))


def numbered(number: int, *, run: str = "spring", base: str = "b") -> FinishedRound:
    return msgspec.structs.replace(ROUND, run=run, round=number, base_digest=base * 64)


def trained(outbox: Outbox, finished: FinishedRound, data: bytes = b"update") -> FinishedRound:
    built = outbox.begin(finished.run, finished.round)
    (built / UPDATE_FILE).write_bytes(data)
    (built / "private").mkdir()
    (built / "private" / "classifier").write_bytes(b"never leaves")
    outbox.put(built, finished)
    return finished


def test_a_trained_round_is_found_again_after_a_restart(outbox: Outbox, tmp_path: Path) -> None:
    trained(outbox, ROUND)
    again = Outbox(Folders(tmp_path))
    assert again.find("spring", 7, "b" * 64) == ROUND
    assert (again.folder(ROUND) / UPDATE_FILE).read_bytes() == b"update"
    assert (again.folder(ROUND) / "private" / "classifier").read_bytes() == b"never leaves"


def test_the_last_round_is_owed_until_its_delivery_is_noted(outbox: Outbox) -> None:
    assert outbox.undelivered() is None
    trained(outbox, numbered(6))
    assert outbox.undelivered() == numbered(6)
    outbox.note_delivered(numbered(6))
    assert outbox.undelivered() is None
    trained(outbox, numbered(6))  # anew: the one that was delivered is gone
    assert outbox.undelivered() == numbered(6)


def test_a_round_that_is_still_trained_is_not_there(outbox: Outbox) -> None:
    built = outbox.begin("spring", 7)
    (built / UPDATE_FILE).write_bytes(b"half")
    assert outbox.find("spring", 7, "b" * 64) is None
    assert outbox.newest("spring") is None
    assert outbox.last() is None


def test_what_a_killed_training_left_is_removed_before_the_next(
    outbox: Outbox, tmp_path: Path
) -> None:
    (outbox.begin("spring", 6) / UPDATE_FILE).write_bytes(b"half")
    built = outbox.begin("spring", 7)
    assert names_in(built) == []
    assert names_in(tmp_path / "rounds") == [built.name]
    assert built.stat().st_mode & 0o777 == 0o700


def test_a_crash_while_a_round_is_put_leaves_none_of_it(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def power_cut(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", power_cut)
        with pytest.raises(StorageError):
            trained(outbox, ROUND)
    assert outbox.find("spring", 7, "b" * 64) is None
    trained(outbox, ROUND)
    assert outbox.find("spring", 7, "b" * 64) == ROUND


def test_a_round_trained_from_another_model_is_not_the_one(outbox: Outbox) -> None:
    trained(outbox, ROUND)
    assert outbox.find("spring", 7, "c" * 64) is None
    assert outbox.find("spring", 8, "b" * 64) is None
    assert outbox.find("summer", 7, "b" * 64) is None


def test_a_round_that_is_trained_again_takes_its_own_place(outbox: Outbox) -> None:
    trained(outbox, ROUND, b"first")
    again = numbered(7, base="c")
    trained(outbox, again, b"second")
    assert outbox.find("spring", 7, "b" * 64) is None
    assert outbox.find("spring", 7, "c" * 64) == again
    assert (outbox.folder(again) / UPDATE_FILE).read_bytes() == b"second"


def test_the_newest_round_is_the_one_with_the_highest_number_of_its_run(outbox: Outbox) -> None:
    for number in (9, 10, 8):
        trained(outbox, numbered(number))
    trained(outbox, numbered(99, run="summer"))
    assert outbox.newest("spring") == numbered(10)
    assert outbox.newest("spring", before=10) == numbered(9)
    assert outbox.newest("spring", before=8) is None
    assert outbox.newest("winter") is None


def test_the_last_round_is_the_one_that_was_trained_last(outbox: Outbox) -> None:
    for age, finished in enumerate((numbered(9, run="summer"), numbered(3))):
        trained(outbox, finished)
        note = outbox.folder(finished) / "round.json"
        os.utime(note, (1000 + age, 1000 + age))
    assert outbox.last() == numbered(3)


def test_older_rounds_of_the_run_go_and_all_others_stay(outbox: Outbox) -> None:
    kept = [numbered(8), numbered(9), numbered(1, run="summer"), numbered(1, run="spring-2")]
    for finished in [numbered(6), numbered(7), *kept]:
        trained(outbox, finished)
    outbox.remove_before(numbered(8))
    assert outbox.find("spring", 7, "b" * 64) is None
    assert outbox.find("spring", 6, "b" * 64) is None
    for finished in kept:
        assert outbox.find(finished.run, finished.round, "b" * 64) == finished


def test_a_damaged_note_is_told_with_what_to_do(outbox: Outbox) -> None:
    trained(outbox, ROUND)
    (outbox.folder(ROUND) / "round.json").write_bytes(b"{")
    with pytest.raises(StorageError, match="Remove"):
        outbox.find("spring", 7, "b" * 64)


def test_a_folder_that_is_no_round_is_in_nobodys_way(outbox: Outbox, tmp_path: Path) -> None:
    trained(outbox, ROUND)
    (tmp_path / "rounds" / "notes-of-the-operator").mkdir()
    (tmp_path / "rounds" / "file").write_bytes(b"")
    assert outbox.newest("spring") == ROUND


def measured(round: int, base_round: int, *models: ModelKind) -> FinishedRound:
    results = tuple(msgspec.structs.replace(RESULT, model=model) for model in models)
    return msgspec.structs.replace(ROUND, round=round, base_round=base_round, evaluations=results)


def places(figures: tuple[ModelFigures, ...]) -> list[tuple[int, str]]:
    return [(one.round, one.result.model) for one in figures]


def test_a_global_models_figures_belong_to_the_round_that_made_it() -> None:
    assert places(measured(7, 5, "global", "local").figures()) == [(5, "global"), (7, "local")]


def test_figures_go_on_from_round_to_round_and_a_base_measured_twice_counts_once() -> None:
    first = measured(7, 6, "global", "local")
    second = msgspec.structs.replace(measured(8, 6, "global"), earlier=first.figures())
    assert places(second.figures()) == [(6, "global"), (7, "local")]


def test_only_the_last_rounds_figures_are_kept() -> None:
    earlier: tuple[ModelFigures, ...] = ()
    for number in range(1, 3 * FIGURES_KEPT):
        finished = msgspec.structs.replace(
            measured(number, number - 1, "global", "local"), earlier=earlier
        )
        earlier = finished.figures()
    rounds = {number for number, _ in places(earlier)}
    assert rounds == set(range(2 * FIGURES_KEPT, 3 * FIGURES_KEPT))


def test_what_the_round_led_to_is_the_newest_global_figure(outbox: Outbox) -> None:
    trained(outbox, finished := measured(7, 6, "global", "local"))
    outbox.note_published(finished, msgspec.structs.replace(RESULT, model="global", map=0.9))
    last = outbox.figures(finished)[-1]
    assert (last.round, last.result.model, last.result.map) == (7, "global", 0.9)


# Damage


def test_a_round_that_is_damaged_on_the_disk_is_known_to_be(outbox: Outbox) -> None:
    folder = outbox.folder(trained(outbox, ROUND))
    assert outbox.damaged(folder) == []
    (folder / UPDATE_FILE).write_bytes(b"updatf")
    (folder / "private" / "classifier").unlink()
    assert outbox.damaged(folder) == ["private/classifier", UPDATE_FILE]
    (folder / "digests.json").write_bytes(b"{")
    assert outbox.damaged(folder) == ["digests.json"]


def test_a_round_from_before_digests_were_kept_is_believed(outbox: Outbox) -> None:
    folder = outbox.folder(trained(outbox, ROUND))
    (folder / "digests.json").unlink()
    assert outbox.damaged(folder) == []


def test_figures_that_are_added_later_are_no_damage(outbox: Outbox) -> None:
    outbox.note_published(trained(outbox, ROUND), RESULT)
    assert outbox.damaged(outbox.folder(ROUND)) == []


# Residuals


def sent(outbox: Outbox, finished: FinishedRound, residual: bytes) -> str:
    """Let a round's payload leave this residual; its digest."""
    after = outbox.folder(finished) / RESIDUAL_AFTER_FILE
    after.write_bytes(residual)
    return digest_of(after)


def carried(outbox: Outbox, previous: FinishedRound | None, *, private: bool = False) -> bytes:
    """What the next round says too."""
    built = outbox.begin("spring", 8)
    outbox.carry_over(previous, built, private=private)
    before = built / RESIDUAL_BEFORE_FILE
    return before.read_bytes() if before.exists() else b""


def trained_with(outbox: Outbox, finished: FinishedRound, residual: bytes) -> FinishedRound:
    """A round that had this to say too."""
    built = outbox.begin(finished.run, finished.round)
    (built / UPDATE_FILE).write_bytes(b"update")
    (built / "private").mkdir()
    (built / RESIDUAL_BEFORE_FILE).write_bytes(residual)
    outbox.put(built, finished)
    return finished


def test_the_next_round_says_what_an_accepted_update_has_left_unsaid(outbox: Outbox) -> None:
    trained_with(outbox, ROUND, b"of round 6")
    outbox.note_accepted(ROUND, sent(outbox, ROUND, b"of round 7"))
    assert carried(outbox, ROUND) == b"of round 7"


def test_the_next_round_says_what_one_that_did_not_count_would_have_said(outbox: Outbox) -> None:
    trained_with(outbox, ROUND, b"of round 6")
    sent(outbox, ROUND, b"of round 7")  # it was refused, or too late
    assert carried(outbox, ROUND) == b"of round 6"


def test_without_a_residual_nothing_is_carried_over(outbox: Outbox) -> None:
    assert carried(outbox, None) == b""
    trained(outbox, ROUND)
    assert carried(outbox, ROUND) == b""
    outbox.note_accepted(ROUND, "")  # in an encoding that says all
    sent(outbox, ROUND, b"of an earlier attempt in another encoding")
    assert carried(outbox, ROUND) == b""


def test_a_residual_that_the_disk_has_damaged_is_left_out(outbox: Outbox) -> None:
    trained_with(outbox, ROUND, b"of round 6")
    (outbox.folder(ROUND) / RESIDUAL_BEFORE_FILE).write_bytes(b"of round 5")
    assert carried(outbox, ROUND) == b""
    outbox.note_accepted(ROUND, sent(outbox, ROUND, b"of round 7"))
    sent(outbox, ROUND, b"of round 8")
    assert carried(outbox, ROUND) == b""


def test_what_is_carried_over_stays_when_its_round_goes_and_is_watched_for_damage(
    outbox: Outbox,
) -> None:
    trained(outbox, ROUND)
    outbox.note_accepted(ROUND, sent(outbox, ROUND, b"of round 7"))
    built = outbox.begin("spring", 8)
    (built / UPDATE_FILE).write_bytes(b"update")
    outbox.carry_over(ROUND, built, private=False)
    outbox.put(built, numbered(8))
    outbox.remove_before(numbered(8))
    before = outbox.folder(numbered(8)) / RESIDUAL_BEFORE_FILE
    assert before.read_bytes() == b"of round 7"
    before.write_bytes(b"of round 6")
    assert outbox.damaged(outbox.folder(numbered(8))) == [RESIDUAL_BEFORE_FILE]


def test_beside_noise_no_residual_of_values_without_noise_leaves(outbox: Outbox) -> None:
    spent = PrivacyReport(clip_norm=1.0, noise_multiplier=1.0, epsilon=4.8, delta=1e-5)
    noisy = msgspec.structs.replace(ROUND, report=ROUND.report.withheld(spent))
    for finished, told in ((ROUND, b""), (noisy, b"of round 7")):
        trained(outbox, finished)
        outbox.note_accepted(finished, sent(outbox, finished, b"of round 7"))
        assert carried(outbox, finished, private=True) == told
        assert carried(outbox, finished) == b"of round 7"
