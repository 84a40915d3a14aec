"""Does a join token make one silo of one key, and nothing else of anybody?"""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from coordinator.rounds.journal import Journal, SiloRow, TokenRow
from coordinator.trust.authorities import Authorities
from coordinator.trust.enrolment import Enrolment
from coordinator.trust.registry import (
    ACTIVE,
    LEFT,
    PENDING,
    QUARANTINED,
    REVOKED,
    SUSPENDED,
    Registry,
)
from fedreid.audit import read_audit
from fedreid.errors import AccessDenied, FedreidError, TokenRefused, TrustError, UsageError
from fedreid.limits import KEY_GRACE_S, LEAF_LIFE_S, TOKEN_TTL_MAX_S
from fedreid.names import Role, SiloName
from fedreid.pki.certificates import (
    create_authority,
    holder_of,
    key_fingerprint,
    key_to_pem,
    make_request,
    new_key,
    short_fingerprint,
)
from fedreid.pki.identity import Identity, check_fits
from fedreid.pki.tokens import JoinToken, decode, secret_hash
from tests.parties import HOUR_S, FakeClock, Federation

NORTH, SOUTH = SiloName("north"), SiloName("south")


def token_for(enrolment: Enrolment, silo: SiloName = NORTH, ttl_s: float = HOUR_S) -> JoinToken:
    return enrolment.create_token(silo, ttl_s=ttl_s, coordinator="127.0.0.1:443")


def test_a_token_becomes_the_certificate_of_its_silo(
    enrolment: Enrolment, registry: Registry, federation: Federation, clock: FakeClock
) -> None:
    token = token_for(enrolment)
    key = new_key()
    row = enrolment.enrol(NORTH, token.secret, make_request(key))
    holder = holder_of(row.certificate_pem)
    assert holder.principal.uri == f"spiffe://{federation.name}/silo/north"
    assert holder.key_fingerprint == row.key_fingerprint == key_fingerprint(key.public_key())
    assert holder.not_after_s == pytest.approx(clock.now_s() + LEAF_LIFE_S, abs=1)
    assert row.state == ACTIVE
    registry.check(holder)


def test_a_token_holds_all_that_a_silo_needs(enrolment: Enrolment, federation: Federation) -> None:
    token = decode(token_for(enrolment).encode())
    assert (token.silo, token.coordinator) == ("north", "127.0.0.1:443")
    bootstrap = token.identity()
    holder = bootstrap.holder()
    assert holder.principal.role is Role.BOOTSTRAP
    assert holder.principal.name == "north"
    assert holder.not_after_s == pytest.approx(token.expires_at_s, abs=1)
    assert token.authorities_pem == federation.authority.certificate_pem


def test_the_journal_keeps_a_hash_of_the_secret_alone(
    enrolment: Enrolment, journal: Journal
) -> None:
    token = token_for(enrolment)
    stored = journal.token(secret_hash(token.secret))
    assert stored is not None
    assert token.secret not in repr(stored)
    assert journal.token(token.secret) is None


def test_the_same_key_again_gets_the_same_certificate(enrolment: Enrolment) -> None:
    token, key = token_for(enrolment), new_key()
    first = enrolment.enrol(NORTH, token.secret, make_request(key))
    # another signature, the same key: the answer was lost on its way
    assert enrolment.enrol(NORTH, token.secret, make_request(key)) == first


def test_the_same_key_again_gets_the_same_certificate_after_a_restart(
    enrolment: Enrolment, journal: Journal, federation: Federation, clock: FakeClock
) -> None:
    token, key = token_for(enrolment), new_key()
    first = enrolment.enrol(NORTH, token.secret, make_request(key))
    restarted = Enrolment(
        journal=journal,
        registry=Registry(journal, federation.name, clock),
        authorities=enrolment.authorities,
        audit=enrolment.audit,
        clock=clock,
    )
    assert restarted.enrol(NORTH, token.secret, make_request(key)) == first


def test_another_key_is_refused_and_the_first_one_stays(
    enrolment: Enrolment, registry: Registry
) -> None:
    token, key = token_for(enrolment), new_key()
    first = enrolment.enrol(NORTH, token.secret, make_request(key))
    with pytest.raises(TokenRefused, match="already used by another key"):
        enrolment.enrol(NORTH, token.secret, make_request(new_key()))
    assert registry.silos() == [first]


def test_an_expired_token_is_refused(enrolment: Enrolment, clock: FakeClock) -> None:
    token = token_for(enrolment)
    clock.move(HOUR_S)
    with pytest.raises(TokenRefused, match="expired"):
        enrolment.enrol(NORTH, token.secret, make_request(new_key()))


def test_a_token_of_another_silo_is_refused(enrolment: Enrolment, registry: Registry) -> None:
    token = token_for(enrolment, SOUTH)
    with pytest.raises(TokenRefused, match="does not know"):
        enrolment.enrol(NORTH, token.secret, make_request(new_key()))
    assert registry.silos() == []


@pytest.mark.parametrize("secret", ["", "x", "\0", "ä" * 1000])
def test_an_unknown_secret_is_refused(enrolment: Enrolment, secret: str) -> None:
    with pytest.raises(TokenRefused):
        enrolment.enrol(NORTH, secret, make_request(new_key()))


def test_a_bad_request_does_not_spend_the_token(enrolment: Enrolment) -> None:
    token = token_for(enrolment)
    with pytest.raises(TrustError):
        enrolment.enrol(NORTH, token.secret, b"no request")
    enrolment.enrol(NORTH, token.secret, make_request(new_key()))


@pytest.mark.parametrize("state", [REVOKED, LEFT])
def test_the_token_of_a_silo_that_was_revoked_or_left_gives_nothing_more(
    enrolment: Enrolment, registry: Registry, state: str
) -> None:
    token, key = token_for(enrolment), new_key()
    enrolment.enrol(NORTH, token.secret, make_request(key))
    registry.set_state(NORTH, state)
    with pytest.raises(TokenRefused):
        enrolment.enrol(NORTH, token.secret, make_request(key))
    assert not registry.active(NORTH)


def test_a_spare_token_does_not_bring_a_revoked_silo_back(
    enrolment: Enrolment, registry: Registry
) -> None:
    first, spare = token_for(enrolment), token_for(enrolment)
    enrolment.enrol(NORTH, first.secret, make_request(new_key()))
    registry.set_state(NORTH, REVOKED)
    with pytest.raises(FedreidError):
        enrolment.enrol(NORTH, spare.secret, make_request(new_key()))
    assert not registry.active(NORTH)


def test_a_token_minted_after_the_revocation_brings_the_silo_back(
    enrolment: Enrolment, registry: Registry, clock: FakeClock
) -> None:
    enrolment.enrol(NORTH, token_for(enrolment).secret, make_request(new_key()))
    registry.set_state(NORTH, REVOKED)
    clock.move(1)
    enrolment.enrol(NORTH, token_for(enrolment).secret, make_request(new_key()))
    assert registry.active(NORTH)


def test_a_second_token_gives_the_silo_a_newer_key(
    enrolment: Enrolment, registry: Registry
) -> None:
    first = enrolment.enrol(NORTH, token_for(enrolment).secret, make_request(new_key()))
    second = enrolment.enrol(NORTH, token_for(enrolment).secret, make_request(new_key()))
    assert registry.silos() == [second]
    with pytest.raises(TrustError, match="newer key"):
        registry.check(holder_of(first.certificate_pem))


def test_an_older_token_asked_again_never_gives_the_certificate_of_another_key(
    enrolment: Enrolment,
) -> None:
    older, key = token_for(enrolment), new_key()
    enrolment.enrol(NORTH, older.secret, make_request(key))
    enrolment.enrol(NORTH, token_for(enrolment).secret, make_request(new_key()))
    try:
        row = enrolment.enrol(NORTH, older.secret, make_request(key))
    except TokenRefused:
        return
    assert row.key_fingerprint == key_fingerprint(key.public_key())


class TwoAtOnce(Journal):
    """Lets two readers of a token see it before either of them binds it, if nothing forbids it."""

    together = threading.Barrier(2)

    def token(self, secret_hash: str) -> TokenRow | None:
        found = super().token(secret_hash)
        with contextlib.suppress(threading.BrokenBarrierError):
            self.together.wait(timeout=1)
        return found


def test_two_keys_at_the_same_moment_get_one_certificate_between_them(
    enrolment: Enrolment,
    journal: Journal,
    federation: Federation,
    clock: FakeClock,
) -> None:
    token = token_for(enrolment)
    racing_journal = TwoAtOnce(journal._database.path)
    registry = Registry(racing_journal, federation.name, clock)
    racing = Enrolment(
        journal=racing_journal,
        registry=registry,
        authorities=enrolment.authorities,
        audit=enrolment.audit,
        clock=clock,
    )

    def attempt(request: bytes) -> SiloRow | None:
        try:
            return racing.enrol(NORTH, token.secret, request)
        except TokenRefused:
            return None

    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(attempt, [make_request(new_key()) for _ in range(2)]))
    issued = [row for row in rows if row is not None]
    racing_journal.close()
    assert len(issued) == 1
    assert registry.silos() == journal.silos()


@pytest.mark.parametrize("ttl_s", [0, -1, TOKEN_TTL_MAX_S + 1, float("nan"), float("inf")])
def test_a_token_cannot_live_for_ever_or_not_at_all(enrolment: Enrolment, ttl_s: float) -> None:
    with pytest.raises(UsageError):
        token_for(enrolment, ttl_s=ttl_s)


def test_what_is_issued_makes_a_whole_identity(enrolment: Enrolment, tmp_path: Path) -> None:
    token, key = token_for(enrolment), new_key()
    check_fits(token.identity(), tmp_path)
    row = enrolment.enrol(NORTH, token.secret, make_request(key))
    identity = Identity(
        key_pem=key_to_pem(key),
        certificate_pem=row.certificate_pem,
        authorities_pem=token.authorities_pem,
    )
    check_fits(identity, tmp_path)


# Renewal


def first_of(enrolment: Enrolment) -> SiloRow:
    """A silo that has joined."""
    return enrolment.enrol(NORTH, token_for(enrolment).secret, make_request(new_key()))


def test_both_keys_are_let_in_until_the_new_one_is_used_and_the_old_one_for_a_grace(
    enrolment: Enrolment, registry: Registry, clock: FakeClock
) -> None:
    old = holder_of(first_of(enrolment).certificate_pem)
    new = holder_of(enrolment.renew(old, make_request(new_key())))
    assert new.principal == old.principal and new.key_fingerprint != old.key_fingerprint
    clock.move(2 * KEY_GRACE_S)
    registry.check(old)
    registry.check(new)
    assert registry.first_use(new) and not registry.first_use(old)
    registry.note_first_use(new)
    assert registry.known("north").key_fingerprint == new.key_fingerprint
    assert not registry.first_use(new)
    clock.move(KEY_GRACE_S - 1)
    registry.check(old)
    clock.move(1)
    with pytest.raises(AccessDenied, match="newer key"):
        registry.check(old)
    registry.check(new)


def test_what_was_renewed_is_known_to_a_restarted_coordinator(
    enrolment: Enrolment, registry: Registry, journal: Journal, clock: FakeClock
) -> None:
    old = holder_of(first_of(enrolment).certificate_pem)
    new = holder_of(enrolment.renew(old, make_request(new_key())))
    for holder in (old, new):
        Registry(journal, registry.federation, clock).check(holder)
    registry.note_first_use(new)
    clock.move(KEY_GRACE_S)
    restarted = Registry(journal, registry.federation, clock)
    restarted.check(new)
    with pytest.raises(AccessDenied, match="newer key"):
        restarted.check(old)


def test_a_renewal_whose_answer_was_lost_gives_the_same_certificate_again(
    enrolment: Enrolment,
) -> None:
    old, key = holder_of(first_of(enrolment).certificate_pem), new_key()
    issued = enrolment.renew(old, make_request(key))
    assert enrolment.renew(old, make_request(key)) == issued
    names = [line.event for line in read_audit(enrolment.audit._folder)]
    assert names.count("silo.renewed") == 1


@pytest.mark.parametrize("because", ["it has ended", "its authority is going"])
def test_a_renewal_asked_for_again_too_late_gives_a_fresh_certificate(
    enrolment: Enrolment, authorities: Authorities, clock: FakeClock, because: str
) -> None:
    old, key = holder_of(first_of(enrolment).certificate_pem), new_key()
    stale = enrolment.renew(old, make_request(key))
    if because == "it has ended":
        clock.move(LEAF_LIFE_S + 1)
    else:
        authorities.prepare(create_authority(enrolment.registry.federation, now_s=clock.now_s()))
        authorities.activate()
    fresh = holder_of(enrolment.renew(old, make_request(key)))
    assert fresh.not_after_s > clock.now_s()
    assert fresh.issuer_key_id == authorities.issuing.key_id
    assert fresh != holder_of(stale)


def test_another_new_key_takes_the_place_of_one_that_was_never_used(
    enrolment: Enrolment, registry: Registry
) -> None:
    old = holder_of(first_of(enrolment).certificate_pem)
    lost = holder_of(enrolment.renew(old, make_request(new_key())))
    kept = holder_of(enrolment.renew(old, make_request(new_key())))
    registry.check(kept)
    with pytest.raises(AccessDenied, match="newer key"):
        registry.check(lost)


def test_a_replaced_key_renews_nothing_even_within_its_grace(
    enrolment: Enrolment, registry: Registry
) -> None:
    old = holder_of(first_of(enrolment).certificate_pem)
    new = holder_of(enrolment.renew(old, make_request(new_key())))
    registry.note_first_use(new)
    registry.check(old)
    with pytest.raises(AccessDenied, match="newer key"):
        enrolment.renew(old, make_request(new_key()))


def test_a_renewal_demands_a_new_key(enrolment: Enrolment, registry: Registry) -> None:
    token, first, second = token_for(enrolment), new_key(), new_key()
    row = enrolment.enrol(NORTH, token.secret, make_request(first))
    old = holder_of(row.certificate_pem)
    with pytest.raises(AccessDenied, match="new key"):
        enrolment.renew(old, make_request(first))
    new = holder_of(enrolment.renew(old, make_request(second)))
    registry.note_first_use(new)
    for used in (first, second):
        with pytest.raises(AccessDenied, match="new key"):
            enrolment.renew(new, make_request(used))


def test_joining_again_ends_every_earlier_key_at_once(
    enrolment: Enrolment, registry: Registry
) -> None:
    old = holder_of(first_of(enrolment).certificate_pem)
    new = holder_of(enrolment.renew(old, make_request(new_key())))
    registry.note_first_use(new)
    first_of(enrolment)
    for holder in (old, new):
        with pytest.raises(AccessDenied, match="newer key"):
            registry.check(holder)


def test_a_certificate_lives_as_long_as_the_settings_say(
    enrolment: Enrolment, clock: FakeClock
) -> None:
    quick = replace(enrolment, leaf_life_s=5.0)
    old = holder_of(first_of(quick).certificate_pem)
    for holder in (old, holder_of(quick.renew(old, make_request(new_key())))):
        assert holder.not_after_s == pytest.approx(clock.now_s() + 5, abs=1)


# Approval


def shown(enrolment: Enrolment) -> str:
    """The fingerprint as people see it."""
    return short_fingerprint(enrolment.registry.known("north").key_fingerprint)


@pytest.fixture
def approving(enrolment: Enrolment) -> Enrolment:
    """Where a person has to approve each new key."""
    return replace(enrolment, approval=True)


def test_a_key_gets_its_certificate_when_a_person_has_approved_it(
    approving: Enrolment, registry: Registry
) -> None:
    token, key = token_for(approving), new_key()
    for _ in range(3):
        row = approving.enrol(NORTH, token.secret, make_request(key))
        assert (row.state, row.certificate_pem) == (PENDING, b"")
    assert not registry.active("north") and not registry.may_talk("north")
    approving.approve("north", shown(approving).lower(), by="anna")
    row = approving.enrol(NORTH, token.secret, make_request(key))
    registry.check(holder_of(row.certificate_pem))
    assert approving.enrol(NORTH, token.secret, make_request(key)) == row
    lines = list(read_audit(approving.audit._folder))
    assert [line.event for line in lines] == [
        "token.created", "silo.awaits_approval", "silo.approved", "silo.enrolled",
    ]  # fmt: skip
    assert lines[2].fields["by"] == "anna"


@pytest.mark.parametrize("wrong", ["", "AAAA-AAAA-AAAA-AAAA"])
def test_another_fingerprint_approves_nothing(
    approving: Enrolment, registry: Registry, wrong: str
) -> None:
    token, key = token_for(approving), new_key()
    approving.enrol(NORTH, token.secret, make_request(key))
    with pytest.raises(UsageError, match="another fingerprint"):
        approving.approve("north", wrong, by="anna")
    assert approving.enrol(NORTH, token.secret, make_request(key)).state == PENDING
    assert not registry.may_talk("north")


def test_a_second_key_is_refused_while_the_first_awaits_approval(approving: Enrolment) -> None:
    token = token_for(approving)
    approving.enrol(NORTH, token.secret, make_request(new_key()))
    before = shown(approving)
    with pytest.raises(TokenRefused, match="another key"):
        approving.enrol(NORTH, token.secret, make_request(new_key()))
    assert shown(approving) == before


def test_a_pending_key_that_was_revoked_gets_nothing(approving: Enrolment) -> None:
    token, key = token_for(approving), new_key()
    approving.enrol(NORTH, token.secret, make_request(key))
    approving.registry.set_state(NORTH, REVOKED)
    with pytest.raises(UsageError, match="awaits no approval"):
        approving.approve("north", shown(approving), by="anna")
    with pytest.raises(TokenRefused):
        approving.enrol(NORTH, token.secret, make_request(key))


def test_who_waits_for_approval_can_ask_beyond_the_tokens_end(
    approving: Enrolment, clock: FakeClock
) -> None:
    token, key = token_for(approving), new_key()
    approving.enrol(NORTH, token.secret, make_request(key))
    clock.move(HOUR_S + 1)
    approving.registry.check(token.identity().holder())
    approving.approve("north", shown(approving), by="anna")
    assert approving.enrol(NORTH, token.secret, make_request(key)).state == ACTIVE


@pytest.mark.parametrize("state", [SUSPENDED, QUARANTINED])
def test_a_silo_that_is_kept_out_cannot_come_back_by_joining_again(
    enrolment: Enrolment, registry: Registry, state: str
) -> None:
    first_of(enrolment)
    spare = token_for(enrolment)
    registry.set_state("north", state, "for a reason")
    with pytest.raises(UsageError, match=f"is {state}: for a reason"):
        token_for(enrolment)
    with pytest.raises(TokenRefused):
        enrolment.enrol(NORTH, spare.secret, make_request(new_key()))
    assert registry.known("north").state == state


# An outside PKI


@pytest.fixture
def external(enrolment: Enrolment) -> Enrolment:
    """Where the operators' own PKI issues."""
    return replace(enrolment, external=True)


def test_with_an_outside_pki_nothing_is_issued_here(
    external: Enrolment, federation: Federation
) -> None:
    silo = federation.leaf(Role.SILO, "north").holder()
    for asked in (
        lambda: token_for(external),
        lambda: external.enrol(NORTH, "secret", make_request(new_key())),
        lambda: external.renew(silo, make_request(new_key())),
    ):
        with pytest.raises(AccessDenied, match="own PKI"):
            asked()


def test_a_silo_of_an_outside_pki_has_to_be_registered_and_may_change_its_key(
    external: Enrolment, journal: Journal, federation: Federation, clock: FakeClock
) -> None:
    pki = Federation.founded(now_s=federation.now_s, name=federation.name)
    registry = Registry(
        journal, federation.name, clock, issued_here=external.authorities.issued, external=True
    )
    external = replace(external, registry=registry)
    certificates = [pki.leaf(Role.SILO, "north").holder() for _ in range(2)]
    with pytest.raises(AccessDenied, match="not registered"):
        registry.check(certificates[0])
    external.register(NORTH, by="anna")
    for holder in certificates:
        registry.check(holder)
    with pytest.raises(AccessDenied, match="own authority"):
        registry.check(federation.leaf(Role.SILO, "north").holder())
    registry.set_state("north", REVOKED)
    with pytest.raises(AccessDenied, match="revoked"):
        registry.check(certificates[0])


def test_a_registered_silo_without_a_key_is_nobody_where_tokens_are_used(
    external: Enrolment, journal: Journal, federation: Federation, clock: FakeClock
) -> None:
    external.register(NORTH, by="anna")
    registry = Registry(journal, federation.name, clock)
    with pytest.raises(AccessDenied, match="newer key"):
        registry.check(federation.leaf(Role.SILO, "north").holder())


def test_where_tokens_are_used_nobody_is_registered_without_one(enrolment: Enrolment) -> None:
    with pytest.raises(UsageError, match="tokens"):
        enrolment.register(NORTH, by="anna")
    assert enrolment.registry.silos() == []
