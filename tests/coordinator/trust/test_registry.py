"""May this certificate act now? Asked at every moment of a silo's life."""

from dataclasses import replace

import pytest

from coordinator.rounds.journal import Journal, SiloRow, TokenRow
from coordinator.trust.registry import ACTIVE, LEFT, QUARANTINED, REVOKED, SUSPENDED, Registry
from fedreid.errors import AccessDenied, SiloSuspended
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


def test_a_quarantined_silo_may_talk_and_does_not_take_part(
    registry: Registry, north: Holder
) -> None:
    registry.set_state("north", QUARANTINED, "its updates are outliers")
    registry.check(north)
    assert registry.may_talk("north") and not registry.active("north")


def test_a_suspended_silo_is_told_why_by_an_error_that_passes(
    registry: Registry, north: Holder
) -> None:
    registry.set_state("north", SUSPENDED, "the site is being moved")
    with pytest.raises(SiloSuspended, match="is suspended") as denied:
        registry.check(north)
    assert denied.value.why == "the site is being moved"
    assert not registry.may_talk("north") and not registry.active("north")
    registry.set_state("north", ACTIVE)
    registry.check(north)


def test_which_authorities_a_silo_trusts_is_stored_once(
    journal: Journal, registry: Registry, north: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.acknowledge("north", "a" * 64)
    assert journal.silos()[0].authorities_digest == "a" * 64
    monkeypatch.setattr(journal, "save_silo", None)  # would fail if it were called
    registry.acknowledge("north", "a" * 64)


def test_a_revoked_silo_is_revoked_for_a_restarted_coordinator(
    journal: Journal, registry: Registry, north: Holder, federation: Federation, clock: FakeClock
) -> None:
    registry.set_state("north", REVOKED)
    assert "revoked" in denied(Registry(journal, federation.name, clock), north)


def test_the_journal_knows_of_a_revocation_before_the_registry(
    journal: Journal, registry: Registry, north: Holder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(row: SiloRow, *, drop_tokens: bool) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(journal, "save_silo", fails)
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


@pytest.mark.parametrize("role", [Role.SILO, Role.ADMIN, Role.BOOTSTRAP])
def test_a_certificate_ends_with_the_trust_in_its_authority_on_open_connections_too(
    journal: Journal, federation: Federation, clock: FakeClock, role: Role
) -> None:
    trusted = {federation.authority.key_id}
    registry = Registry(
        journal, federation.name, clock, issued_here=lambda holder: holder.issuer_key_id in trusted
    )
    holder = registered(journal, registry, federation.leaf(role, "north"))
    registry.check(holder)
    trusted.clear()
    assert "trusted no longer" in denied(registry, holder)


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


# After a restore


def restored(
    journal: Journal, federation: Federation, clock: FakeClock, *, backed_up_s: float
) -> Registry:
    """The registry of a journal that was restored a minute later from a backup of then."""
    journal.mark_restored(backed_up_s=backed_up_s, restored_s=backed_up_s + 60.0)
    clock.now = backed_up_s + 60.0
    return Registry(journal, federation.name, clock)


def later(federation: Federation, seconds: float, *, life_s: float = 2 * HOUR_S) -> Holder:
    """The holder of a certificate that north got later."""
    issuing = replace(federation, now_s=federation.now_s + seconds)
    return issuing.leaf(Role.SILO, "north", life_s=life_s).holder()


def test_a_key_that_was_renewed_after_the_backup_is_taken_up(
    journal: Journal, registry: Registry, federation: Federation, clock: FakeClock
) -> None:
    registered(journal, registry, federation.leaf(Role.SILO, "north"))
    renewed = later(federation, 30.0)
    assert "newer key" in denied(registry, renewed)
    again = restored(journal, federation, clock, backed_up_s=federation.now_s)
    again.check(renewed)
    assert again.first_use(renewed)
    again.note_first_use(renewed)
    row = again.known("north")
    assert (row.key_fingerprint, row.not_after_s) == (renewed.key_fingerprint, renewed.not_after_s)
    assert not again.first_use(renewed)
    again.check(renewed)


@pytest.mark.parametrize(
    ("issued_s", "life_s"),
    [
        (-30.0, 2 * HOUR_S),  # before the backup: replaced when it was made
        (90.0, 2 * HOUR_S),  # after the restore: the journal would know it
        (30.0, HOUR_S / 2),  # not newer than the one that is known
    ],
)
def test_no_other_unknown_key_is_taken_up_after_a_restore(
    journal: Journal,
    registry: Registry,
    federation: Federation,
    clock: FakeClock,
    issued_s: float,
    life_s: float,
) -> None:
    registered(journal, registry, federation.leaf(Role.SILO, "north"))
    again = restored(journal, federation, clock, backed_up_s=federation.now_s)
    holder = later(federation, issued_s, life_s=life_s)
    assert "newer key" in denied(again, holder)
    assert not again.first_use(holder)


def test_a_silo_that_was_kept_out_at_the_backup_stays_out_with_a_newer_key(
    journal: Journal, registry: Registry, federation: Federation, clock: FakeClock
) -> None:
    registered(journal, registry, federation.leaf(Role.SILO, "north"))
    registry.set_state("north", REVOKED)
    again = restored(journal, federation, clock, backed_up_s=federation.now_s)
    assert "is revoked" in denied(again, later(federation, 30.0))
