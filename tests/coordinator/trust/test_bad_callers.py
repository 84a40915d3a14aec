"""Does every kind of bad caller get nothing from every call that the port serves?

One table: who calls, and what refuses them. Every row is tried against every call of every
service, found in the descriptors, over the real port: once before stand-ins that note whether
they were reached, once before the coordinator as it is put together.
"""

import asyncio
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc.aio._server import Server
from grpc_health.v1 import health_pb2

from coordinator.admin import AdminServicer
from coordinator.config import load_authority
from coordinator.rounds.journal import Journal, SiloRow, TokenRow
from coordinator.service import EnrolmentServicer, FederationServicer
from coordinator.trust.registry import LEFT, REVOKED, Registry
from fedreid.names import Role
from fedreid.pki.identity import Identity
from tests.coordinator.trust import raw
from tests.coordinator.trust.assembled import Assembled, lived
from tests.coordinator.trust.callers import SERVICES, Call, calls, credentials, hopeless
from tests.coordinator.trust.test_access import House, told
from tests.parties import HOUR_S, Federation

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"]
UNSERVED = HEALTH.methods_by_name["Watch"]
EVERY_CALL = [*calls(), *(Call(method) for method in HEALTH.methods if method is not UNSERVED)]
BY_TLS, BY_ACCESS = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.PERMISSION_DENIED
OUTCOMES: dict[str, grpc.StatusCode] = {
    "nobody": BY_TLS,
    "silo of another authority": BY_TLS,
    "admin of another authority": BY_TLS,
    "bootstrap of another authority": BY_TLS,
    "expired silo": BY_TLS,
    "expired admin": BY_TLS,
    "expired bootstrap": BY_TLS,
    "silo of tomorrow": BY_TLS,
    "admin of tomorrow": BY_TLS,
    "the coordinator itself": BY_TLS,
    "a coordinator that may dial": BY_ACCESS,
    "unregistered silo": BY_ACCESS,
    "another key of the silo": BY_ACCESS,
    "silo of another federation": BY_ACCESS,
    "admin of another federation": BY_ACCESS,
    "bootstrap of another federation": BY_ACCESS,
    "no URI": BY_ACCESS,
    "two URIs": BY_ACCESS,
    "the same URI twice": BY_ACCESS,
    "a URI of another form": BY_ACCESS,
    "a role that there is not": BY_ACCESS,
}
STATES = {
    REVOKED: BY_ACCESS,
    LEFT: BY_ACCESS,
    "suspended": BY_ACCESS,
    "pending": BY_ACCESS,
}
SERVICERS: dict[str, type[Any]] = {
    "fedreid.v1.Enrolment": EnrolmentServicer,
    "fedreid.v1.Federation": FederationServicer,
    "fedreid.v1.Admin": AdminServicer,
}
BUILT = [call for call in calls() if call.method.name in vars(SERVICERS[call.service])]
"""Calls that the product answers; the contract may be ahead of it."""


def role_of(call: Call) -> Role:
    """The only role that may make the call."""
    return Role.SILO if call.path.endswith("Enrolment/Renew") else SERVICES[call.service]


async def statuses(address: str, brought: grpc.ChannelCredentials) -> dict[str, grpc.StatusCode]:
    """What every call answers to one caller."""
    async with grpc.aio.secure_channel(address, brought) as channel:
        return {call.path: await call.make(channel) for call in EVERY_CALL}


def all_of(status: grpc.StatusCode) -> dict[str, grpc.StatusCode]:
    """Every call with the same answer."""
    return {call.path: status for call in EVERY_CALL}


def all_raw(address: str, context: ssl.SSLContext, resumed: bool) -> dict[str, grpc.StatusCode]:
    """What every call answers on a connection that gRPC's own clients would not make."""
    session = None
    if resumed:
        with raw.connected(address, context) as connection:
            connection.call(EVERY_CALL[0].path)  # a session can be had after the first bytes
            session = connection.spoken.session
    with raw.connected(address, context, session) as connection:
        assert connection.spoken.session_reused is resumed
        return {call.path: connection.call(call.path) for call in EVERY_CALL}


def odd_connections(folder: Path, identity: Identity) -> dict[str, tuple[ssl.SSLContext, bool]]:
    """A good certificate on a connection as it may not be."""
    v12 = ssl.TLSVersion.TLSv1_2
    return {
        # The product's own process refuses this handshake (test_tls); this one may make it.
        "TLS 1.2": (raw.client_context(folder / "12", identity, highest=v12), False),
        "a resumed session": (raw.client_context(folder / "13", identity), True),
    }


@pytest.fixture
def house(federation: Federation, registry: Registry, journal: Journal) -> House:
    """A server with stand-ins, and its callers."""
    return House(federation, registry, journal)


def test_the_table_has_every_kind_of_bad_caller() -> None:
    assert OUTCOMES.keys() == hopeless(Federation.founded(now_s=0)).keys()


# Before stand-ins


@pytest.mark.parametrize("who", OUTCOMES)
def test_a_bad_certificate_reaches_no_handler(house: House, who: str) -> None:
    house.registered("north")
    brought = credentials(hopeless(house.federation)[who], trusting=house.federation)

    async def story(house: House) -> None:
        assert await statuses(house.address, brought) == all_of(OUTCOMES[who])
        assert house.reached == []

    told(house, story)


@pytest.mark.parametrize("state", STATES)
def test_a_silo_that_is_not_active_reaches_no_handler(house: House, state: str) -> None:
    caller = house.registered("north", state=state)

    async def story(house: House) -> None:
        assert await statuses(house.address, credentials(caller)) == all_of(STATES[state])
        assert house.reached == []

    told(house, story)


@pytest.mark.parametrize("role", [Role.BOOTSTRAP, Role.SILO, Role.ADMIN])
def test_a_good_certificate_reaches_the_calls_of_its_role_and_no_other(
    house: House, role: Role
) -> None:
    is_silo = role is Role.SILO
    caller = house.registered("north") if is_silo else house.federation.leaf(role, "north")

    async def story(house: House) -> None:
        answers = await statuses(house.address, credentials(caller))
        for call in BUILT:
            expected = grpc.StatusCode.OK if role_of(call) is role else BY_ACCESS
            assert answers[call.path] is expected, call.path
        built = {call.path for call in BUILT}
        reached = {path for path in house.reached if path in built}
        assert reached == {call.path for call in BUILT if role_of(call) is role}

    told(house, story)


@pytest.mark.parametrize("how", ["TLS 1.2", "a resumed session"])
def test_a_good_certificate_on_a_bad_connection_reaches_no_handler(
    house: House, tmp_path: Path, how: str
) -> None:
    context, resumed = odd_connections(tmp_path, house.registered("north"))[how]

    async def story(house: House) -> None:
        answers = await asyncio.to_thread(all_raw, house.address, context, resumed)
        assert answers == all_of(BY_ACCESS)
        first = [EVERY_CALL[0].path] if resumed else []  # on the session's first connection
        assert [path for path in house.reached if path not in first] == []

    told(house, story)


# Before the coordinator itself


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Assembled]:
    """A coordinator's data folder, ready to serve."""
    yield Assembled(tmp_path / "coordinator")


def founded(coordinator: Assembled) -> Federation:
    """Who can issue what the coordinator's own authority would sign."""
    authority = load_authority(coordinator.folders)
    name = Federation.founded(now_s=0).name
    return Federation(name=name, authority=authority, now_s=time.time())


def register(coordinator: Assembled, federation: Federation, name: str, state: str) -> Identity:
    """A silo as the journal may hold it."""
    identity = federation.leaf(Role.SILO, name, life_s=HOUR_S)
    holder = identity.holder()
    journal = Journal(coordinator.folders.journal)
    token = TokenRow(secret_hash=name, silo=name, expires_at_s=0)
    journal.add_token(token)
    row = SiloRow(
        name=name,
        state=state,
        key_fingerprint=holder.key_fingerprint,
        certificate_pem=identity.certificate_pem,
        not_after_s=holder.not_after_s,
    )
    journal.consume_token(token, row)
    journal.close()
    return identity


def test_every_bad_caller_is_refused_every_call_of_the_assembled_coordinator(
    coordinator: Assembled, tmp_path: Path
) -> None:
    federation = founded(coordinator)
    north = register(coordinator, federation, "north", "active")
    rows = {
        who: (credentials(identity, trusting=federation), OUTCOMES[who])
        for who, identity in hopeless(federation).items()
    }
    for state, outcome in STATES.items():
        silo = register(coordinator, federation, f"silo-{state}", state)
        rows[state] = (credentials(silo), outcome)

    async def story(_: Assembled) -> None:
        for who, (brought, outcome) in rows.items():
            assert await statuses(coordinator.address, brought) == all_of(outcome), who
        for how, (context, resumed) in odd_connections(tmp_path, north).items():
            answers = await asyncio.to_thread(all_raw, coordinator.address, context, resumed)
            assert answers == all_of(BY_ACCESS), how

    lived(coordinator, story)


def test_the_port_serves_the_calls_of_the_table_and_no_others(
    coordinator: Assembled, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: set[str] = set()
    add = Server.add_registered_method_handlers

    def note(server: Any, service: str, handlers: dict[str, Any]) -> None:
        served.update(f"/{service}/{name}" for name in handlers)
        add(server, service, handlers)

    monkeypatch.setattr(Server, "add_registered_method_handlers", note)

    async def story(_: Assembled) -> None:
        assert served == {call.path for call in (*EVERY_CALL, Call(UNSERVED))}
        async with coordinator.channel(coordinator.admin) as channel:
            assert await Call(UNSERVED).make(channel) is grpc.StatusCode.UNIMPLEMENTED

    lived(coordinator, story)
