"""Does a running agent go on with a newer identity, whatever breaks in between, dropping nothing?

The coordinator is a fake that loses answers; real TLS on the loopback.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fedreid.audit import AuditLog, read_audit
from fedreid.errors import (
    AccessDenied,
    ConnectionFailed,
    FedreidError,
    IdentityBroken,
    StorageError,
)
from fedreid.names import Role
from fedreid.pki.certificates import key_fingerprint, key_from_pem
from fedreid.pki.identity import Identity, IdentityStore
from fedreid.v1 import federation_pb2 as pb
from silo_agent.config import AgentConfig, Folders, Membership
from silo_agent.trust import join, renewal
from silo_agent.trust.channel import Line, calling
from silo_agent.trust.renewal import Renewal
from tests.parties import HOUR_S, FakeClock, Federation
from tests.silo_agent.trust.fake import MODEL_KEY, FakeCoordinator


class Agent:
    """An agent that has joined."""

    def __init__(self, root: Path, federation: Federation, identity: str = "") -> None:
        self.folders = Folders(root)
        root.mkdir()
        self.store = IdentityStore(self.folders.identity)
        self.first = federation.leaf(Role.SILO, "north")
        self.store.save(self.first)
        self.coordinator = FakeCoordinator(federation)
        self.clock = FakeClock(now=federation.now_s)
        self.said: list[str] = []
        self.done = asyncio.Event()
        """Set when it has said that its identity is renewed."""
        self.identity = identity

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[Line, Renewal]]:
        """The line on the identity that is live, and what renews it."""
        async with (
            self.coordinator.serving(),
            asyncio.timeout(20),
            Line(self.coordinator.address, self.store.load()) as line,
        ):
            yield line, self.renewing(line)

    def renewing(self, line: Line) -> Renewal:
        return Renewal(
            line,
            folders=self.folders,
            config=AgentConfig(
                coordinator=self.coordinator.address, dataset="", identity=self.identity
            ),
            membership=Membership(federation="harbour", silo="north", model_key=MODEL_KEY),
            audit=AuditLog(self.folders.audit, self.clock),
            clock=self.clock,
            say=self._say,
        )

    def _say(self, line: str) -> None:
        self.said.append(line)
        if line == "the identity is renewed":
            self.done.set()

    def live_key(self) -> str:
        return fingerprint(self.store.load())


def fingerprint(identity: Identity) -> str:
    return key_fingerprint(key_from_pem(identity.key_pem).public_key())


Story = Callable[[Line, Renewal], Awaitable[None]]


@pytest.fixture
def agent(tmp_path: Path, federation: Federation) -> Agent:
    """An agent whose certificate lasts an hour."""
    return Agent(tmp_path / "agent", federation)


def told(agent: Agent, story: Story) -> None:
    async def run() -> None:
        async with agent.connected() as (line, renewing):
            await story(line, renewing)

    asyncio.run(run())


def test_a_renewed_identity_is_new_proven_and_live(agent: Agent) -> None:
    async def story(line: Line, renewing: Renewal) -> None:
        await renewing.renew(agent.first)
        assert agent.live_key() != fingerprint(agent.first)
        assert line.identity == agent.store.load()
        assert await agent.coordinator.greeted.get() == agent.live_key()
        await line.greet()
        assert await agent.coordinator.greeted.get() == agent.live_key()

    told(agent, story)
    assert not agent.folders.pending_key.exists()
    (line,) = read_audit(agent.folders.audit)
    assert (line.event, line.fields["key_fingerprint"]) == ("identity.renewed", agent.live_key())


def test_a_call_that_is_under_way_ends_on_the_channel_that_it_began_on(agent: Agent) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def next_task(request: object, context: object) -> pb.NextTaskResponse:
        begun.set()
        await go.wait()
        return pb.NextTaskResponse(wait=pb.WaitTask(reason="at last"))

    agent.coordinator.NextTask = next_task  # type: ignore[attr-defined]

    async def story(line: Line, renewing: Renewal) -> None:
        with calling("a:1"):
            waiting = asyncio.ensure_future(line.stub.NextTask(pb.NextTaskRequest()))
            await begun.wait()
            await renewing.renew(agent.first)
            assert not waiting.done()
            go.set()
            assert (await waiting).wait.reason == "at last"

    told(agent, story)


def test_a_lost_answer_is_asked_for_again_with_the_same_key(agent: Agent) -> None:
    agent.coordinator.loses_the_answer = True

    async def story(line: Line, renewing: Renewal) -> None:
        for _ in range(2):
            with pytest.raises(ConnectionFailed):
                await renewing.renew(agent.first)
            assert line.identity == agent.store.load() == agent.first
            await line.greet()
        agent.coordinator.loses_the_answer = False
        await renewing.renew(agent.first)

    told(agent, story)
    assert agent.coordinator.fingerprints == [agent.live_key()] * 3


@pytest.mark.parametrize("cut", ["before the version is saved", "before the pending key goes"])
def test_a_crash_between_key_and_flip_is_made_good_by_the_next_start(
    agent: Agent, cut: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def power_cut(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    async def crash(line: Line, renewing: Renewal) -> None:
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            if cut == "before the version is saved":
                patch.setattr(IdentityStore, "save", power_cut)
            else:
                patch.setattr(Path, "unlink", power_cut)
            await renewing.renew(agent.first)

    async def again(line: Line, renewing: Renewal) -> None:
        if line.identity == agent.first:
            await renewing.renew(agent.first)

    told(agent, crash)
    assert agent.folders.pending_key.exists()
    told(agent, again)
    assert set(agent.coordinator.fingerprints) == {agent.live_key()}
    told(agent, lambda line, renewing: renewing.renew(line.identity))
    assert len(set(agent.coordinator.fingerprints)) == 2
    assert agent.coordinator.fingerprints[-1] == agent.live_key()


def test_the_new_key_is_on_the_disk_before_it_is_sent_and_private(agent: Agent) -> None:
    agent.coordinator.error = AccessDenied("No")

    async def story(line: Line, renewing: Renewal) -> None:
        with pytest.raises(AccessDenied):
            await renewing.renew(agent.first)

    told(agent, story)
    pending = key_from_pem(agent.folders.pending_key.read_bytes())
    assert agent.coordinator.fingerprints == [key_fingerprint(pending.public_key())]
    assert agent.folders.pending_key.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("wrong", ["name", "authority"])
def test_a_certificate_of_somebody_else_is_not_kept(
    agent: Agent, federation: Federation, wrong: str
) -> None:
    if wrong == "name":
        agent.coordinator.name = "south"
    else:
        agent.coordinator.issues_as = Federation.founded(
            now_s=federation.now_s, name=federation.name
        )

    async def story(line: Line, renewing: Renewal) -> None:
        with pytest.raises(IdentityBroken):
            await renewing.renew(agent.first)
        assert line.identity == agent.store.load() == agent.first

    told(agent, story)


def test_two_who_ask_at_the_same_moment_renew_once(agent: Agent) -> None:
    async def story(line: Line, renewing: Renewal) -> None:
        await asyncio.gather(*(renewing.renew(agent.first) for _ in range(3)))

    told(agent, story)
    assert len(agent.coordinator.fingerprints) == 1


def test_an_identity_that_cannot_prove_itself_is_tried_again_and_not_renewed_again(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(self: Line, identity: Identity) -> None:
        raise ConnectionFailed("The coordinator is away")

    async def story(line: Line, renewing: Renewal) -> None:
        with monkeypatch.context() as patch, pytest.raises(ConnectionFailed):
            patch.setattr(Line, "change", away)
            await renewing.renew(agent.first)
        await line.greet()
        await renewing.renew(agent.first)
        assert line.identity == agent.store.load() != agent.first

    told(agent, story)
    assert len(agent.coordinator.fingerprints) == 1


async def renewed(agent: Agent, renewing: Renewal) -> str:
    """Let the agent look after its identity until it has another; with which key it greeted."""
    serving = asyncio.create_task(renewing.serve())
    try:
        await agent.done.wait()
        return await agent.coordinator.greeted.get()
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


def test_what_is_due_is_renewed_by_itself(agent: Agent) -> None:
    agent.clock.move(0.67 * HOUR_S)

    async def story(line: Line, renewing: Renewal) -> None:
        assert await renewed(agent, renewing) == agent.live_key() != fingerprint(agent.first)

    told(agent, story)


def test_what_is_not_due_is_left_alone(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = asyncio.Semaphore(0)
    agent.clock.move(0.5 * HOUR_S)

    class Looked(IdentityStore):
        def load(self) -> Identity:
            looks.release()
            return super().load()

    async def story(line: Line, renewing: Renewal) -> None:
        monkeypatch.setattr(renewing, "_identities", Looked(agent.folders.identity))
        monkeypatch.setattr(renewal, "KEEPING_S", 0.0)
        serving = asyncio.create_task(renewing.serve())
        for _ in range(100):
            await looks.acquire()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)

    told(agent, story)
    assert agent.coordinator.fingerprints == []


@pytest.mark.parametrize(
    "error", [ConnectionFailed("away"), StorageError("full"), AccessDenied("no")]
)
def test_a_renewal_that_fails_is_told_and_tried_again(
    agent: Agent, error: FedreidError, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.clock.move(0.67 * HOUR_S)
    failures = [error, error]
    real = join.pending_key

    def failing(folders: Folders) -> object:
        if failures:
            raise failures.pop()
        return real(folders)

    monkeypatch.setattr(renewal, "pending_key", failing)

    async def story(line: Line, renewing: Renewal) -> None:
        assert await renewed(agent, renewing) == agent.live_key()

    told(agent, story)
    assert [error.what in line for line in agent.said[:2]] == [True, True]


def test_an_identity_that_was_replaced_by_joining_again_is_taken_up(
    agent: Agent, federation: Federation
) -> None:
    rejoined = federation.leaf(Role.SILO, "north")

    async def story(line: Line, renewing: Renewal) -> None:
        agent.store.save(rejoined)
        assert await renewed(agent, renewing) == fingerprint(rejoined)

    told(agent, story)
    assert agent.coordinator.fingerprints == []


def test_files_of_an_outside_pki_are_taken_up_and_never_renewed_from_here(
    tmp_path: Path, federation: Federation
) -> None:
    secret = tmp_path / "secret"
    agent = Agent(tmp_path / "agent", federation, identity=str(secret))
    secret.mkdir()

    def write(identity: Identity) -> None:
        (secret / "ca.crt").write_bytes(identity.authorities_pem)
        (secret / "tls.crt").write_bytes(identity.certificate_pem)
        (secret / "tls.key").write_bytes(identity.key_pem)

    newer = federation.leaf(Role.SILO, "north")
    agent.clock.move(0.9 * HOUR_S)

    async def story(line: Line, renewing: Renewal) -> None:
        write(newer)
        assert await renewed(agent, renewing) == fingerprint(newer)
        write(federation.leaf(Role.SILO, "south"))
        with pytest.raises(IdentityBroken, match="this is the silo north"):
            await renewing.renew(newer)
        assert line.identity == newer

    told(agent, story)
    assert agent.coordinator.fingerprints == []
