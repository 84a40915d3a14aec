"""How much has left this silo so far, and may more leave? Counted from the audit log.

There is no second book: a line ``update.sent`` is written, and on the disk, before the first byte
of its update goes, and what those lines add up to is what has left. A crash in between leaves a
line too many, never one too few. An update that is sent again, after a break or a restart, is the
same line and is counted once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from fedreid.audit import AuditLine, AuditLog, read_audit
from fedreid.clock import Clock
from fedreid.errors import AuditBroken, PolicyRefused
from silo_agent.config import Folders, Policy
from silo_agent.egress import Departure

SENT = "update.sent"
DAY_S = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One update that has left, or was about to."""

    day: int
    """Since the Unix epoch, in UTC."""
    departure: Departure

    @property
    def place(self) -> tuple[str, int]:
        """Run and round."""
        return self.departure.run, self.departure.round


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """What has left."""

    bytes_today: int
    rounds_today: int
    rounds_total: int


class Ledger:
    """The updates that have left this silo."""

    def __init__(self, folders: Folders, audit: AuditLog, clock: Clock) -> None:
        """Read what has left so far.

        Raises:
            AuditBroken: the log was changed, so nobody knows what has left.
        """
        self._audit = audit
        self._clock = clock
        self._entries = read_entries(folders)

    def check_room(self, policy: Policy, *, run: str, number: int, byte_count: int) -> None:
        """Check that an update of so many bytes may still leave; see :func:`check_quota`."""
        check_quota(
            policy,
            self._entries,
            run=run,
            number=number,
            byte_count=byte_count,
            now_s=self._clock.now_s(),
        )

    def enter(self, departure: Departure, policy: Policy) -> None:
        """Write down that an update leaves, before it does; blocks on the disk.

        Raises:
            PolicyRefused: a quota is used up.
            StorageError: the line can't be written, so nothing may leave.
        """
        if any(entry.departure == departure for entry in self._entries):
            return
        self.check_room(
            policy, run=departure.run, number=departure.round, byte_count=departure.byte_count
        )
        self._audit.append(SENT, **msgspec.to_builtins(departure))
        self._entries.append(Entry(day=day_of(self._clock.now_s()), departure=departure))


def read_entries(folders: Folders) -> list[Entry]:
    """Every update that the audit log says has left, oldest first.

    Raises:
        AuditBroken: the chain does not hold, or a line is none of this software's.
    """
    return [_entry(line) for line in read_audit(folders.audit) if line.event == SENT]


def totals(entries: Sequence[Entry], now_s: float) -> Totals:
    """What has left today and ever."""
    today = [entry for entry in entries if entry.day == day_of(now_s)]
    return Totals(
        bytes_today=sum(entry.departure.byte_count for entry in today),
        rounds_today=len({entry.place for entry in today}),
        rounds_total=len({entry.place for entry in entries}),
    )


def check_quota(
    policy: Policy,
    entries: Sequence[Entry],
    *,
    run: str,
    number: int,
    byte_count: int,
    now_s: float,
) -> None:
    """Check the policy's quotas for one more update.

    Raises:
        PolicyRefused: one is used up; with the time of the next day where that helps.
    """
    today = day_of(now_s)
    left = totals(entries, now_s)
    places = {entry.place for entry in entries}
    places_today = {entry.place for entry in entries if entry.day == today}
    tomorrow_s = (today + 1) * DAY_S
    if policy.rounds_total and len(places | {(run, number)}) > policy.rounds_total:
        raise PolicyRefused(
            f"Updates of {left.rounds_total} rounds have left this silo",
            key="rounds_total",
            why=f"its policy allows {policy.rounds_total} in all",
            next_step="Raise policy.rounds_total, or leave the federation.",
        )
    if policy.bytes_per_day and byte_count > policy.bytes_per_day:
        raise PolicyRefused(
            f"An update takes {byte_count} bytes",
            key="bytes_per_day",
            why=f"this silo's policy allows {policy.bytes_per_day} in a day",
            next_step="Raise policy.bytes_per_day, or ask for a smaller backbone or bf16.",
        )
    if policy.rounds_per_day and len(places_today | {(run, number)}) > policy.rounds_per_day:
        raise _tomorrow(
            f"Updates of {left.rounds_today} rounds have left this silo today",
            f"its policy allows {policy.rounds_per_day} in a day",
            "rounds_per_day",
            tomorrow_s,
        )
    if policy.bytes_per_day and left.bytes_today + byte_count > policy.bytes_per_day:
        raise _tomorrow(
            f"{left.bytes_today} bytes have left this silo today, and {byte_count} more are due",
            f"its policy allows {policy.bytes_per_day} in a day",
            "bytes_per_day",
            tomorrow_s,
        )


def day_of(at_s: float) -> int:
    """The day in UTC, counted from the Unix epoch."""
    return int(at_s // DAY_S)


def _entry(line: AuditLine) -> Entry:
    try:
        departure = msgspec.convert(line.fields, Departure)
    except msgspec.ValidationError as error:
        raise AuditBroken(
            f"Line {line.number} of the audit log can't be read",
            why=str(error),
            next_step="Another version of this software has written it: go on with that one.",
        ) from error
    return Entry(day=day_of(line.at_s), departure=departure)


def _tomorrow(what: str, why: str, key: str, again_at_s: float) -> PolicyRefused:
    until = datetime.fromtimestamp(again_at_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return PolicyRefused(
        what,
        key=key,
        why=why,
        next_step=f"The silo takes part again from {until} on by itself; policy.{key} sets the "
        "limit.",
        again_at_s=again_at_s,
    )
