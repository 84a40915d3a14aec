"""Who is this silo, what is it doing, and what has its last round given? Read from its folder.

No line is opened and nothing is written: the answer is the same with the coordinator away, and
while the agent runs beside.
"""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import msgspec
from rich.console import Group, RenderableType

from fedreid.audit import AuditLine, newest_first
from fedreid.clock import Clock
from fedreid.console import instant, print_json, say, table_of, text_of
from fedreid.watching import Look
from silo_agent.budget import PrivacyBudget, Statement
from silo_agent.config import Folders, identities, load_config, load_membership
from silo_agent.doing import Doing, doing_now
from silo_agent.outbox import FinishedRound, ModelFigures, Outbox
from silo_agent.using.advice import MODELS

_EVENTS_SHOWN = 6
_ROUNDS_SHOWN = 5


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What a command that is run beside the agent can say of it."""

    silo: str
    federation: str
    coordinator: str
    dataset: str
    certificate_ends_s: float
    """Seconds since the Unix epoch."""
    doing: Doing | None
    """None: the agent has never run here."""
    silent: bool
    """The agent does not run, or hangs."""
    privacy: Statement
    last_round: FinishedRound | None
    coordinator_version: str | None = None
    """Of the coordinator that answered; None: it was not asked."""

    def tree(self) -> dict[str, Any]:
        """It, for machines; without the time of the note, whose change is no news."""
        tree: dict[str, Any] = msgspec.to_builtins(self)
        if self.doing is not None:
            tree["doing"] = {"doing": self.doing.doing, "share": self.doing.share}
        return tree

    def lines(self) -> list[str]:
        """It, for people."""
        answered = f"the coordinator answers; it is fedreid {self.coordinator_version}"
        return [
            f"{self.silo} of {self.federation}, coordinator {self.coordinator}",
            *([answered] if self.coordinator_version is not None else []),
            f"its certificate lasts until {instant(self.certificate_ends_s)}",
            self._now(share=True),
            self._last(),
            self.privacy.sentence(),
        ]

    def line(self) -> str:
        """What changes of it, in one line; how far training is would be a line each second."""
        return f"{self.silo}: {self._now(share=False)}; {self._last()}"

    def _now(self, *, share: bool) -> str:
        if self.doing is None or (self.silent and not self.doing.doing):
            return "the agent does not run"
        if self.silent:
            return f"no sign of the agent since {instant(self.doing.at_s)}"
        done = f", {self.doing.share:.0%} done" if share and self.doing.share else ""
        return f"now: {self.doing.doing}{done}"

    def _last(self) -> str:
        last = self.last_round
        if last is None:
            return "has not trained a round yet"
        return f"last trained round {last.round} of {last.run} on {last.report.num_images} images"


def status_of(folders: Folders, clock: Clock) -> Status:
    """The silo whose data folder this is.

    Raises:
        IdentityMissing, ConfigRefused: it is no agent's.
        IdentityBroken, StorageError: something in it is damaged.
    """
    membership, config = load_membership(folders), load_config(folders)
    doing = doing_now(folders)
    return Status(
        silo=membership.silo,
        federation=membership.federation,
        coordinator=config.coordinator,
        dataset=config.dataset,
        certificate_ends_s=identities(folders, config).load().holder().not_after_s,
        doing=doing,
        silent=doing is None or doing.silent(clock.now_s()),
        privacy=PrivacyBudget(folders, config.policy.privacy).statement(),
        last_round=Outbox(folders).last(),
    )


def print_status(status: Status, *, as_json: bool) -> None:
    """Print it once."""
    if as_json:
        print_json(status.tree())
        return
    for line in status.lines():
        say(line)


def look_at_agent(folders: Folders, clock: Clock, *, drawn: bool) -> Look:
    """The agent now; with figures and the newest events where a picture is ``drawn``."""
    status = status_of(folders, clock)
    picture = _picture(folders, status) if drawn else ""
    return Look(line=status.line(), tree=status.tree(), picture=picture)


def _picture(folders: Folders, status: Status) -> RenderableType:
    parts: list[RenderableType] = [text_of(line) for line in status.lines()]
    if status.last_round is not None:
        parts += _figures(Outbox(folders).figures(status.last_round))
    events = list(islice(newest_first(folders.audit), _EVENTS_SHOWN))
    parts.append(table_of("What happened last", ("when", "event", ""), _rows(events)))
    return Group(*parts)


def _figures(figures: Sequence[ModelFigures]) -> list[RenderableType]:
    maps = {(one.round, one.result.model): one.result for one in figures}
    rounds = sorted({number for number, _ in maps}, reverse=True)[:_ROUNDS_SHOWN]
    if not rounds:
        return []
    rows = [
        (str(number), *(_figure(maps.get((number, model))) for model in MODELS))
        for number in rounds
    ]
    return [table_of("mAP (rank-1) on this silo's own query and gallery", ("round", *MODELS), rows)]


def _figure(result: Any) -> str:
    return "" if result is None else f"{result.map:.1%} ({result.rank1:.1%})"


def _rows(events: Sequence[AuditLine]) -> list[tuple[str, str, str]]:
    return [(instant(line.at_s), line.event, _place(line)) for line in reversed(events)]


def _place(line: AuditLine) -> str:
    """Of which round an event tells, and how it went; everything else: silo-agent audit show."""
    told = [f"round {line.fields['round']}"] if "round" in line.fields else []
    told += [str(line.fields[name]) for name in ("outcome", "key") if name in line.fields]
    return ", ".join(told)
