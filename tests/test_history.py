"""Does the checker of histories notice each broken promise, and read what is on the disk?"""

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import tomli_w

from coordinator.folders import Folders
from coordinator.rounds.chronicle import note_event, note_opened
from coordinator.rounds.journal import Journal, ModelRow, RunRow
from coordinator.rounds.machine import (
    Accepted,
    Aggregated,
    Event,
    Phase,
    Published,
    RoundState,
    SiloGone,
    UpdateAccepted,
    advance,
    open_round,
)
from fedreid.audit import AuditLog, Field
from fedreid.contract import Release, ReleasePayload
from fedreid.files import digest_of, write_bytes
from fedreid.names import Digest, RoundNumber, RunName
from fedreid.pki.signing import new_signing_key_pem, sign, signing_key
from fedreid.wire.messages import release_to_wire
from silo_agent.config import Folders as AgentFolders
from silo_agent.config import Membership, save_membership
from tests.coordinator.rounds.states import DEADLINE_S, rules, update
from tests.history import Gone, History, Round, Span, Taken, Update, check, read_history
from tests.parties import FakeClock

RULES = rules()
START, FIRST, SECOND = ("0" * 64, "1" * 64, "2" * 64)
PLACE = ("spring", 1)


def model(version: int, digest: str, number: int) -> ModelRow:
    return ModelRow(
        version=version, digest=digest, run="spring", round=number, release=b"", signature=b""
    )


def published(number: int, base: str, digest: str, *silos: str, at_s: float) -> Round:
    """A round of ten seconds: five of collecting, five of publishing."""
    state = open_round(
        run="spring", number=number, base_digest=base, before=None, published_before=number - 1,
        invited=silos, rules=RULES, now_s=at_s,
    )  # fmt: skip
    for silo in silos:
        state = advance(state, update(silo, digest=f"{silo}{number}"), RULES, at_s + 5)
    weights = dict.fromkeys(silos, 1 / len(silos))
    state = advance(state, Aggregated(weights=weights, update_norm=1.0), RULES, at_s + 5)
    state = advance(state, Published(model_digest=digest, download_bytes=0), RULES, at_s + 10)
    assert state.phase is Phase.PUBLISHED
    return Round(
        state=state,
        spans=(
            span(Phase.COLLECTING, at_s, at_s + 5),
            span(Phase.PUBLISHING, at_s + 5, at_s + 10),
        ),
    )


def span(phase: Phase, began_s: float, ended_s: float | None, allowed_s: float = 60.0) -> Span:
    return Span(phase=phase, began_s=began_s, ended_s=ended_s, allowed_s=allowed_s)


def sent(silo: str, number: int, *, at_s: float | None = None) -> Update:
    return Update(
        silo=silo, run="spring", round=number, payload_digest=f"{silo}{number}", at_s=at_s
    )


GOOD = History(
    rounds=(
        published(1, START, FIRST, "a", "b", "c", at_s=100.0),
        published(2, FIRST, SECOND, "a", "b", at_s=120.0),
    ),
    models=(model(1, START, 0), model(2, FIRST, 1), model(3, SECOND, 2)),
    acknowledged=(
        *(sent(silo, 1, at_s=104.0) for silo in "abc"),
        *(sent(silo, 2, at_s=124.0) for silo in "ab"),
        *(sent(silo, number) for silo in "ab" for number in (1, 2)),
    ),
    sent=(sent("a", 1), sent("a", 2)),
    heard=frozenset("a"),
    taken=tuple(Taken(silo="a", version=v, digest=d) for v, d in ((1, START), (2, FIRST))),
    gone=(Gone(silo="c", decided_s=111.0, done_s=112.0),),
    started_s=(99.0,),
    known_until_s=200.0,
)


def with_state(history: History, number: int, **changes: object) -> History:
    """The history with something else in a round's state."""
    rounds = list(history.rounds)
    state = msgspec.structs.replace(rounds[number - 1].state, **changes)
    rounds[number - 1] = replace(rounds[number - 1], state=state)
    return replace(history, rounds=tuple(rounds))


def with_spans(history: History, number: int, *spans: Span) -> History:
    """The history with a round in other phases."""
    rounds = list(history.rounds)
    rounds[number - 1] = replace(rounds[number - 1], spans=spans)
    return replace(history, rounds=tuple(rounds))


def breaks(history: History, message: str) -> None:
    """Check that the checker finds exactly this."""
    with pytest.raises(AssertionError) as caught:
        check(history)
    assert message in str(caught.value).splitlines()


def updates_of(history: History, number: int) -> tuple[Accepted, ...]:
    return history.rounds[number - 1].state.updates


def test_a_history_in_which_nothing_is_wrong_passes() -> None:
    check(GOOD, uninterrupted={PLACE: FIRST, ("spring", 2): SECOND})


# 1: an acknowledged update is never lost


def test_an_acknowledged_update_that_is_in_no_round_is_found() -> None:
    without = with_state(GOOD, 1, updates=updates_of(GOOD, 1)[:1], weights={"a": 1.0})
    breaks(without, "1: the update b1 of b in round 1 of spring was acknowledged and is lost")


def test_what_only_the_silo_remembers_as_acknowledged_is_missed_too() -> None:
    heard = replace(GOOD, acknowledged=(*GOOD.acknowledged, sent("z", 2)))
    breaks(heard, "1: the update z2 of z in round 2 of spring was acknowledged and is lost")


def test_an_update_of_a_silo_that_went_during_the_round_is_not_missed() -> None:
    gone = Gone(silo="b", decided_s=104.5, done_s=None)
    two = tuple(u for u in updates_of(GOOD, 1) if u.silo != "b")
    without = with_state(GOOD, 1, updates=two, weights={"a": 0.5, "c": 0.5})
    check(replace(without, gone=(*GOOD.gone, gone)))


def test_a_silo_that_went_in_another_round_is_no_excuse() -> None:
    gone = Gone(silo="b", decided_s=150.0, done_s=151.0)
    without = with_state(GOOD, 1, updates=updates_of(GOOD, 1)[:1], weights={"a": 1.0})
    breaks(
        replace(without, gone=(*GOOD.gone, gone)),
        "1: the update b1 of b in round 1 of spring was acknowledged and is lost",
    )


def test_an_acknowledged_update_whose_round_is_gone_is_found() -> None:
    without = replace(GOOD, rounds=GOOD.rounds[:1])
    breaks(without, "1: the update a2 of a in round 2 of spring was acknowledged, and the round is "
           "unknown")  # fmt: skip


def test_an_update_that_took_the_place_of_an_acknowledged_one_is_found() -> None:
    other = msgspec.structs.replace(updates_of(GOOD, 2)[1], payload_digest="other")
    replaced = with_state(GOOD, 2, updates=(updates_of(GOOD, 2)[0], other))
    breaks(
        replaced,
        "1: the update b2 of b in round 2 of spring was acknowledged, and other took its place",
    )


def test_a_counted_update_that_was_not_aggregated_is_found() -> None:
    breaks(with_state(GOOD, 2, weights={"a": 1.0}), "1: b has no weight in round 2 of spring")


def test_a_weight_of_who_was_not_counted_is_found() -> None:
    weights = {"a": 0.4, "b": 0.4, "z": 0.2}
    breaks(
        with_state(GOOD, 2, weights=weights),
        "1: z was not counted and has a weight in round 2 of spring",
    )


# 2: none counts twice


def test_a_silo_that_counts_twice_in_a_round_is_found() -> None:
    twice = with_state(GOOD, 2, updates=(*updates_of(GOOD, 2), updates_of(GOOD, 2)[1]))
    breaks(twice, "2: b counts 2 times in round 2 of spring")


def test_an_update_that_counts_in_two_published_rounds_is_found() -> None:
    again = with_state(GOOD, 2, updates=(updates_of(GOOD, 2)[0], updates_of(GOOD, 1)[1]))
    breaks(
        replace(again, acknowledged=()),
        "2: the same update of b counts in round 1 of spring and round 2 of spring",
    )


def test_an_update_that_was_noted_as_counted_twice_is_found() -> None:
    noted = (*GOOD.acknowledged, sent("b", 2, at_s=124.5))
    breaks(replace(GOOD, acknowledged=noted), "2: b was counted 2 times in round 2 of spring")


def test_an_update_that_nobody_sent_is_found() -> None:
    breaks(replace(GOOD, sent=(sent("a", 1),)), "2: a never sent what counts in round 2 of spring")


# 3: bit-identical


def test_a_model_with_other_bits_than_without_crashes_is_found() -> None:
    with pytest.raises(AssertionError, match=r"3: round 2 of spring published 2222.* of a, b, not"):
        check(GOOD, uninterrupted={PLACE: FIRST, ("spring", 2): "e" * 64})


# 4: never a half-written, unsigned or older model


def test_an_unsigned_model_is_found() -> None:
    breaks(replace(GOOD, unsigned=(3,)), "4: model 3 is not signed as it stands")


def test_a_half_written_model_is_found() -> None:
    breaks(
        replace(GOOD, damaged=("the file of model 3 holds other bytes",)),
        "4: the file of model 3 holds other bytes",
    )


def test_a_version_that_was_given_twice_is_found() -> None:
    again = (*GOOD.models, model(3, SECOND, 2))
    breaks(replace(GOOD, models=again), "4: models have the versions [1, 2, 3, 3]")


def test_a_silo_that_went_back_to_an_older_model_is_found() -> None:
    back = (*GOOD.taken, Taken(silo="a", version=1, digest=START))
    breaks(replace(GOOD, taken=back), "4: a took model 1 after 2")


def test_a_model_that_only_a_silo_knows_is_found() -> None:
    taken = (*GOOD.taken, Taken(silo="a", version=3, digest="e" * 64))
    breaks(replace(GOOD, taken=taken), "4: a took a model 3 that was never published")


def test_a_round_whose_release_is_missing_is_found() -> None:
    breaks(
        replace(GOOD, models=GOOD.models[:2]),
        "4: round 2 of spring published 222222222222, and its release is another's",
    )


def test_a_release_of_a_round_that_published_nothing_is_found() -> None:
    failed = with_state(GOOD, 2, phase=Phase.FAILED)
    breaks(failed, "4: round 2 of spring is failed, and model 3 was released")


def test_a_round_that_began_with_an_older_model_is_found() -> None:
    older = with_state(GOOD, 2, base_digest=START)
    breaks(older, "4: round 2 of spring began with 000000000000, which was not the newest model")


# 5: a revoked silo has no effect


def test_a_silo_that_is_invited_after_it_was_revoked_is_found() -> None:
    invited = with_state(GOOD, 2, invited=("a", "b", "c"))
    breaks(invited, "5: c was gone and is invited to round 2 of spring")


def test_an_update_that_stays_in_the_round_of_a_revocation_is_found() -> None:
    gone = (Gone(silo="b", decided_s=106.0, done_s=107.0),)
    breaks(
        replace(with_state(GOOD, 2, updates=(), weights={}, invited=()), gone=gone),
        "5: b was gone before the end of round 1 of spring, and counts in it",
    )


def test_an_update_that_is_counted_after_a_revocation_is_found() -> None:
    noted = (*GOOD.acknowledged, sent("c", 2, at_s=126.0))
    breaks(
        replace(GOOD, acknowledged=noted),
        "5: the update c2 of c in round 2 of spring was counted after the silo was gone",
    )


def test_a_silo_that_was_let_in_again_may_take_part() -> None:
    gone = (Gone(silo="b", decided_s=111.0, done_s=112.0, again_s=115.0),)
    check(replace(GOOD, gone=gone))


# 6: every round ends by its deadline


def test_a_phase_that_outlasts_its_deadline_is_found() -> None:
    late = with_spans(GOOD, 2, span(Phase.COLLECTING, 120.0, 195.0, allowed_s=60.0))
    breaks(late, "6: round 2 of spring was collecting 15.0 s too long")


def test_a_round_that_does_not_end_is_found() -> None:
    endless = with_spans(GOOD, 2, span(Phase.COLLECTING, 120.0, None, allowed_s=60.0))
    breaks(endless, "6: round 2 of spring was collecting 20.0 s too long")


def test_a_deadline_that_passes_while_nobody_is_there_is_kept_at_the_start() -> None:
    late = with_spans(GOOD, 2, span(Phase.COLLECTING, 120.0, 195.0, allowed_s=60.0))
    check(replace(late, started_s=(99.0, 190.0)))


# Reading


class Site:
    """A coordinator's folder in which one round was done, and a silo's."""

    def __init__(self, root: Path) -> None:
        self.clock = FakeClock()
        self.folders = Folders(root / "coordinator")
        self.folders.root.mkdir()
        self.agent = AgentFolders(root / "agent")
        self.agent.root.mkdir()
        self.audit = AuditLog(self.folders.audit, self.clock)
        self.agent_audit = AuditLog(self.agent.audit, self.clock)
        self.journal = Journal(self.folders.journal)
        self.key = new_signing_key_pem()
        write_bytes(self.folders.model_key, self.key)
        save_membership(self.agent, Membership(federation="harbour", silo="a", model_key=b""))
        plan = tomli_w.dumps({"name": "spring", "rounds": 2})
        start = self.released(1, 0, b"start")
        run = RunRow(name="spring", plan_toml=plan, state="running", started_at_s=0.0)
        self.journal.add_run(run, start)
        self.audit.append("coordinator.started", version="1")
        self.state = open_round(
            run="spring", number=1, base_digest=start.digest, before=None, published_before=0,
            invited=("a", "b", "c"), rules=RULES, now_s=self.clock.now_s(),
        )  # fmt: skip
        self.journal.save_round(self.state)
        note_opened(self.audit, self.state)

    def released(self, version: int, number: int, data: bytes) -> ModelRow:
        staged = self.folders.models / "staged"
        write_bytes(staged, data)
        digest = digest_of(staged)
        staged.rename(self.folders.models / f"{digest}.safetensors")
        release = Release(
            federation="harbour",
            run=RunName("spring"),
            round=RoundNumber(number),
            version=version,
            model_digest=digest,
            base_digest=Digest(""),
            layout_digest=digest,
            payloads=(ReleasePayload(encoding="fp32", payload_digest=digest, byte_count=1),),
        )
        statement = release_to_wire(release).SerializeToString(deterministic=True)
        return ModelRow(
            version=version,
            digest=digest,
            run="spring",
            round=number,
            release=statement,
            signature=sign(signing_key(self.key), statement),
        )

    def happen(self, event: Event, *models: ModelRow) -> RoundState:
        """An event as the conductor lets it happen."""
        self.clock.move(1.0)
        after = advance(self.state, event, RULES, self.clock.now_s())
        self.journal.save_round(after, models)
        note_event(self.audit, self.state, event, after)
        self.state = after
        return after

    def agree(self, silo: str) -> None:
        """The silo's update is counted."""
        event: UpdateAccepted = update(silo, digest=f"{silo}1")
        self.happen(event)

    def whole(self) -> None:
        """The rest of the round; the silo ``c`` is revoked in it."""
        note: dict[str, Field] = {"run": "spring", "round": 1, "payload_digest": "a1"}
        self.agent_audit.append("update.sent", **note)
        for silo in "ab":
            self.agree(silo)
        self.agent_audit.append("update.outcome", outcome="accepted", **note)
        self.audit.append("silo.revoked", silo="c", reason="")
        self.happen(SiloGone(silo="c"))
        self.audit.append("silo.gone", silo="c")
        self.happen(Aggregated(weights={"a": 0.5, "b": 0.5}, update_norm=1.0))
        model = self.released(2, 1, b"first")
        self.agent_audit.append("model.taken", version=2, model_digest=model.digest)
        self.happen(Published(model_digest=model.digest, download_bytes=0), model)

    def history(self) -> History:
        return read_history(self.folders.root, [self.agent.root])


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_what_a_federation_has_left_is_read_whole(site: Site) -> None:
    site.whole()
    history = site.history()
    check(history, slack_s=0.01)
    assert [u.silo for u in history.acknowledged] == ["a", "b", "a"]
    assert [u.payload_digest for u in history.sent] == ["a1"]
    assert [model.version for model in history.models] == [1, 2]
    assert [taken.version for taken in history.taken] == [2]
    (gone,) = history.gone
    assert gone.silo == "c" and gone.done_s is not None
    (whole,) = history.rounds
    assert [s.phase for s in whole.spans] == [Phase.COLLECTING, Phase.AGGREGATING, Phase.PUBLISHING]
    assert whole.spans[0].began_s == whole.opened_s == 1_900_000_000.0


def test_a_journal_that_has_lost_its_last_commit_is_found(site: Site) -> None:
    counted = site.state
    site.whole()
    site.journal.save_round(counted)
    with pytest.raises(AssertionError, match="1: the update a1 of a in round 1 of spring was"):
        check(site.history())


def test_a_truncated_model_file_and_a_changed_release_are_found(site: Site) -> None:
    site.whole()
    newest = site.journal.newest_model()
    assert newest is not None
    (site.folders.models / f"{newest.digest}.safetensors").write_bytes(b"fir")
    site.journal.save_round(
        site.state, [msgspec.structs.replace(newest, version=3, signature=b"0" * 64)]
    )
    with pytest.raises(AssertionError) as caught:
        check(site.history())
    assert "4: the file of model 2 holds other bytes" in str(caught.value)
    assert "4: model 3 is not signed as it stands" in str(caught.value)


def test_a_round_that_is_still_on_is_judged_by_the_time_it_is_read(site: Site) -> None:
    begun = site.clock.now_s()
    read = read_history(site.folders.root, now_s=begun + DEADLINE_S + 5)
    check(read)
    read = read_history(site.folders.root, now_s=begun + DEADLINE_S + 20)
    with pytest.raises(AssertionError, match=r"6: round 1 of spring was collecting 20\.0 s too"):
        check(read)
