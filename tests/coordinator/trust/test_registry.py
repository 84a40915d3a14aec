"""May this certificate act now? Asked at every moment of a silo's life."""

import pytest

from coordinator.rounds.journal import Journal, SiloRow, TokenRow
from coordinator.trust.registry import ACTIVE, LEFT, REVOKED, Registry
from fedreid.errors import AccessDenied
from fedreid.names import FederationName, Role
from fedreid.pki.certificates import Holder
from fedreid.pki.identity import Identity
from tests.parties import HOUR_S, FakeClock, Federation, forge


def registered(journal: Journal, registry: Registry, identity: Identity) -> Holder:
    """Register the silo of an identity as enrolment does."""
    holder = identity.holder()
    row = SiloRow(
        name=holder.principal.name,
        state=ACTIVE,
        key_fingerprint=holder.key_fingerprint,
        certificate_pem=identity.certificate_pem,
        not_after_s=holder.not_after_s,
    )
    token = TokenRow(secret_hash=row.name + row.key_fingerprint, silo=row.name, expires_at_s=0)
    journal.add_token(token)
    journal.consume_token(token, row)
    registry.remember(row)
    return holder


@pytest.fixture
def north(journal: Journal, registry: Registry, federation: Federation) -> Holder:
    """A registered silo's holder."""
    return registered(journal, registry, federation.leaf(Role.SILO, "north"))


def denied(registry: Registry, holder: Holder) -> str:
    with pytest.raises(AccessDenied) as error:
        registry.check(holder)
    return str(error.value)


def test_a_registered_silo_may_act(registry: Registry, north: Holder) -> None:
    registry.check(north)
    assert registry.active("north")


def test_a_silo_that_was_never_registered_may_not(
    registry: Registry, federation: Federation
) -> None:
    assert "not registered" in denied(registry, federation.leaf(Role.SILO, "south").holder())
    assert not registry.active("south")


@pytest.mark.parametrize(("state", "told"), [(REVOKED, "is revoked"), (LEFT, "has left")])
def test_a_silo_that_was_revoked_or_left_may_not_from_that_moment_on(
    registry: Registry, north: Holder, state: str, told: str
) -> None:
    registry.set_state("north", state)
    assert told in denied(registry, north)
    assert not registry.active("north")


def test_a_revoked_silo_is_revoked_for_a_restarted_coordinator(
    journal: Journal, registry: Registry, north: Holder, federation: Federation, clock: FakeClock
) -> None:
    registry.set_state("north", REVOKED)
    assert "revoked" in denied(Registry(journal, federation.name, clock), north)


def test_the_journal_knows_of_a_revocation_before_the_registry(
    journal: Journal, registry: Registry, north: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(name: str, state: str, reason: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(journal, "set_silo_state", fails)
    with pytest.raises(ZeroDivisionError):
        registry.set_state("north", REVOKED)
    registry.check(north)


def test_a_certificate_acts_from_its_first_second_to_before_its_last(
    registry: Registry, north: Holder, clock: FakeClock
) -> None:
    for now, good in (
        (north.not_before_s - 0.001, False),
        (north.not_before_s, True),
        (north.not_after_s - 0.001, True),
        (north.not_after_s, False),
    ):
        clock.now = now
        if good:
            registry.check(north)
        else:
            assert "expired, or is not valid yet" in denied(registry, north)


def test_an_older_key_of_the_silo_may_not_act_any_more(
    journal: Journal, registry: Registry, north: Holder, federation: Federation
) -> None:
    newer = registered(journal, registry, federation.leaf(Role.SILO, "north"))
    registry.check(newer)
    assert "newer key" in denied(registry, north)


@pytest.mark.parametrize("role", Role)
def test_a_certificate_of_another_federation_may_not_act(
    registry: Registry, federation: Federation, role: Role
) -> None:
    other = federation.leaf(role, "north", federation=FederationName("harbor"))
    assert "another federation" in denied(registry, other.holder())


@pytest.mark.parametrize("role", [Role.ADMIN, Role.BOOTSTRAP])
def test_admins_and_silos_to_be_act_while_their_certificates_last(
    registry: Registry, federation: Federation, clock: FakeClock, role: Role
) -> None:
    holder = federation.leaf(role, "somebody", life_s=HOUR_S).holder()
    registry.check(holder)
    clock.move(HOUR_S + 1)
    denied(registry, holder)


def test_the_role_is_the_certificates_and_no_silo_of_that_name_helps(
    registry: Registry, north: Holder, federation: Federation
) -> None:
    # the bootstrap certificate of an active silo has another key and another role
    bootstrap = federation.leaf(Role.BOOTSTRAP, "north").holder()
    registry.check(bootstrap)
    impostor = forge(federation, uris=[f"spiffe://{federation.name}/silo/north"]).holder()
    assert "newer key" in denied(registry, impostor)


def test_silos_are_listed_by_name(
    journal: Journal, registry: Registry, federation: Federation
) -> None:
    for name in ("c", "a", "b"):
        registered(journal, registry, federation.leaf(Role.SILO, name))
    assert [row.name for row in registry.silos()] == ["a", "b", "c"]
