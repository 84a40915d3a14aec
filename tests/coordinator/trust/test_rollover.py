"""Whom would a step of a roll-over lock out, and who is told to renew?"""

from pathlib import Path

import pytest

from coordinator.config import Config, initialise
from coordinator.folders import Folders
from coordinator.rounds.journal import Journal, SiloRow
from coordinator.trust.authorities import ACTIVATED, PREPARED, SETTLED, Authorities
from coordinator.trust.enrolment import Enrolment
from coordinator.trust.keeping import Keeper
from coordinator.trust.registry import QUARANTINED, REVOKED, SUSPENDED, Registry
from coordinator.trust.rollover import RollOver, awaited
from fedreid.audit import AuditLog, read_audit
from fedreid.errors import UsageError
from fedreid.limits import SERVER_LIFE_S
from fedreid.names import Role, SiloName
from fedreid.pki.certificates import holder_of, make_request, new_key
from fedreid.pki.identity import IdentityStore
from tests.parties import FEDERATION, HOUR_S, FakeClock, Federation

NORTH = SiloName("north")


@pytest.mark.parametrize(
    ("step", "locked_out"),
    [(SETTLED, []), (PREPARED, ["late", "never"]), (ACTIVATED, ["late", "never"])],
)
def test_the_next_step_locks_out_who_has_not_followed_the_last(
    federation: Federation, step: str, locked_out: list[str]
) -> None:
    old = Federation.founded(now_s=federation.now_s)

    def row(name: str, digest: str, issuer: Federation) -> SiloRow:
        certificate_pem = issuer.leaf(Role.SILO, name).certificate_pem
        return SiloRow(
            name=name, state="active", authorities_digest=digest, certificate_pem=certificate_pem
        )

    silos = [
        row("followed", "new", federation),
        row("late", "old", old),
        SiloRow(name="never", state="active"),
    ]
    key_id = federation.authority.key_id
    assert awaited(step, silos, digest="new", issuer_key_id=key_id) == locked_out


class House:
    """A coordinator's trust, and what a silo does about it."""

    def __init__(self, folder: Path, journal: Journal, clock: FakeClock) -> None:
        folders = Folders(folder)
        config = Config(federation="harbour", hostnames=("localhost",))
        initialise(folders, config, clock)
        self.admin, self.server = IdentityStore(folders.admin), IdentityStore(folders.server)
        self.authorities = Authorities(folders.authority)
        self.audit_folder = folders.audit
        self._audit = AuditLog(folders.audit, clock)
        self.keeper = Keeper(folders, config, self.authorities, self._audit, clock)
        self._clock = clock
        self.registry = Registry(journal, FEDERATION, clock)
        self.rollover = self.rolling()
        self._enrolment = Enrolment(
            journal=journal,
            registry=self.registry,
            authorities=self.authorities,
            audit=self._audit,
            clock=clock,
        )

    def rolling(self, *, external: bool = False) -> RollOver:
        return RollOver(
            authorities=self.authorities,
            registry=self.registry,
            keeper=self.keeper,
            audit=self._audit,
            clock=self._clock,
            external=external,
        )

    def join(self) -> None:
        """The silo joins, and says whom it trusts."""
        token = self._enrolment.create_token(NORTH, ttl_s=HOUR_S, coordinator="a:1")
        self._enrolment.enrol(NORTH, token.secret, make_request(new_key()))
        self.rollover.acknowledge(NORTH, self.authorities.digest)

    def renew(self) -> None:
        """The silo renews, uses its new certificate, and says whom it trusts."""
        holder = holder_of(self.registry.known("north").certificate_pem)
        issued = self._enrolment.renew(holder, make_request(new_key()))
        self.registry.note_first_use(holder_of(issued))
        self.rollover.acknowledge(NORTH, self.authorities.digest)

    def reason(self) -> str:
        """Why the silo has to renew."""
        row = self.registry.known("north")
        return self.rollover.renewal_reason(holder_of(row.certificate_pem), row.authorities_digest)


@pytest.fixture
def house(tmp_path: Path, journal: Journal, clock: FakeClock) -> House:
    """A coordinator with one silo."""
    house = House(tmp_path / "coordinator", journal, clock)
    house.join()
    return house


def test_a_silo_is_told_to_renew_after_each_step_and_awaited_until_it_has(house: House) -> None:
    assert (house.rollover.awaited(), house.reason()) == ([], "")
    house.rollover.prepare()
    assert house.rollover.awaited() == ["north"]
    assert "have changed" in house.reason()
    house.renew()
    assert (house.rollover.awaited(), house.reason()) == ([], "")
    house.rollover.activate(force=False)
    assert house.rollover.awaited() == ["north"]
    assert "new certificate authority" in house.reason()
    house.renew()
    assert (house.rollover.awaited(), house.reason()) == ([], "")
    house.rollover.drop(force=False)
    assert house.rollover.awaited() == []
    assert "have changed" in house.reason()
    house.renew()
    assert house.reason() == ""


def test_a_step_that_would_lock_a_silo_out_is_refused_by_name_and_can_be_forced(
    house: House,
) -> None:
    house.rollover.prepare()
    for step in (house.rollover.activate, house.rollover.drop):
        with pytest.raises(UsageError, match="north would be locked out"):
            step(force=False)
        step(force=True)
    forced = [line for line in read_audit(house.audit_folder) if line.event.startswith("ca.")]
    assert [(line.event, line.fields["left_behind"]) for line in forced] == [
        ("ca.prepared", []), ("ca.activated", ["north"]), ("ca.dropped", ["north"]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("state", "waited_for"), [(QUARANTINED, True), (SUSPENDED, False), (REVOKED, False)]
)
def test_only_silos_that_can_follow_are_waited_for(
    house: House, state: str, waited_for: bool
) -> None:
    house.registry.set_state("north", state)
    house.rollover.prepare()
    assert bool(house.rollover.awaited()) is waited_for


def test_the_coordinators_own_identities_follow_every_step(house: House) -> None:
    for step in (
        house.rollover.prepare,
        lambda: house.rollover.activate(force=True),
        lambda: house.rollover.drop(force=True),
    ):
        step()
        for store in (house.server, house.admin):
            identity = store.load()
            assert identity.authorities_pem == house.authorities.bundle_pem
            assert identity.holder().issuer_key_id == house.authorities.issuing.key_id
        changed = house.keeper.changed()
        assert changed == house.server.load() == house.keeper.identity
        assert house.keeper.changed() is None


def test_an_outside_pki_is_not_rolled_over_here_and_nobody_is_told_to_renew(house: House) -> None:
    external = house.rolling(external=True)
    holder = holder_of(house.registry.known("north").certificate_pem)
    assert external.renewal_reason(holder, "0" * 64) == ""
    for step in (
        external.prepare,
        lambda: external.activate(force=True),
        lambda: external.drop(force=True),
    ):
        with pytest.raises(UsageError, match="own PKI"):
            step()


def test_the_servers_certificate_is_renewed_before_it_ends(house: House, clock: FakeClock) -> None:
    first = house.server.load()
    clock.move(0.6 * SERVER_LIFE_S)
    house.keeper.look()
    assert (house.keeper.changed(), house.server.load()) == (None, first)
    clock.move(0.1 * SERVER_LIFE_S)
    house.keeper.look()
    renewed = house.server.load()
    assert house.keeper.changed() == renewed
    assert renewed.key_pem != first.key_pem
    assert renewed.holder().not_after_s > first.holder().not_after_s
