"""Does the port show what it should, whoever issues it and whenever that changes?"""

from pathlib import Path

import pytest

from coordinator.config import Config, Pki, initialise
from coordinator.folders import Folders
from coordinator.trust.authorities import Authorities
from coordinator.trust.keeping import Keeper
from fedreid.audit import AuditLog, read_audit
from fedreid.errors import FedreidError, IdentityBroken
from fedreid.limits import SERVER_LIFE_S
from fedreid.pki.certificates import serves
from fedreid.pki.identity import Identity, IdentityStore
from tests.parties import FakeClock, Federation

PKI = Pki(
    server_certificate="pki/tls.crt", server_key="pki/tls.key", client_authorities="pki/ca.crt"
)


@pytest.fixture
def folders(tmp_path: Path, clock: FakeClock) -> Folders:
    """A coordinator's data folder."""
    folders = Folders(tmp_path / "coordinator")
    initialise(folders, Config(federation="harbour", hostnames=("localhost",)), clock)
    return folders


def keeper(
    folders: Folders,
    clock: FakeClock,
    pki: Pki | None = None,
    hostnames: tuple[str, ...] = ("localhost",),
) -> Keeper:
    return Keeper(
        folders,
        Config(federation="harbour", hostnames=hostnames, pki=pki or Pki()),
        Authorities(folders.authority),
        AuditLog(folders.audit, clock),
        clock,
    )


def write(folders: Folders, identity: Identity) -> None:
    place = folders.root / "pki"
    place.mkdir(exist_ok=True)
    for name, data in (
        ("tls.crt", identity.certificate_pem),
        ("tls.key", identity.key_pem),
        ("ca.crt", identity.authorities_pem),
    ):
        fresh = place / f".{name}"
        fresh.write_bytes(data)
        fresh.rename(place / name)


def test_a_coordinator_that_was_away_too_long_starts_with_fresh_identities(
    folders: Folders, clock: FakeClock
) -> None:
    clock.move(SERVER_LIFE_S + 1)
    found = keeper(folders, clock)
    for identity in (found.identity, IdentityStore(folders.admin).load()):
        assert identity.holder().not_after_s > clock.now_s()
    issued = [line.fields["name"] for line in read_audit(folders.audit)]
    assert issued == ["coordinator", "admin"]


def test_a_coordinator_that_got_another_name_shows_a_certificate_for_it(
    folders: Folders, clock: FakeClock
) -> None:
    before = IdentityStore(folders.server).load()
    names = ("reid.example.org", "10.0.0.7", "localhost")
    found = keeper(folders, clock, hostnames=names).identity
    assert not serves(before.certificate_pem, names) and serves(found.certificate_pem, names)
    # Fewer names are no reason: agents may still dial one that was taken from the list.
    assert keeper(folders, clock, hostnames=("10.0.0.7",)).identity == found


def test_what_is_good_is_left_as_it_is(folders: Folders, clock: FakeClock) -> None:
    before = IdentityStore(folders.server).load()
    found = keeper(folders, clock)
    found.look()
    assert (found.identity, found.changed()) == (before, None)


def test_the_same_identity_is_handed_over_once_when_sessions_have_to_end(
    folders: Folders, clock: FakeClock
) -> None:
    found = keeper(folders, clock)
    found.forget_sessions()
    assert (found.changed(), found.changed()) == (found.identity, None)


def test_files_of_an_outside_pki_are_shown_and_trusted_and_taken_up_when_replaced(
    folders: Folders, clock: FakeClock, federation: Federation
) -> None:
    own = Authorities(folders.authority).bundle_pem
    servers = [federation.server() for _ in range(2)]
    write(folders, servers[0])
    found = keeper(folders, clock, PKI)
    found.changed()
    for server in servers:
        write(folders, server)
        found.look()
        changed = found.changed()
        assert changed == found.identity
        assert changed is not None
        assert changed.certificate_pem == server.certificate_pem
        assert changed.authorities_pem == server.authorities_pem + own
        found.look()
        assert found.changed() is None
    # the administrator in the data folder has to verify that server
    admin = IdentityStore(folders.admin).load()
    assert servers[0].authorities_pem in admin.authorities_pem


def test_files_that_do_not_fit_yet_change_nothing(
    folders: Folders, clock: FakeClock, federation: Federation
) -> None:
    server, newer = federation.server(), federation.server()
    write(folders, server)
    found = keeper(folders, clock, PKI)
    found.changed()
    (folders.root / "pki" / "tls.key").write_bytes(newer.key_pem)
    with pytest.raises(IdentityBroken):
        found.look()
    assert found.changed() is None
    assert found.identity.key_pem == server.key_pem
    write(folders, newer)
    found.look()
    assert found.identity.key_pem == newer.key_pem


def test_a_coordinator_does_not_start_on_files_that_are_not_there(
    folders: Folders, clock: FakeClock
) -> None:
    with pytest.raises(FedreidError):
        keeper(folders, clock, PKI)


def test_the_three_files_go_together() -> None:
    with pytest.raises(ValueError, match="go together"):
        Pki(server_certificate="tls.crt")
