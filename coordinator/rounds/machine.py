"""How does a round go on? A pure state machine: ``state, event → state``.

::

    collecting ─▶ aggregating ─▶ distilling ─▶ evaluating ─▶ publishing ─▶ published
        │              └──────────────┴─────────────┴─────────────┴──────▶ failed
        └─▶ skipped                  (a phase that the plan leaves out is passed over)

An update that the disk has lost takes the round back to collecting, while its time lasts; a model
of the round that it has lost, back to aggregating.

Every phase has a deadline, so every round ends. What a phase asks to be done is named by the
phase itself; the conductor does it and comes back with an event. Nothing here reads a clock, a
disk or a network, so any schedule of events can be replayed.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import TypeVar

import msgspec

from coordinator.learning.jobs import Flag
from coordinator.rounds.quarantine import streaks_after
from fedreid.contract import UpdateReport
from fedreid.limits import JOB_ATTEMPTS

ValueT = TypeVar("ValueT")


class Phase(StrEnum):
    """Where a round stands."""

    COLLECTING = "collecting"
    AGGREGATING = "aggregating"
    DISTILLING = "distilling"
    EVALUATING = "evaluating"
    PUBLISHING = "publishing"
    PUBLISHED = "published"
    SKIPPED = "skipped"
    FAILED = "failed"


ENDED = frozenset({Phase.PUBLISHED, Phase.SKIPPED, Phase.FAILED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What of the plan decides how rounds go on."""

    min_silos: int
    min_fraction: float
    deadline_s: float
    phase_deadline_s: float
    distils: bool
    """This round has something to do on public images: distillation or recalibration."""
    evaluates: bool
    """The coordinator measures the model on a folder of its own."""
    gate_drop: float = 0.0
    """Points of mAP that a model may lie below the run's best; 0 = any model is published."""
    quarantine_rounds: int = 0
    """Suspect updates in a row after which a silo is kept out; 0 = none is."""


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """An update that counts."""

    silo: str
    payload_digest: str
    size_bytes: int
    file_digest: str = ""
    """Of the file in the spool; empty in journals from before it was noted."""
    report: UpdateReport


class RoundState(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Everything that is known of one round; the journal stores it as it stands.

    What is asked of it for each silo is looked up: there may be a thousand.
    """

    run: str
    number: int
    base_digest: str
    """Of the global model that the round starts from."""
    bases: dict[str, str] = {}
    """Of the model that a silo starts from, where its cluster has one of its own."""
    previous_digest: str = ""
    """Of the global model before the base; empty where the base is the run's start."""
    published_before: int
    """Models that the run had published when this round began; drives the learning rate."""
    invited: tuple[str, ...]
    phase: Phase = Phase.COLLECTING
    phase_since_s: float
    deadline_s: float
    """When the current phase must have ended."""
    closes_s: float = 0.0
    """Until when updates are collected at most."""
    updates: tuple[Accepted, ...] = ()
    """Sorted by silo."""
    refused: dict[str, str] = {}
    """Silos whose update was refused for its content, with the reason."""
    declined: dict[str, str] = {}
    """Silos that will not send an update, with the key of their policy that forbids it."""
    phase_seconds: dict[str, float] = {}
    weights: dict[str, float] = {}
    update_norms: dict[str, float] = {}
    """Of each silo's change of the learned tensors."""
    flags: dict[str, tuple[Flag, ...]] = {}
    """What looks wrong with a silo's update; silos without any are left out."""
    streaks: dict[str, int] = {}
    """Suspect updates in a row that a silo had sent when the round began."""
    clusters: tuple[tuple[str, ...], ...] = ()
    """The silos that get a model in common; empty without clustering."""
    results: dict[str, str] = {}
    """Digests of the models that the round has made so far, by their files' names."""
    made_again: int = 0
    """How often these were damaged before they were published."""
    update_norm: float = 0.0
    loss_before: float | None = None
    loss_after: float | None = None
    gate_map: float | None = None
    """What the gate measured of this round's model."""
    gate_best_map: float | None = None
    """The best mAP of the models that the run had published when the round began."""
    download_bytes: int = 0
    model_digest: str = ""
    """Of the global model that came of it."""
    models: dict[str, str] = {}
    """Of the model that a silo got, where its cluster has one of its own."""
    reason: str = ""

    @property
    def ended(self) -> bool:
        """Whether nothing more happens in this round."""
        return self.phase in ENDED

    def base_of(self, silo: str) -> str:
        """Digest of the model that the silo trains from."""
        return self.bases.get(silo, self.base_digest)

    def model_of(self, silo: str) -> str:
        """Digest of the model that the round gave the silo."""
        return self.models.get(silo, self.model_digest)

    def accepted(self, silo: str) -> Accepted | None:
        """The silo's update, if it counts."""
        return self._update_of.get(silo)

    @cached_property
    def _update_of(self) -> dict[str, Accepted]:
        return {update.silo: update for update in self.updates}

    @cached_property
    def _invited(self) -> frozenset[str]:
        return frozenset(self.invited)

    def invites(self, silo: str) -> bool:
        """Whether the silo takes part in the round."""
        return silo in self._invited

    def wants(self, silo: str) -> bool:
        """Whether an update of ``silo`` would still count."""
        return self.phase is Phase.COLLECTING and self.invites(silo) and self.accepted(silo) is None


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateAccepted:
    """An update was validated and lies durably in the spool."""

    update: Accepted


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdatesLost:
    """The disk has lost or damaged accepted updates; their silos still have them in the outbox."""

    silos: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultsLost:
    """The disk has lost or damaged what the round has made of the updates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateRejected:
    """An update was refused for its content; its silo is not waited for any longer."""

    silo: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Declined:
    """A silo will not send an update in this round; it is not waited for any longer."""

    silo: str
    policy_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SiloGone:
    """A silo was revoked or left; its update, if any, does not count any more."""

    silo: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TimePassed:
    """The clock moved; deadlines may have passed."""

    problem: str = ""
    """What the current phase has been failing at, if anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregated:
    """The aggregate was written."""

    weights: dict[str, float]
    update_norm: float
    update_norms: dict[str, float] = field(default_factory=dict)
    flags: dict[str, tuple[Flag, ...]] = field(default_factory=dict)
    clusters: tuple[tuple[str, ...], ...] = ()
    results: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Distilled:
    """Distillation or recalibration is done; losses are None without distillation."""

    loss_before: float | None
    loss_after: float | None
    results: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """The coordinator's own measurement is done."""

    map: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """The models are in place under their digests."""

    model_digest: str
    models: dict[str, str] = field(default_factory=dict)
    download_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Abandoned:
    """The round is given up: the run was stopped, or a phase can't be done."""

    reason: str


Event = (
    UpdateAccepted
    | UpdatesLost
    | ResultsLost
    | UpdateRejected
    | Declined
    | SiloGone
    | TimePassed
    | Aggregated
    | Distilled
    | Evaluated
    | Published
    | Abandoned
)


def open_round(
    *,
    run: str,
    number: int,
    base_digest: str,
    base_map: float | None = None,
    before: RoundState | None,
    published_before: int,
    invited: tuple[str, ...],
    rules: Rules,
    now_s: float,
) -> RoundState:
    """A new round that collects updates of the invited silos.

    ``before`` is the round before it in the run, whatever became of that one. Where its model is
    not the base, an earlier model was put back, and ``base_map``, its own mAP if it was measured,
    is what the gate compares with: neither clusters, movement nor gate outlive a roll-back.
    """
    bases: dict[str, str] = {}
    previous, best = "", base_map
    if before is not None and base_digest == _outcome(before):
        published = before.phase is Phase.PUBLISHED
        bases = before.models if published else before.bases
        previous = before.base_digest if published else before.previous_digest
        best = _best_map(before)
    return RoundState(
        run=run,
        number=number,
        base_digest=base_digest,
        bases={silo: bases[silo] for silo in sorted(invited) if silo in bases},
        previous_digest=previous,
        gate_best_map=best,
        streaks={} if before is None else _streaks(before),
        published_before=published_before,
        invited=tuple(sorted(invited)),
        phase_since_s=now_s,
        deadline_s=now_s + rules.deadline_s,
        closes_s=now_s + rules.deadline_s,
    )


def _outcome(state: RoundState) -> str:
    """Digest of the model that the next round starts from, unless an earlier one is put back."""
    return state.model_digest if state.phase is Phase.PUBLISHED else state.base_digest


def _best_map(state: RoundState) -> float | None:
    """The best mAP of the models that the run has published up to this round."""
    if state.phase is not Phase.PUBLISHED or state.gate_map is None:
        return state.gate_best_map
    return max(state.gate_map, state.gate_best_map or 0.0)


def _streaks(before: RoundState) -> dict[str, int]:
    return streaks_after(before.streaks, [u.silo for u in before.updates], before.flags)


def advance(state: RoundState, event: Event, rules: Rules, now_s: float) -> RoundState:
    """The state after ``event``; an event that no longer matters leaves it as it is."""
    if state.ended:
        return state
    if isinstance(event, Abandoned):
        return _end(state, Phase.FAILED, event.reason, now_s)
    if isinstance(event, SiloGone):
        state = _forgotten(state, event.silo)
    if isinstance(event, TimePassed) and now_s < state.phase_since_s:
        return _begun_again(state, now_s)
    if state.phase is Phase.COLLECTING:
        return _collect(state, event, rules, now_s)
    if isinstance(event, SiloGone | UpdatesLost):
        return _take_back(state, event, rules, now_s)
    if isinstance(event, ResultsLost):
        return _make_again(state, rules, now_s)
    if isinstance(event, TimePassed):
        if now_s < state.deadline_s:
            return state
        reason = f"{state.phase} did not end within {rules.phase_deadline_s:g} s"
        return _end(
            state,
            Phase.FAILED,
            f"{reason}: {event.problem}" if event.problem else reason,
            now_s,
        )
    return _finish_phase(state, event, rules, now_s)


def _collect(state: RoundState, event: Event, rules: Rules, now_s: float) -> RoundState:
    in_time = now_s < state.deadline_s
    if isinstance(event, UpdateAccepted) and in_time and state.wants(event.update.silo):
        updates = sorted((*state.updates, event.update), key=lambda update: update.silo)
        state = msgspec.structs.replace(
            state,
            updates=tuple(updates),
            refused=_without_key(state.refused, event.update.silo),
            declined=_without_key(state.declined, event.update.silo),
        )
    elif isinstance(event, UpdateRejected) and state.wants(event.silo):
        state = msgspec.structs.replace(state, refused={**state.refused, event.silo: event.reason})
    elif isinstance(event, Declined) and state.wants(event.silo):
        declined = {**state.declined, event.silo: event.policy_key}
        state = msgspec.structs.replace(state, declined=declined)
    elif isinstance(event, SiloGone):
        state = msgspec.structs.replace(
            state,
            invited=tuple(silo for silo in state.invited if silo != event.silo),
            updates=tuple(update for update in state.updates if update.silo != event.silo),
        )
    done = {u.silo for u in state.updates} | state.refused.keys() | state.declined.keys()
    waiting = set(state.invited) - done
    if waiting and in_time:
        return state
    return _close_intake(state, rules, now_s)


def _close_intake(state: RoundState, rules: Rules, now_s: float) -> RoundState:
    least = needed(state, rules)
    if len(state.updates) >= least:
        return _enter(state, Phase.AGGREGATING, rules, now_s)
    return _end(
        state,
        Phase.SKIPPED,
        f"no quorum: {len(state.updates)} of {len(state.invited)} invited silos delivered, "
        f"at least {least:g} are needed",
        now_s,
    )


def _forgotten(state: RoundState, silo: str) -> RoundState:
    """The round without a silo's past: let in again it begins anew."""
    return msgspec.structs.replace(state, streaks=_without_key(state.streaks, silo))


def _without_key(of: dict[str, ValueT], silo: str) -> dict[str, ValueT]:
    return {name: value for name, value in of.items() if name != silo}


def _take_back(
    state: RoundState, event: SiloGone | UpdatesLost, rules: Rules, now_s: float
) -> RoundState:
    """The round without updates that were already counted: what is left is aggregated again.

    A lost one is asked for again while the intake could still be open.
    """
    gone = isinstance(event, SiloGone)
    silos = (event.silo,) if isinstance(event, SiloGone) else event.silos
    if not any(state.accepted(silo) for silo in silos):
        return state
    state = _not_counting(state, silos)
    if not gone and now_s < state.closes_s:
        collecting = _enter(state, Phase.COLLECTING, rules, now_s)
        return msgspec.structs.replace(collecting, deadline_s=state.closes_s)
    if len(state.updates) >= needed(state, rules):
        return _enter(state, Phase.AGGREGATING, rules, now_s)
    why = "which is gone" if gone else "lost on the coordinator's disk"
    return _end(state, Phase.FAILED, f"no quorum without {', '.join(silos)}, {why}", now_s)


def _make_again(state: RoundState, rules: Rules, now_s: float) -> RoundState:
    """Aggregate the same updates again, which gives the same model; but not for ever."""
    if not state.results:
        return state
    times = state.made_again + 1
    state = msgspec.structs.replace(_not_counting(state, ()), made_again=times)
    if times >= JOB_ATTEMPTS:
        reason = f"its model was damaged on the coordinator's disk {times} times"
        return _end(state, Phase.FAILED, reason, now_s)
    return _enter(state, Phase.AGGREGATING, rules, now_s)


def _not_counting(state: RoundState, silos: tuple[str, ...]) -> RoundState:
    left = tuple(update for update in state.updates if update.silo not in silos)
    return msgspec.structs.replace(
        state, updates=left, weights={}, update_norms={}, flags={}, clusters=(), results={}
    )


def needed(state: RoundState, rules: Rules) -> float:
    """How many accepted updates the round needs at least."""
    return max(rules.min_silos, rules.min_fraction * len(state.invited))


def _finish_phase(state: RoundState, event: Event, rules: Rules, now_s: float) -> RoundState:
    match state.phase, event:
        case Phase.AGGREGATING, Aggregated():
            done = msgspec.structs.replace(
                state,
                weights=event.weights,
                update_norm=event.update_norm,
                update_norms=event.update_norms,
                flags=event.flags,
                clusters=event.clusters,
                results=event.results,
            )
            return _enter(done, _after_aggregation(rules), rules, now_s)
        case Phase.DISTILLING, Distilled():
            done = msgspec.structs.replace(
                state,
                loss_before=event.loss_before,
                loss_after=event.loss_after,
                results={**state.results, **event.results},
            )
            following = Phase.EVALUATING if rules.evaluates else Phase.PUBLISHING
            return _enter(done, following, rules, now_s)
        case Phase.EVALUATING, Evaluated():
            return _pass_gate(state, event.map, rules, now_s)
        case Phase.PUBLISHING, Published():
            done = msgspec.structs.replace(
                state,
                model_digest=event.model_digest,
                models=event.models,
                download_bytes=event.download_bytes,
            )
            return _end(done, Phase.PUBLISHED, "", now_s)
    return state


def _pass_gate(state: RoundState, measured: float, rules: Rules, now_s: float) -> RoundState:
    """Publish only what lies not too far below the best model of the run."""
    if not rules.gate_drop:
        return _enter(state, Phase.PUBLISHING, rules, now_s)
    state = msgspec.structs.replace(state, gate_map=measured)
    best = state.gate_best_map
    if best is None or measured >= best - rules.gate_drop / 100.0:
        return _enter(state, Phase.PUBLISHING, rules, now_s)
    return _end(
        state,
        Phase.FAILED,
        f"the model's mAP on the coordinator's images is {100 * measured:.1f}, more than "
        f"{rules.gate_drop:g} points below the best of the run, {100 * best:.1f}",
        now_s,
    )


def _after_aggregation(rules: Rules) -> Phase:
    if rules.distils:
        return Phase.DISTILLING
    return Phase.EVALUATING if rules.evaluates else Phase.PUBLISHING


def _enter(state: RoundState, phase: Phase, rules: Rules, now_s: float) -> RoundState:
    return msgspec.structs.replace(
        _timed(state, now_s),
        phase=phase,
        phase_since_s=now_s,
        deadline_s=now_s + rules.phase_deadline_s,
    )


def _begun_again(state: RoundState, now_s: float) -> RoundState:
    """The phase from now on: by a clock that was set back it has not begun yet.

    Its deadline would be as far away as the clock was wrong.
    """
    set_back_s = state.phase_since_s - now_s
    return msgspec.structs.replace(
        state,
        phase_since_s=now_s,
        deadline_s=state.deadline_s - set_back_s,
        closes_s=state.closes_s - set_back_s,
    )


def _end(state: RoundState, phase: Phase, reason: str, now_s: float) -> RoundState:
    return msgspec.structs.replace(
        _timed(state, now_s), phase=phase, phase_since_s=now_s, reason=reason
    )


def _timed(state: RoundState, now_s: float) -> RoundState:
    phase = str(state.phase)
    spent = state.phase_seconds.get(phase, 0.0) + max(0.0, now_s - state.phase_since_s)
    return msgspec.structs.replace(state, phase_seconds={**state.phase_seconds, phase: spent})
