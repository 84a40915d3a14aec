"""Did a federation keep its promises? One checker over journal, audit logs and published models.

:func:`read_history` collects what a federation has left behind at both ends, running or killed;
:func:`check` asserts promises 1 to 6 of the design (§3) over it. All instants of a history are of
one clock: the coordinator's for what was read from disk, the simulation's own for what it made.
"""

import math
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from coordinator.folders import Folders
from coordinator.rounds.journal import ModelRow
from coordinator.rounds.machine import Accepted, Phase, RoundState
from coordinator.trust.registry import LEFT, QUARANTINED, REVOKED, SUSPENDED
from fedreid.audit import AuditLine, read_audit
from fedreid.errors import SignatureRefused, StorageError
from fedreid.files import digest_of
from fedreid.limits import MODELS_KEPT
from fedreid.pki.signing import public_bytes, signing_key, verify
from fedreid.plan import Plan, parse_plan
from fedreid.v1 import federation_pb2
from fedreid.wire.messages import release_from_wire
from fedreid.wire.tensors import TensorFile
from silo_agent.config import Folders as AgentFolders
from silo_agent.config import load_membership
from silo_agent.held import NEWEST_NOTE, read_note

_INSTANT_S = 0.001
"""Audit logs round instants to this."""
_SLACK_S = 10.0
"""How much later than its deadline a phase may be seen to end: the wake-up, and a slow machine."""
_START_S = 1.0
"""From the end of a round that a start has found overdue to the start's own line."""
_GONE = tuple(f"silo.{state}" for state in (LEFT, QUARANTINED, REVOKED, SUSPENDED))
_LET_IN = ("silo.resumed", "silo.enrolled", "silo.approved", "silo.registered")
_WORKED_ORDER = (Phase.COLLECTING, Phase.AGGREGATING, Phase.DISTILLING, Phase.EVALUATING)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A round in one of its phases."""

    phase: Phase
    began_s: float
    ended_s: float | None
    """None while it lasts."""
    allowed_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A round as the journal holds it, and when it was in which phase."""

    state: RoundState
    spans: tuple[Span, ...]

    @property
    def place(self) -> tuple[str, int]:
        """Run and number."""
        return self.state.run, self.state.number

    @property
    def opened_s(self) -> float:
        """When it began."""
        return self.spans[0].began_s

    def ended_before(self, instant_s: float) -> bool:
        """Whether it was over by an instant."""
        ended_s = self.spans[-1].ended_s
        return self.state.ended and ended_s is not None and ended_s <= instant_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """An update that a silo has sent, or that was acknowledged."""

    silo: str
    run: str
    round: int
    payload_digest: str
    at_s: float | None = None
    """When the coordinator noted its yes; None for what a silo noted, by its own clock."""

    @property
    def place(self) -> tuple[str, int]:
        """Run and round."""
        return self.run, self.round

    def __str__(self) -> str:
        return f"the update {self.payload_digest[:12]} of {self.silo} in {_named(self.place)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A model that a silo has fetched and believed."""

    silo: str
    version: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    """A silo that left, or was kept out."""

    silo: str
    decided_s: float
    done_s: float | None
    """When nothing of it had an effect any more, and the command returned; None: it did not."""
    again_s: float | None = None
    """When it was let in again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What a federation has left behind."""

    rounds: tuple[Round, ...]
    """Of all runs, in order."""
    models: tuple[ModelRow, ...]
    """Every release, by version."""
    unsigned: tuple[int, ...] = ()
    """Versions whose release is not signed by the federation's key, or states something else."""
    damaged: tuple[str, ...] = ()
    """Model files, at either end, whose bytes are not the ones of their name; or that are gone."""
    acknowledged: tuple[Update, ...] = ()
    """As the coordinator noted before it said yes, and as silos noted when they heard it."""
    missing: tuple[Update, ...] = ()
    """Counted in a round that is under way, and their bytes are not in the spool."""
    sent: tuple[Update, ...] = ()
    heard: frozenset[str] = frozenset()
    """Silos whose own logs are known: what they did not note, they have not sent."""
    taken: tuple[Taken, ...] = ()
    """Of each silo in order."""
    gone: tuple[Gone, ...] = ()
    started_s: tuple[float, ...] = ()
    """When the coordinator has started."""
    known_until_s: float
    """When this was looked at."""


def check(
    history: History,
    *,
    uninterrupted: Mapping[tuple[str, int], str] | None = None,
    slack_s: float = _SLACK_S,
) -> None:
    """Assert promises 1 to 6 of a history.

    ``uninterrupted`` gives the digests of models by run and round, where the same updates went
    through a federation in which nothing failed.
    """
    broken = [
        *_lost(history),
        *_counted_twice(history),
        *_other_bits(history, uninterrupted or {}),
        *_bad_models(history),
        *_effects_of_the_gone(history),
        *_overdue(history, slack_s),
    ]
    assert not broken, "\n".join(("promises were broken:", *broken))


def _lost(history: History) -> Iterator[str]:
    """1: an acknowledged update is never lost."""
    rounds = {each.place: each for each in history.rounds}
    for update in history.acknowledged:
        found = rounds.get(update.place)
        if found is None:
            yield f"1: {update} was acknowledged, and the round is unknown"
            continue
        accepted = found.state.accepted(update.silo)
        if accepted is None:
            if not _went(history, update.silo, found):
                yield f"1: {update} was acknowledged and is lost"
        elif update.at_s is not None and accepted.payload_digest != update.payload_digest:
            yield f"1: {update} was acknowledged, and {accepted.payload_digest[:12]} took its place"
    yield from (f"1: {update} counts, and its bytes are lost" for update in history.missing)
    for each in history.rounds:
        counted = {update.silo for update in each.state.updates}
        weighed = set(each.state.weights)
        for silo in sorted(counted ^ weighed) if weighed else ():
            fault = "has no weight" if silo in counted else "was not counted and has a weight"
            yield f"1: {silo} {fault} in {_named(each.place)}"


def _went(history: History, silo: str, during: Round) -> bool:
    """Whether the silo left or was kept out while the round was on."""
    return any(
        gone.silo == silo
        and during.opened_s - _INSTANT_S <= gone.decided_s
        and not during.ended_before(gone.decided_s - _INSTANT_S)
        for gone in history.gone
    )


def _counted_twice(history: History) -> Iterator[str]:
    """2: none counts twice, and none that was not sent."""
    sent = {(u.silo, *u.place, u.payload_digest) for u in history.sent}
    counted_in: dict[tuple[str, str], tuple[str, int]] = {}
    for each in history.rounds:
        for silo, times in Counter(update.silo for update in each.state.updates).items():
            if times > 1:
                yield f"2: {silo} counts {times} times in {_named(each.place)}"
        for update in each.state.updates:
            key = (update.silo, *each.place, update.payload_digest)
            if update.silo in history.heard and key not in sent:
                yield f"2: {update.silo} never sent what counts in {_named(each.place)}"
            if each.state.phase is Phase.PUBLISHED:
                other = counted_in.setdefault((update.silo, update.payload_digest), each.place)
                if other != each.place:
                    places = f"{_named(other)} and {_named(each.place)}"
                    yield f"2: the same update of {update.silo} counts in {places}"
    noted = Counter((u.silo, u.place) for u in history.acknowledged if u.at_s is not None)
    for (silo, place), times in noted.items():
        if times > 1:
            yield f"2: {silo} was counted {times} times in {_named(place)}"


def _other_bits(history: History, uninterrupted: Mapping[tuple[str, int], str]) -> Iterator[str]:
    """3: bit-identical after any crash."""
    for each in history.rounds:
        state = each.state
        expected = uninterrupted.get(each.place)
        published = state.phase is Phase.PUBLISHED
        if published and expected is not None and state.model_digest != expected:
            yield (
                f"3: {_named(each.place)} published {state.model_digest[:12]} of "
                f"{', '.join(u.silo for u in state.updates)}, not {expected[:12]}"
            )


def _bad_models(history: History) -> Iterator[str]:
    """4: never a half-written, unsigned or older model."""
    yield from (f"4: model {version} is not signed as it stands" for version in history.unsigned)
    yield from (f"4: {what}" for what in history.damaged)
    versions = [model.version for model in history.models]
    if versions != list(range(1, len(versions) + 1)):
        yield f"4: models have the versions {versions}"
    for each in history.rounds:
        yield from _badly_released(history, each)
    digests = {model.version: model.digest for model in history.models}
    newest: dict[str, int] = defaultdict(int)
    for taken in history.taken:
        if taken.version < newest[taken.silo]:
            yield f"4: {taken.silo} took model {taken.version} after {newest[taken.silo]}"
        if digests.get(taken.version) != taken.digest:
            yield f"4: {taken.silo} took a model {taken.version} that was never published"
        newest[taken.silo] = max(newest[taken.silo], taken.version)


def _badly_released(history: History, each: Round) -> Iterator[str]:
    """Whether a round published what it says, once, on top of the newest model."""
    state, name = each.state, _named(each.place)
    own = [m for m in history.models if (m.run, m.round) == each.place]
    if state.phase is not Phase.PUBLISHED:
        if own:
            yield f"4: {name} is {state.phase}, and model {own[0].version} was released"
        return
    parts = len(state.clusters) + 1 if len(state.clusters) > 1 else 1
    # Later rows of the round are its models put back.
    first = own[:parts]
    if not first or first[-1].digest != state.model_digest:
        yield f"4: {name} published {state.model_digest[:12]}, and its release is another's"
        return
    before = [m for m in history.models if m.version < first[0].version]
    if not before or before[-1].digest != state.base_digest:
        yield f"4: {name} began with {state.base_digest[:12]}, which was not the newest model"


def _effects_of_the_gone(history: History) -> Iterator[str]:
    """5: a silo that was kept out has no effect after the command returns."""
    for gone in history.gone:
        if gone.done_s is None:
            continue
        done_s = gone.done_s + _INSTANT_S
        again_s = gone.again_s if gone.again_s is not None else math.inf
        for each in history.rounds:
            if each.opened_s < again_s and not each.ended_before(done_s):
                yield from _effects(gone.silo, each, invited=each.opened_s > done_s)
        for update in history.acknowledged:
            counted_s = update.at_s if update.silo == gone.silo else None
            if counted_s is not None and done_s < counted_s < again_s:
                yield f"5: {update} was counted after the silo was gone"


def _effects(silo: str, each: Round, *, invited: bool) -> Iterator[str]:
    """What a silo does in a round that went on, or was opened, after the silo was gone."""
    name = _named(each.place)
    if invited and silo in each.state.invited:
        yield f"5: {silo} was gone and is invited to {name}"
    if each.state.accepted(silo) is not None or silo in each.state.weights:
        yield f"5: {silo} was gone before the end of {name}, and counts in it"


def _overdue(history: History, slack_s: float) -> Iterator[str]:
    """6: every round ends by its deadline; one that passes while nobody is there, at the start."""
    for each in history.rounds:
        for span in each.spans:
            ended_s = history.known_until_s if span.ended_s is None else span.ended_s
            # What a start finds overdue it ends before it notes itself.
            starts_s = (s for s in history.started_s if s <= ended_s + _START_S)
            due_s = max(span.began_s + span.allowed_s, *starts_s, 0.0)
            if ended_s > due_s + slack_s:
                late_s = ended_s - due_s
                yield f"6: {_named(each.place)} was {span.phase} {late_s:.1f} s too long"


def _named(place: tuple[str, int]) -> str:
    return f"round {place[1]} of {place[0]}"


# Reading what a federation has left


def read_history(
    coordinator: Path, agents: Iterable[Path] = (), *, now_s: float | None = None
) -> History:
    """The history in the data folders of a coordinator and its agents, running or not.

    ``now_s`` is when this is read, where rounds that have not ended shall be judged too.

    Raises:
        AuditBroken: a chain of either end does not hold.
    """
    folders = Folders(coordinator)
    lines = list(read_audit(folders.audit))
    with closing(sqlite3.connect(f"file:{folders.journal}?mode=ro", uri=True)) as journal:
        plans = [(*key, parse_plan(toml)) for *key, toml in journal.execute(_PLANS)]
        states = [msgspec.json.decode(row[0], type=RoundState) for row in journal.execute(_ROUNDS)]
        models = [_model(row) for row in journal.execute(_MODELS)]
        # A coordinator that runs may have ended its round, and emptied its spool, meanwhile.
        lost = set(_not_spooled(folders, states))
        newest = [msgspec.json.decode(row[0], type=RoundState) for row in journal.execute(_ROUNDS)]
        lost &= {update for state in newest if not state.ended for update in counted(state)}
    gone = departures(lines)
    unsigned, damaged = _examined(folders, models)
    sites = [_Site.of(folder) for folder in agents]
    damaged_in_the_spool = _lost_on_the_disk(lines)
    return History(
        rounds=tuple(_round(state, _plan_of(state, plans), lines, gone) for state in states),
        models=tuple(models),
        unsigned=unsigned,
        damaged=(*damaged, *(what for site in sites for what in site.damaged())),
        missing=tuple(sorted(lost, key=str)),
        acknowledged=(
            *acknowledged(lines),
            *(
                update
                for site in sites
                for update in site.accepted()
                if (update.silo, *update.place) not in damaged_in_the_spool
            ),
        ),
        sent=tuple(update for site in sites for update in site.sent()),
        heard=frozenset(site.silo for site in sites),
        taken=tuple(taken for site in sites for taken in site.taken()),
        gone=tuple(gone),
        started_s=tuple(line.at_s for line in _of(lines, "coordinator.started")),
        known_until_s=now_s if now_s is not None else max((x.at_s for x in lines), default=0.0),
    )


_ACCEPTED = "update.accepted"
_PLANS = (
    "SELECT name, 0, plan_toml FROM runs UNION ALL "
    "SELECT * FROM (SELECT run, from_round, plan_toml FROM plan_changes ORDER BY sequence)"
)
_ROUNDS = (
    "SELECT rounds.state FROM rounds JOIN runs ON rounds.run = runs.name "
    "ORDER BY runs.sequence, rounds.number"
)
_MODELS = "SELECT version, digest, run, round, release, signature FROM models ORDER BY version"


def _plan_of(state: RoundState, plans: Iterable[tuple[str, int, Plan]]) -> Plan:
    """What a round followed: the newest plan of its run that holds for it."""
    return [p for run, since, p in plans if run == state.run and since <= state.number][-1]


def _model(row: tuple[Any, ...]) -> ModelRow:
    return ModelRow(**dict(zip(ModelRow.__struct_fields__, row, strict=True)))


def acknowledged(lines: Sequence[AuditLine]) -> Iterator[Update]:
    """The updates that the coordinator has noted as counted, and has not lost since."""
    lost = _lost_on_the_disk(lines)
    return (
        _update(line, line.fields["silo"], line.at_s)
        for line in _of(lines, _ACCEPTED)
        if line.number > lost.get(_silo_and_place(line), 0)
    )


def counted(state: RoundState) -> list[Update]:
    """The updates that count in a round."""
    return [
        Update(silo=u.silo, run=state.run, round=state.number, payload_digest=u.payload_digest)
        for u in state.updates
    ]


def _not_spooled(folders: Folders, states: Iterable[RoundState]) -> Iterator[Update]:
    """The updates of rounds under way that no file holds as it was sent; bf16 is not compared."""
    for state in states:
        spool = folders.root / "spool" / f"{state.run}-{state.number:06d}"
        for accepted, update in zip(state.updates, counted(state), strict=True):
            path = spool / f"{update.silo}.safetensors"
            if not state.ended and not _is_whole(path, accepted):
                yield update


def _is_whole(path: Path, update: Accepted) -> bool:
    try:
        with TensorFile(path) as file:
            plain = file.layout.size_bytes == update.size_bytes
            return not plain or digest_of(path, start=file.data_offset) == update.payload_digest
    except StorageError:
        return False


def _of(lines: Iterable[AuditLine], *events: str) -> Iterator[AuditLine]:
    return (line for line in lines if line.event in events)


def _update(line: AuditLine, silo: str, at_s: float | None) -> Update:
    fields = line.fields
    return Update(
        silo=silo,
        run=fields["run"],
        round=fields["round"],
        payload_digest=fields["payload_digest"],
        at_s=at_s,
    )


def _silo_and_place(line: AuditLine) -> tuple[str, str, int]:
    return line.fields["silo"], line.fields["run"], line.fields["round"]


def _lost_on_the_disk(lines: Iterable[AuditLine]) -> dict[tuple[str, str, int], int]:
    """Updates that the coordinator's disk has damaged, and the line that told it; what was
    acknowledged before it counts only if it was acknowledged again."""
    return {_silo_and_place(line): line.number for line in _of(lines, "update.lost")}


def departures(lines: list[AuditLine]) -> list[Gone]:
    """Who went, and when what the coordinator did about it was done."""
    found = []
    for line in _of(lines, *_GONE):
        silo = line.fields["silo"]
        later = [x for x in lines if x.number > line.number]
        again = next((x for x in _of(later, *_LET_IN) if x.fields["silo"] == silo), None)
        # A coordinator that crashed in between finishes it before it answers anybody.
        ends = _of(later, "silo.gone", "coordinator.started")
        done = next((x for x in ends if x.fields.get("silo", silo) == silo), None)
        if done is not None and again is not None and again.number < done.number:
            done = None  # that was another time
        found.append(
            Gone(
                silo=silo,
                decided_s=line.at_s,
                done_s=None if done is None else done.at_s,
                again_s=None if again is None else again.at_s,
            )
        )
    return found


def _round(state: RoundState, plan: Plan, lines: list[AuditLine], gone: list[Gone]) -> Round:
    """A round with its phases; the journal keeps how long each was, not when.

    A silo that goes while its update is being aggregated, and what the disk has lost, begin that
    phase again.
    """
    opened = next(
        (
            line.at_s
            for line in _of(lines, "round.opened")
            if (line.fields["run"], line.fields["round"]) == (state.run, state.number)
        ),
        state.phase_since_s - sum(state.phase_seconds.values()),
    )
    again = sum(each.decided_s >= opened for each in gone) + 1
    again += sum(line.at_s >= opened for line in _of(lines, "update.lost", "round.made_again"))
    spans, at_s = [], opened
    for phase in (*_WORKED_ORDER, Phase.PUBLISHING):
        allowed_s = plan.quorum.deadline_s
        if phase is not Phase.COLLECTING:
            allowed_s = plan.quorum.phase_deadline_s * again
        if phase in state.phase_seconds:
            ended_s = at_s + state.phase_seconds[phase]
            spans.append(Span(phase=phase, began_s=at_s, ended_s=ended_s, allowed_s=allowed_s))
            at_s = ended_s
    if not state.ended:
        allowed_s = state.deadline_s - state.phase_since_s
        began_s = state.phase_since_s
        spans.append(Span(phase=state.phase, began_s=began_s, ended_s=None, allowed_s=allowed_s))
    return Round(state=state, spans=tuple(spans))


def _examined(folders: Folders, models: list[ModelRow]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The versions that are not signed as they stand, and the files that are not what they say."""
    key = public_bytes(signing_key(folders.model_key.read_bytes()))
    unsigned = tuple(model.version for model in models if not is_signed(model, key))
    rounds = list(dict.fromkeys((model.run, model.round) for model in reversed(models)))
    damaged = []
    for model in models:
        path = folders.models / f"{model.digest}.safetensors"
        if path.exists():
            if digest_of(path) != model.digest:
                damaged.append(f"the file of model {model.version} holds other bytes")
        elif (model.run, model.round) in rounds[: MODELS_KEPT + 1]:
            damaged.append(f"the file of model {model.version} is gone")
        stated = release_from_wire(federation_pb2.Release.FromString(model.release))
        for payload in stated.payloads:
            encoded = folders.models / f"{model.digest}.{payload.encoding}"
            if encoded.exists() and digest_of(encoded) != payload.payload_digest:
                damaged.append(f"model {model.version} in {payload.encoding} holds other bytes")
    return unsigned, tuple(damaged)


def is_signed(model: ModelRow, key: bytes) -> bool:
    """Whether a release is signed by the federation's key, and states what the journal says."""
    try:
        verify(key, model.release, model.signature)
    except SignatureRefused:
        return False
    stated = release_from_wire(federation_pb2.Release.FromString(model.release))
    return (stated.version, stated.model_digest, stated.run, stated.round) == (
        model.version,
        model.digest,
        model.run,
        model.round,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Site:
    """What one agent's data folder tells."""

    silo: str
    folder: Path
    lines: tuple[AuditLine, ...]

    @classmethod
    def of(cls, folder: Path) -> "_Site":
        folders = AgentFolders(folder)
        silo = load_membership(folders).silo
        return cls(silo=silo, folder=folder, lines=tuple(read_audit(folders.audit)))

    def sent(self) -> Iterator[Update]:
        return (_update(line, self.silo, None) for line in _of(self.lines, "update.sent"))

    def accepted(self) -> Iterator[Update]:
        for line in _of(self.lines, "update.outcome"):
            if line.fields["outcome"] == "accepted":
                yield _update(line, self.silo, None)

    def taken(self) -> Iterator[Taken]:
        for line in _of(self.lines, "model.taken"):
            version, digest = line.fields["version"], line.fields["model_digest"]
            yield Taken(silo=self.silo, version=version, digest=digest)

    def damaged(self) -> Iterator[str]:
        for note in sorted((self.folder / "models").glob("*.fp32.json")):
            held = None if note.name == NEWEST_NOTE else read_note(note)
            if held is not None and digest_of(Path(held.path)) != held.digest:
                yield f"{self.silo} holds model {held.version} with other bytes"
