"""Does a join token make one silo of one key, and nothing else of anybody?"""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from coordinator.rounds.journal import Journal, SiloRow, TokenRow
from coordinator.trust.enrolment import Enrolment
from coordinator.trust.registry import ACTIVE, LEFT, REVOKED, Registry
from fedreid.errors import FedreidError, TokenRefused, TrustError, UsageError
from fedreid.limits import LEAF_LIFE_S, TOKEN_TTL_MAX_S
from fedreid.names import Role, SiloName
from fedreid.pki.certificates import (
    holder_of,
    key_fingerprint,
    key_to_pem,
    make_request,
    new_key,
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
    racing_journal = TwoAtOnce(journal._path)
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
