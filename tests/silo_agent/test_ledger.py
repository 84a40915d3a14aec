"""Does the ledger count each update once, before it leaves, and hold the policy's quotas?"""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from fedreid.audit import AuditLog, audit_files, read_audit
from fedreid.contract import UpdateReport
from fedreid.errors import AuditBroken, PolicyRefused, StorageError
from silo_agent.config import Folders, Policy
from silo_agent.egress import Departure
from silo_agent.ledger import DAY_S, SENT, Entry, Ledger, Totals, check_quota, read_entries, totals
from tests.parties import FakeClock

NOON_S = 20_000 * DAY_S + 0.5 * DAY_S
FIRST = Departure(
    destination="coordinator.example:443",
    run="spring",
    round=1,
    base_digest="a" * 64,
    tensor_count=3,
    names_digest="b" * 64,
    encoding="fp32",
    byte_count=100,
    payload_digest="c" * 64,
    report=UpdateReport(num_images=10, cosine_distance=1 / 3, train_loss=0.1, num_steps=4),
)


def numbered(number: int, *, digest: str = "c") -> Departure:
    return msgspec.structs.replace(FIRST, round=number, payload_digest=digest * 64)


@pytest.fixture
def clock() -> FakeClock:
    """A clock that stands at noon, UTC."""
    return FakeClock(now=NOON_S)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """An agent's data folder."""
    return Folders(tmp_path)


def opened(folders: Folders, clock: FakeClock) -> Ledger:
    """The ledger as an agent that starts sees it."""
    return Ledger(folders, AuditLog(folders.audit, clock), clock)


def sent(folders: Folders) -> list[Departure]:
    return [entry.departure for entry in read_entries(folders)]


def test_an_update_is_in_the_log_before_anything_of_it_can_leave(
    folders: Folders, clock: FakeClock
) -> None:
    opened(folders, clock).enter(FIRST, Policy())
    (line,) = read_audit(folders.audit)
    assert line.event == SENT
    assert msgspec.convert(line.fields, Departure) == FIRST


def test_an_update_that_is_sent_again_is_counted_once_even_after_a_restart(
    folders: Folders, clock: FakeClock
) -> None:
    policy = Policy(bytes_per_day=100, rounds_per_day=1, rounds_total=1)
    ledger = opened(folders, clock)
    ledger.enter(FIRST, policy)
    ledger.enter(FIRST, policy)
    opened(folders, clock).enter(FIRST, policy)
    assert sent(folders) == [FIRST]


def test_other_bytes_or_another_destination_of_the_same_round_are_counted_too(
    folders: Folders, clock: FakeClock
) -> None:
    ledger = opened(folders, clock)
    elsewhere = msgspec.structs.replace(FIRST, destination="elsewhere.example:443")
    for departure in (FIRST, numbered(1, digest="d"), elsewhere):
        ledger.enter(departure, Policy())
    assert totals(read_entries(folders), NOON_S) == Totals(
        bytes_today=300, rounds_today=1, rounds_total=1
    )


def test_what_cannot_be_written_down_does_not_leave(
    folders: Folders, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = opened(folders, clock)

    def full(*_: object, **__: object) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(AuditLog, "append", full)
    for _ in range(2):  # nor does the attempt count as written
        with pytest.raises(StorageError):
            ledger.enter(FIRST, Policy())
    assert sent(folders) == []


def test_a_line_that_a_crash_cut_off_has_let_nothing_leave(
    folders: Folders, clock: FakeClock
) -> None:
    ledger = opened(folders, clock)
    ledger.enter(FIRST, Policy())
    ledger.enter(numbered(2), Policy())
    (file,) = audit_files(folders.audit)
    file.write_bytes(file.read_bytes()[:-10])
    again = opened(folders, clock)
    assert sent(folders) == [FIRST]
    again.enter(numbered(2), Policy(rounds_per_day=2))
    assert sent(folders) == [FIRST, numbered(2)]


def test_a_log_that_somebody_has_changed_stops_the_agent(
    folders: Folders, clock: FakeClock
) -> None:
    opened(folders, clock).enter(FIRST, Policy())
    (file,) = audit_files(folders.audit)
    file.write_bytes(file.read_bytes().replace(b'"byte_count":100', b'"byte_count":1'))
    with pytest.raises(AuditBroken):
        opened(folders, clock)


def test_rounds_of_a_day_come_back_at_midnight(folders: Folders, clock: FakeClock) -> None:
    policy = Policy(rounds_per_day=2)
    ledger = opened(folders, clock)
    ledger.enter(numbered(1), policy)
    ledger.enter(numbered(2), policy)
    with pytest.raises(PolicyRefused, match="takes part again from 2024-10-05 00:00") as refused:
        ledger.check_room(policy, run="spring", number=3, byte_count=100)
    again_at_s = refused.value.again_at_s
    assert again_at_s == NOON_S + DAY_S / 2
    clock.move(again_at_s - NOON_S)
    ledger.enter(numbered(3), policy)


def test_bytes_of_a_day_come_back_at_midnight(folders: Folders, clock: FakeClock) -> None:
    policy = Policy(bytes_per_day=250)
    ledger = opened(folders, clock)
    ledger.enter(numbered(1), policy)
    ledger.enter(numbered(2), policy)
    with pytest.raises(PolicyRefused, match="200 bytes have left") as refused:
        ledger.enter(numbered(3), policy)
    assert refused.value.again_at_s == NOON_S + DAY_S / 2
    assert sent(folders) == [numbered(1), numbered(2)]


def test_an_update_larger_than_a_days_bytes_needs_a_person(
    folders: Folders, clock: FakeClock
) -> None:
    with pytest.raises(PolicyRefused, match=r"policy\.bytes_per_day") as refused:
        opened(folders, clock).enter(FIRST, Policy(bytes_per_day=99))
    assert refused.value.again_at_s is None
    opened(folders, clock).enter(FIRST, Policy(bytes_per_day=100))


def test_when_all_rounds_are_used_up_a_person_has_to_act(
    folders: Folders, clock: FakeClock
) -> None:
    policy = Policy(rounds_total=2)
    ledger = opened(folders, clock)
    for number in (1, 2):
        ledger.enter(numbered(number), policy)
        clock.move(DAY_S)
    with pytest.raises(PolicyRefused, match="2 rounds") as refused:
        ledger.enter(numbered(3), policy)
    assert refused.value.again_at_s is None
    ledger.enter(numbered(2, digest="d"), policy)  # its round has left already


@given(
    sizes=some.lists(some.tuples(some.integers(0, 3), some.integers(1, 60)), max_size=30),
    bytes_per_day=some.integers(0, 200),
    rounds_per_day=some.integers(0, 5),
    rounds_total=some.integers(0, 10),
)
def test_whatever_is_asked_for_no_quota_is_ever_exceeded(
    sizes: list[tuple[int, int]], bytes_per_day: int, rounds_per_day: int, rounds_total: int
) -> None:
    policy = Policy(
        bytes_per_day=bytes_per_day, rounds_per_day=rounds_per_day, rounds_total=rounds_total
    )
    entries: list[Entry] = []
    for number, (day, size) in enumerate(sorted(sizes)):
        at_s = day * DAY_S
        departure = msgspec.structs.replace(FIRST, round=number, byte_count=size)
        try:
            check_quota(policy, entries, run="spring", number=number, byte_count=size, now_s=at_s)
        except PolicyRefused:
            continue
        entries.append(Entry(day=day, departure=departure))
        left = totals(entries, at_s)
        assert not bytes_per_day or left.bytes_today <= bytes_per_day
        assert not rounds_per_day or left.rounds_today <= rounds_per_day
        assert not rounds_total or left.rounds_total <= rounds_total
    if not (bytes_per_day or rounds_per_day or rounds_total):
        assert len(entries) == len(sizes)
