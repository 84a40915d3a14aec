"""Does a token become this silo's identity once, through real TLS, whatever breaks in between?"""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from fedreid.audit import read_audit
from fedreid.errors import (
    ConfigRefused,
    ConnectionFailed,
    IdentityBroken,
    TokenRefused,
    TrustError,
)
from fedreid.names import Role
from fedreid.pki.certificates import key_fingerprint, key_from_pem, short_fingerprint
from fedreid.pki.identity import Identity, IdentityStore
from fedreid.pki.tokens import JoinToken
from silo_agent.config import Folders, Membership, load_membership
from silo_agent.trust.join import enrol
from tests.parties import HOUR_S, FakeClock, Federation
from tests.silo_agent.trust.fake import MODEL_KEY, FakeCoordinator

SECRET = "s3cret"
Change = Callable[["FakeCoordinator"], None]


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """An agent's data folder that is not there yet."""
    return Folders(tmp_path / "agent")


@pytest.fixture
def coordinator(federation: Federation) -> FakeCoordinator:
    """A coordinator that issues certificates."""
    return FakeCoordinator(federation)


@pytest.fixture
def token(federation: Federation) -> JoinToken:
    """A fresh token."""
    bootstrap = federation.leaf(Role.BOOTSTRAP, "north")
    return JoinToken(
        silo="north",
        coordinator="127.0.0.1:1",
        secret=SECRET,
        expires_at_s=federation.now_s + HOUR_S,
        bootstrap_key_pem=bootstrap.key_pem,
        bootstrap_certificate_pem=bootstrap.certificate_pem,
        authorities_pem=federation.authority.certificate_pem,
    )


@pytest.fixture
def clock(federation: Federation) -> FakeClock:
    """A clock that stands at the federation's founding."""
    return FakeClock(now=federation.now_s)


def joined(
    folders: Folders,
    token: JoinToken,
    clock: FakeClock,
    coordinator: FakeCoordinator,
    *,
    server: Identity | None = None,
    said: list[str] | None = None,
) -> Membership:
    said = [] if said is None else said

    async def run() -> Membership:
        async with coordinator.serving(server), asyncio.timeout(20):
            return await enrol(folders, token, coordinator.address, clock, said.append)

    return asyncio.run(run())


def test_a_token_becomes_an_identity_and_a_membership(
    folders: Folders, token: JoinToken, clock: FakeClock, coordinator: FakeCoordinator
) -> None:
    membership = joined(folders, token, clock, coordinator)
    assert membership == Membership(federation="harbour", silo="north", model_key=MODEL_KEY)
    assert load_membership(folders) == membership
    identity = IdentityStore(folders.identity).load()
    assert identity.holder().principal.uri == "spiffe://harbour/silo/north"
    assert coordinator.secrets == [SECRET]


def test_the_key_is_made_here_and_stays_here(
    folders: Folders, token: JoinToken, clock: FakeClock, coordinator: FakeCoordinator
) -> None:
    joined(folders, token, clock, coordinator)
    key = key_from_pem(IdentityStore(folders.identity).load().key_pem)
    assert coordinator.fingerprints == [key_fingerprint(key.public_key())]
    assert not folders.pending_key.exists()


def test_everything_that_is_secret_is_private(
    folders: Folders, token: JoinToken, clock: FakeClock, coordinator: FakeCoordinator
) -> None:
    coordinator.loses_the_answer = True
    with pytest.raises(ConnectionFailed):
        joined(folders, token, clock, coordinator)
    assert folders.pending_key.stat().st_mode & 0o777 == 0o600
    assert folders.root.stat().st_mode & 0o777 == 0o700


def test_the_key_is_on_the_disk_before_the_request_is_sent(
    folders: Folders, token: JoinToken, clock: FakeClock, coordinator: FakeCoordinator
) -> None:
    coordinator.loses_the_answer = True
    with pytest.raises(ConnectionFailed):
        joined(folders, token, clock, coordinator)
    pending = key_from_pem(folders.pending_key.read_bytes())
    assert coordinator.fingerprints == [key_fingerprint(pending.public_key())]


def test_an_attempt_whose_answer_was_lost_is_repeated_with_the_same_key(
    folders: Folders, token: JoinToken, clock: FakeClock, coordinator: FakeCoordinator
) -> None:
    coordinator.loses_the_answer = True
    for _ in range(2):
        with pytest.raises(ConnectionFailed):
            joined(folders, token, clock, coordinator)
        assert not IdentityStore(folders.identity).exists()
    coordinator.loses_the_answer = False
    joined(folders, token, clock, coordinator)
    assert len(coordinator.fingerprints) == 3
    assert len(set(coordinator.fingerprints)) == 1


def test_a_crash_after_the_answer_is_made_good_with_the_same_key(
    folders: Folders,
    token: JoinToken,
    clock: FakeClock,
    coordinator: FakeCoordinator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def power_cut(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(IdentityStore, "save", power_cut)
        with pytest.raises(ZeroDivisionError):
            joined(folders, token, clock, coordinator)
    joined(folders, token, clock, coordinator)
    assert len(set(coordinator.fingerprints)) == 1
    assert IdentityStore(folders.identity).exists()


def test_an_expired_token_is_not_even_sent(
    folders: Folders, token: JoinToken, clock: FakeClock, coordinator: FakeCoordinator
) -> None:
    clock.move(HOUR_S)
    with pytest.raises(TokenRefused, match="expired"):
        joined(folders, token, clock, coordinator)
    assert coordinator.secrets == []
    assert not folders.root.exists()


def test_a_refusal_of_the_coordinator_is_told_as_it_is(
    folders: Folders, token: JoinToken, clock: FakeClock, coordinator: FakeCoordinator
) -> None:
    coordinator.error = TokenRefused("The join token was already used by another key")
    with pytest.raises(TokenRefused, match="already used"):
        joined(folders, token, clock, coordinator)
    assert not IdentityStore(folders.identity).exists()


def test_the_secret_is_not_sent_to_a_coordinator_of_another_authority(
    folders: Folders,
    token: JoinToken,
    clock: FakeClock,
    coordinator: FakeCoordinator,
    federation: Federation,
) -> None:
    impostor = Federation.founded(now_s=federation.now_s, name=federation.name)
    with pytest.raises(ConnectionFailed, match="not issued by this federation"):
        joined(folders, token, clock, coordinator, server=impostor.server())
    assert coordinator.secrets == []


def test_the_secret_is_not_sent_to_a_silo_that_plays_the_coordinator(
    folders: Folders,
    token: JoinToken,
    clock: FakeClock,
    coordinator: FakeCoordinator,
    federation: Federation,
) -> None:
    # a client certificate of the right authority, even one that names the host
    silo = federation.leaf(Role.SILO, "south", hostnames=("127.0.0.1",))
    with pytest.raises(ConnectionFailed):
        joined(folders, token, clock, coordinator, server=silo)
    assert coordinator.secrets == []


def test_the_secret_is_not_sent_to_a_host_that_the_certificate_does_not_name(
    folders: Folders,
    token: JoinToken,
    clock: FakeClock,
    coordinator: FakeCoordinator,
    federation: Federation,
) -> None:
    elsewhere = federation.leaf(Role.COORDINATOR, "coordinator", hostnames=("elsewhere.example",))
    with pytest.raises(ConnectionFailed):
        joined(folders, token, clock, coordinator, server=elsewhere)
    assert coordinator.secrets == []


def test_a_certificate_of_another_authority_is_not_kept(
    folders: Folders,
    token: JoinToken,
    clock: FakeClock,
    coordinator: FakeCoordinator,
    federation: Federation,
) -> None:
    coordinator.issues_as = Federation.founded(now_s=federation.now_s, name=federation.name)
    with pytest.raises(IdentityBroken):
        joined(folders, token, clock, coordinator)
    assert not IdentityStore(folders.identity).exists()
    assert folders.pending_key.exists()


def test_a_certificate_of_another_silo_than_the_tokens_is_not_kept(
    folders: Folders, token: JoinToken, clock: FakeClock, coordinator: FakeCoordinator
) -> None:
    coordinator.name = "somebody-else"
    with pytest.raises(TrustError):
        joined(folders, token, clock, coordinator)
    assert not IdentityStore(folders.identity).exists()


def test_a_person_is_awaited_and_told_the_fingerprint_once(
    folders: Folders, token: JoinToken, clock: FakeClock, coordinator: FakeCoordinator
) -> None:
    coordinator.awaits_approval = 2
    said: list[str] = []
    joined(folders, token, clock, coordinator, said=said)
    key = key_from_pem(IdentityStore(folders.identity).load().key_pem).public_key()
    fingerprint = short_fingerprint(key_fingerprint(key))
    assert len(coordinator.secrets) == 3
    assert len([line for line in said if fingerprint in line]) == len(said) == 2


def test_a_key_that_awaited_approval_beyond_its_tokens_end_is_asked_for_again(
    folders: Folders, token: JoinToken, clock: FakeClock, coordinator: FakeCoordinator
) -> None:
    coordinator.loses_the_answer = True
    token = replace(token, expires_at_s=token.expires_at_s - 1800)
    with pytest.raises(ConnectionFailed):
        joined(folders, token, clock, coordinator)
    clock.move(HOUR_S - 10)
    with pytest.raises(ConnectionFailed):
        joined(folders, token, clock, coordinator)
    assert len(set(coordinator.fingerprints)) == 1
    clock.move(10)
    with pytest.raises(TokenRefused, match="expired"):
        joined(folders, token, clock, coordinator)
    assert len(coordinator.secrets) == 2


def test_joining_again_gives_the_silo_a_new_key(
    folders: Folders, token: JoinToken, clock: FakeClock, coordinator: FakeCoordinator
) -> None:
    for _ in range(2):
        joined(folders, token, clock, coordinator)
    assert len(set(coordinator.fingerprints)) == 2
    assert [line.event for line in read_audit(folders.audit)] == ["joined", "joined"]


def test_a_pending_key_whose_removal_was_cut_off_is_not_used_twice(
    folders: Folders, token: JoinToken, clock: FakeClock, coordinator: FakeCoordinator
) -> None:
    joined(folders, token, clock, coordinator)
    folders.pending_key.write_bytes(IdentityStore(folders.identity).load().key_pem)
    joined(folders, token, clock, coordinator)
    assert len(set(coordinator.fingerprints)) == 2


def test_a_data_folder_stays_its_own_silos_and_no_secret_is_sent(
    folders: Folders, token: JoinToken, clock: FakeClock, coordinator: FakeCoordinator
) -> None:
    joined(folders, token, clock, coordinator)
    before = IdentityStore(folders.identity).load()
    with pytest.raises(ConfigRefused, match="is of the silo north of harbour"):
        joined(folders, replace(token, silo="south"), clock, coordinator)
    assert len(coordinator.secrets) == 1
    assert IdentityStore(folders.identity).load() == before


def test_nobody_at_the_address_is_a_connection_that_failed(
    folders: Folders, token: JoinToken, clock: FakeClock, coordinator: FakeCoordinator
) -> None:
    async def run() -> None:
        async with coordinator.serving():
            pass
        await enrol(folders, token, coordinator.address, clock, print)

    with pytest.raises(ConnectionFailed):
        asyncio.run(run())
    assert folders.pending_key.exists()
