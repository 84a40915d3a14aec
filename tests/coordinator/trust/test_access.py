"""Is every call behind the wrapper, and does it let through exactly whom the design names?

Real gRPC over real mutual TLS on the loopback; behind the wrapper stand stand-ins that say
whether they were reached. The last part asks the assembled coordinator itself.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from coordinator.metrics import ACCESS_DENIED
from coordinator.rounds.journal import Journal, SiloRow, TokenRow
from coordinator.trust import access
from coordinator.trust.access import Access, calling_admin, calling_silo
from coordinator.trust.denials import Denials
from coordinator.trust.known_calls import server_of_known_calls
from coordinator.trust.registry import ACTIVE, REVOKED, Registry
from coordinator.trust.tls import server_credentials
from fedreid.errors import AccessDenied, Refusal, UpdateRefused
from fedreid.limits import CALLS_PER_CALLER
from fedreid.names import Role
from fedreid.pki.certificates import make_request, new_key
from fedreid.pki.identity import Identity
from fedreid.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    enrolment_pb2,
    enrolment_pb2_grpc,
    federation_pb2,
    federation_pb2_grpc,
    tensors_pb2,
)
from silo_agent.trust.channel import calling
from tests.coordinator.trust.assembled import Assembled, lived
from tests.coordinator.trust.callers import (
    APART,
    CALL_S,
    SERVICES,
    calls,
    credentials,
    servicer,
)
from tests.parties import HOUR_S, FakeClock, Federation

HELLO = next(call for call in calls() if call.method.name == "Hello")
Story = Callable[["House"], Awaitable[None]]


class House:
    """A server with the real wrapper around stand-ins, and its callers."""

    def __init__(self, federation: Federation, registry: Registry, journal: Journal) -> None:
        self.federation = federation
        self.registry = registry
        self._journal = journal
        self.reached: list[str] = []
        self.address = ""

    def registered(self, name: str, *, state: str = ACTIVE, life_s: float = HOUR_S) -> Identity:
        """A silo that is registered."""
        identity = self.federation.leaf(Role.SILO, name, life_s=life_s)
        holder = identity.holder()
        row = SiloRow(
            name=name,
            state=state,
            key_fingerprint=holder.key_fingerprint,
            certificate_pem=identity.certificate_pem,
            not_after_s=holder.not_after_s,
        )
        token = TokenRow(secret_hash=holder.key_fingerprint, silo=name, expires_at_s=0)
        self._journal.add_token(token)
        self._journal.consume_token(token, row)
        self.registry.remember(row)
        return identity

    @asynccontextmanager
    async def serving(self, **servicers: Any) -> AsyncIterator[None]:
        server = server_of_known_calls((Access(self.registry, Denials()),))
        for service, base, add in (
            (
                "Enrolment",
                enrolment_pb2_grpc.EnrolmentServicer,
                enrolment_pb2_grpc.add_EnrolmentServicer_to_server,
            ),
            (
                "Federation",
                federation_pb2_grpc.FederationServicer,
                federation_pb2_grpc.add_FederationServicer_to_server,
            ),
            ("Admin", admin_pb2_grpc.AdminServicer, admin_pb2_grpc.add_AdminServicer_to_server),
        ):
            full_name = f"fedreid.v1.{service}"
            add(servicer(base, full_name, self.reached, servicers.get(service)), server)
        health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(), server)
        port = server.add_secure_port("127.0.0.1:0", server_credentials(self.federation.server()))
        self.address = f"127.0.0.1:{port}"
        await server.start()
        try:
            yield
        finally:
            await server.stop(None)

    @asynccontextmanager
    async def channel(
        self, identity: Identity | None, *options: tuple[str, int]
    ) -> AsyncIterator[grpc.aio.Channel]:
        brought = credentials(identity, trusting=self.federation)
        async with grpc.aio.secure_channel(self.address, brought, options=options) as channel:
            yield channel

    async def statuses(self, identity: Identity | None) -> dict[str, grpc.StatusCode]:
        """What every call of the contract answers to one caller on one connection."""
        async with self.channel(identity) as channel:
            return {call.path: await call.make(channel) for call in calls()}


@pytest.fixture
def house(federation: Federation, registry: Registry, journal: Journal) -> House:
    """A server and its callers."""
    return House(federation, registry, journal)


def told(house: House, story: Story, **servicers: Any) -> None:
    """Run a story while the house is serving."""

    async def run() -> None:
        async with house.serving(**servicers), asyncio.timeout(60):
            await story(house)

    asyncio.run(run())


def of_role(role: Role) -> set[str]:
    return {call.path for call in calls() if call.role is role}


# Who may call what


def test_the_contract_has_three_services_and_each_has_its_role() -> None:
    assert {call.service for call in calls()} == SERVICES.keys()
    known = {**SERVICES, **{path.lstrip("/"): role for path, role in APART.items()}}
    assert {name: access._ROLES[name] for name in known} == {n: (r,) for n, r in known.items()}


@pytest.mark.parametrize("role", SERVICES.values())
def test_each_role_may_make_every_call_that_is_its_own_and_no_other(
    house: House, role: Role
) -> None:
    is_silo = role is Role.SILO
    caller = house.registered("north") if is_silo else house.federation.leaf(role, "north")

    async def story(house: House) -> None:
        statuses = await house.statuses(caller)
        allowed = {path for path, status in statuses.items() if status is grpc.StatusCode.OK}
        assert allowed == of_role(role)
        others = {statuses[path] for path in statuses.keys() - allowed}
        assert others == {grpc.StatusCode.PERMISSION_DENIED}
        assert sorted(house.reached) == sorted(of_role(role))

    told(house, story)


def test_a_bootstrap_certificate_is_good_for_the_enrol_call_alone(house: House) -> None:
    bootstrap = house.federation.leaf(Role.BOOTSTRAP, "north")

    async def story(house: House) -> None:
        async with house.channel(bootstrap) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as denied:
                await health.Check(health_pb2.HealthCheckRequest(), timeout=CALL_S)
        assert denied.value.code() is grpc.StatusCode.PERMISSION_DENIED

    told(house, story)


def test_a_call_that_is_not_in_the_contract_is_unknown(house: House) -> None:
    caller = house.registered("north")

    async def story(house: House) -> None:
        async with house.channel(caller) as channel:
            for path in ("/fedreid.v1.Federation/Steal", "/x/Y", "/fedreid.v1.Admin/"):
                with pytest.raises(grpc.aio.AioRpcError) as unknown:
                    unheard_of: Any = channel.unary_unary(path)
                    await unheard_of(b"", timeout=CALL_S)
                assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED

    told(house, story)


def test_nothing_unencrypted_is_answered(house: House) -> None:
    async def story(house: House) -> None:
        async with grpc.aio.insecure_channel(house.address) as channel:
            statuses = {await call.make(channel) for call in calls()}
        assert statuses == {grpc.StatusCode.UNAVAILABLE}

    told(house, story)


def test_every_denial_is_counted_with_its_reason(house: House) -> None:
    def denials() -> Counter[str]:
        (metric,) = ACCESS_DENIED.collect()
        return Counter({s.labels["reason"]: int(s.value) for s in metric.samples})

    async def story(house: House) -> None:
        before = denials()
        await house.statuses(house.federation.leaf(Role.SILO, "unheard-of"))
        counted = denials() - before
        assert set(counted) == {"not_registered", "role"}
        assert counted.total() == len(calls())

    told(house, story)


# On a connection that stays open


def test_revocation_takes_effect_on_the_next_call_of_an_open_connection(house: House) -> None:
    caller = house.registered("north")

    async def story(house: House) -> None:
        async with house.channel(caller) as channel:
            assert await HELLO.make(channel) is grpc.StatusCode.OK
            house.registry.set_state("north", REVOKED)
            assert await HELLO.make(channel) is grpc.StatusCode.PERMISSION_DENIED

    told(house, story)


@pytest.mark.parametrize("role", [Role.BOOTSTRAP, Role.SILO, Role.ADMIN])
def test_a_certificate_that_ends_while_its_connection_is_open_ends_with_it(
    house: House, clock: FakeClock, role: Role
) -> None:
    is_silo = role is Role.SILO
    caller = house.registered("north") if is_silo else house.federation.leaf(role, "north")
    call = next(call for call in calls() if call.role is role)

    async def story(house: House) -> None:
        async with house.channel(caller) as channel:
            assert await call.make(channel) is grpc.StatusCode.OK
            clock.move(HOUR_S + 1)
            assert await call.make(channel) is grpc.StatusCode.PERMISSION_DENIED

    told(house, story)


class Uploads:
    """Takes uploads and tells what came."""

    def __init__(self) -> None:
        self.came: asyncio.Queue[str] = asyncio.Queue()

    async def SendUpload(self, requests: Any, context: Any) -> Any:  # noqa: N802
        """Note each message."""
        async for request in requests:
            await self.came.put(request.upload_id)
        await self.came.put("end")
        return federation_pb2.SendUploadResponse()


@pytest.mark.parametrize("ending", ["revoked", "expired", "newer key"])
def test_an_upload_is_aborted_at_the_next_message_after_its_silo_lost_its_right(
    house: House, clock: FakeClock, ending: str
) -> None:
    caller = house.registered("north")
    uploads = Uploads()

    async def story(house: House) -> None:
        async with house.channel(caller) as channel:
            call = federation_pb2_grpc.FederationStub(channel).SendUpload()
            await call.write(federation_pb2.SendUploadRequest(upload_id="first"))
            assert await uploads.came.get() == "first"
            if ending == "revoked":
                house.registry.set_state("north", REVOKED)
            elif ending == "expired":
                clock.move(HOUR_S + 1)
            else:
                house.registered("north")
            await call.write(federation_pb2.SendUploadRequest(upload_id="second"))
            assert await call.code() is grpc.StatusCode.PERMISSION_DENIED
            assert uploads.came.empty()

    told(house, story, Federation=uploads)


class Downloads:
    """Sends a piece each time it is told to."""

    def __init__(self) -> None:
        self.go = asyncio.Semaphore(1)

    async def FetchModel(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Send pieces."""
        while True:
            await self.go.acquire()
            yield federation_pb2.FetchModelResponse(chunk=tensors_pb2.Chunk(data=b"x"))


def test_a_download_is_aborted_before_the_next_piece_after_its_silo_was_revoked(
    house: House,
) -> None:
    caller = house.registered("north")
    downloads = Downloads()

    async def story(house: House) -> None:
        async with house.channel(caller) as channel:
            stub = federation_pb2_grpc.FederationStub(channel)
            call = stub.FetchModel(federation_pb2.FetchModelRequest())
            first: Any = await call.read()
            assert first.chunk.data == b"x"
            house.registry.set_state("north", REVOKED)
            downloads.go.release()
            assert await call.code() is grpc.StatusCode.PERMISSION_DENIED

    told(house, story, Federation=downloads)


class Waiting:
    """Answers a long poll when it is told to."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go = asyncio.Event()

    async def NextTask(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Wait."""
        self.begun.set()
        await self.go.wait()
        return federation_pb2.NextTaskResponse()


def test_a_long_poll_is_not_answered_to_a_silo_that_was_revoked_meanwhile(house: House) -> None:
    caller = house.registered("north")
    waiting = Waiting()

    async def story(house: House) -> None:
        async with house.channel(caller) as channel:
            stub = federation_pb2_grpc.FederationStub(channel)
            call = stub.NextTask(federation_pb2.NextTaskRequest())
            await waiting.begun.wait()
            house.registry.set_state("north", REVOKED)
            waiting.go.set()
            assert await call.code() is grpc.StatusCode.PERMISSION_DENIED

    told(house, story, Federation=waiting)


# Whose call it is


class Named:
    """Answers with the caller's name, as the servicers see it."""

    async def Hello(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Say who called, after others had the chance to."""
        first = calling_silo()
        await asyncio.sleep(0)
        assert calling_silo() == first
        return federation_pb2.HelloResponse(federation=first)


def test_calls_at_the_same_time_are_each_their_own_silos(house: House) -> None:
    names = [f"silo-{n}" for n in range(5)]
    identities = {name: house.registered(name) for name in names}

    async def hello(name: str) -> list[str]:
        async with house.channel(identities[name]) as channel:
            stub = federation_pb2_grpc.FederationStub(channel)
            answers = [stub.Hello(federation_pb2.HelloRequest()) for _ in range(CALLS_PER_CALLER)]
            return [(await answer).federation for answer in answers]

    async def story(house: House) -> None:
        heard = await asyncio.gather(*map(hello, names))
        assert heard == [[name] * CALLS_PER_CALLER for name in names]

    told(house, story, Federation=Named())


class Bookkeeper:
    """Answers with the administrator's name."""

    async def GetRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Say who called."""
        return admin_pb2.GetRunResponse(run=calling_admin())


def test_an_administrator_is_known_by_name(house: House) -> None:
    admin = house.federation.leaf(Role.ADMIN, "anna")

    async def story(house: House) -> None:
        async with house.channel(admin) as channel:
            answer = await admin_pb2_grpc.AdminStub(channel).GetRun(admin_pb2.GetRunRequest())
            assert answer.run == "anna"

    told(house, story, Admin=Bookkeeper())


# Errors


class Refusing:
    """Fails in each way that a handler can."""

    async def OpenUpload(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Refuse."""
        raise UpdateRefused(Refusal.NORM, "It is too large", next_step="Make it smaller.")

    async def FetchModel(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Refuse after a first piece."""
        yield federation_pb2.FetchModelResponse()
        raise UpdateRefused(Refusal.ENCODING, "No")

    async def Hello(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Fail as a program does that has a bug."""
        raise RuntimeError("at /srv/fedreid/secret.pem")


def test_an_error_of_a_handler_reaches_the_agent_as_itself(house: House) -> None:
    caller = house.registered("north")

    async def story(house: House) -> None:
        async with house.channel(caller) as channel:
            stub = federation_pb2_grpc.FederationStub(channel)
            with pytest.raises(UpdateRefused, match="Make it smaller") as one, calling("a:1"):
                await stub.OpenUpload(federation_pb2.OpenUploadRequest())
            assert one.value.reason is Refusal.NORM
            with pytest.raises(UpdateRefused) as other, calling("a:1"):
                async for _ in stub.FetchModel(federation_pb2.FetchModelRequest()):
                    pass
            assert other.value.reason is Refusal.ENCODING

    told(house, story, Federation=Refusing())


def test_a_denial_reaches_the_agent_as_itself(house: House) -> None:
    caller = house.registered("north", state=REVOKED)

    async def story(house: House) -> None:
        async with house.channel(caller) as channel:
            stub = federation_pb2_grpc.FederationStub(channel)
            with pytest.raises(AccessDenied, match="is revoked"), calling("a:1"):
                await stub.Hello(federation_pb2.HelloRequest())

    told(house, story)


def test_a_bug_in_a_handler_tells_the_silo_nothing_of_the_coordinators_inside(
    house: House,
) -> None:
    caller = house.registered("north")

    async def story(house: House) -> None:
        async with house.channel(caller) as channel:
            stub = federation_pb2_grpc.FederationStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await stub.Hello(federation_pb2.HelloRequest())
            assert "secret.pem" not in str(failed.value.details())

    told(house, story, Federation=Refusing())


class Properties:
    """A call's context with TLS properties of the test's choice."""

    def __init__(self, **properties: bytes) -> None:
        self._properties = {name: [value] for name, value in properties.items()}

    def auth_context(self) -> dict[str, list[bytes]]:
        """As gRPC gives them."""
        return self._properties


def test_any_other_version_of_tls_is_denied_and_so_is_none(house: House) -> None:
    pem = house.registered("north").certificate_pem
    good = Properties(ssl_tls_version=b"TLSv1.3", ssl_session_reused=b"false", x509_pem_cert=pem)
    assert access._peer(good).principal.name == "north"
    for context in (
        Properties(ssl_tls_version=b"TLSv1.2", x509_pem_cert=pem),
        Properties(ssl_tls_version=b"", x509_pem_cert=pem),
        Properties(ssl_session_reused=b"false", x509_pem_cert=pem),
        Properties(),
    ):
        with pytest.raises(AccessDenied, match=r"Only TLS 1\.3"):
            access._peer(context)


# The assembled coordinator


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Assembled]:
    """A coordinator's data folder, ready to serve."""
    yield Assembled(tmp_path / "coordinator")


def test_every_call_of_the_assembled_coordinator_is_behind_the_wrapper(
    coordinator: Assembled,
) -> None:
    async def story(coordinator: Assembled) -> None:
        silo = await coordinator.enrolled("north")
        bootstrap = (await coordinator.token("south")).identity()
        callers = {Role.SILO: silo, Role.ADMIN: coordinator.admin, Role.BOOTSTRAP: bootstrap}
        for role, identity in callers.items():
            async with coordinator.channel(identity) as channel:
                for call in calls():
                    if call.role is not role:
                        assert await call.make(channel) is grpc.StatusCode.PERMISSION_DENIED

    lived(coordinator, story)


def test_when_revocation_is_answered_the_silo_can_call_nothing(coordinator: Assembled) -> None:
    async def story(coordinator: Assembled) -> None:
        silo = await coordinator.enrolled("north")
        async with coordinator.channel(silo) as channel:
            assert await HELLO.make(channel) is grpc.StatusCode.OK
            await coordinator.revoke("north")
            for call in calls():
                assert await call.make(channel) is grpc.StatusCode.PERMISSION_DENIED

    lived(coordinator, story)


def test_revocation_ends_a_stream_though_its_silo_says_nothing_more(
    coordinator: Assembled,
) -> None:
    async def story(coordinator: Assembled) -> None:
        silo = await coordinator.enrolled("north")
        async with coordinator.channel(silo) as channel:
            upload = federation_pb2_grpc.FederationStub(channel).SendUpload()
            await coordinator.until_it_is("north", "uploading")
            await coordinator.revoke("north")
            async with asyncio.timeout(3):
                assert await upload.code() is grpc.StatusCode.PERMISSION_DENIED

    lived(coordinator, story)


async def hung_up(next_task: Any, wait_s: float) -> grpc.StatusCode:
    """How a long poll ends."""
    call = next_task(federation_pb2.NextTaskRequest(wait_s=wait_s))
    status: grpc.StatusCode = await call.code()
    return status


def test_revocation_ends_a_long_poll(coordinator: Assembled) -> None:
    async def story(coordinator: Assembled) -> None:
        silo = await coordinator.enrolled("north")
        async with coordinator.channel(silo) as channel:
            stub = federation_pb2_grpc.FederationStub(channel)
            poll = asyncio.create_task(hung_up(stub.NextTask, wait_s=20))
            await coordinator.until_it_is("north", "waiting")
            await coordinator.revoke("north")
            async with asyncio.timeout(3):
                assert await poll is grpc.StatusCode.PERMISSION_DENIED

    lived(coordinator, story)


def test_a_token_minted_before_a_revocation_does_not_undo_it(coordinator: Assembled) -> None:
    async def story(coordinator: Assembled) -> None:
        await coordinator.enrolled("north")
        spare = await coordinator.token("north")
        await coordinator.revoke("north")
        request = enrolment_pb2.EnrolRequest(secret=spare.secret, csr_der=make_request(new_key()))
        async with coordinator.channel(spare.identity()) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as denied:
                await enrolment_pb2_grpc.EnrolmentStub(channel).Enrol(request)
        assert denied.value.code() is grpc.StatusCode.PERMISSION_DENIED

    lived(coordinator, story)
