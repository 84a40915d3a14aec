"""How does a test live with the coordinator as ``coordinator serve`` puts it together?"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc.aio

from coordinator.config import Config, initialise
from coordinator.folders import Folders
from coordinator.server import Coordinator
from fedreid.clock import SystemClock
from fedreid.notify import Supervisor
from fedreid.pki.certificates import key_to_pem, make_request, new_key
from fedreid.pki.identity import Identity, IdentityStore
from fedreid.pki.tokens import JoinToken, decode
from fedreid.v1 import admin_pb2, admin_pb2_grpc, enrolment_pb2, enrolment_pb2_grpc
from tests.coordinator.trust.callers import CALL_S, credentials


class Assembled:
    """The coordinator as ``coordinator serve`` puts it together."""

    def __init__(self, folder: Path) -> None:
        self.folders = Folders(folder)
        config = Config(
            federation="harbour",
            hostnames=("127.0.0.1",),
            listen="127.0.0.1:0",
            metrics="127.0.0.1:0",
        )
        initialise(self.folders, config, SystemClock())
        self._config = config
        self.admin = IdentityStore(self.folders.admin).load()
        self.address = ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        stop = asyncio.Event()
        ready: asyncio.Queue[str] = asyncio.Queue()
        coordinator = Coordinator(self.folders, self._config)
        self.registry = coordinator.registry
        self.readings = coordinator.readings
        serving = asyncio.create_task(
            coordinator.serve(
                self._config, stop=stop, say=ready.put_nowait, supervisor=Supervisor({})
            )
        )
        assert "serving" in await ready.get()
        self.address = self.folders.endpoint.read_text().strip()
        try:
            yield
        finally:
            stop.set()
            await serving

    def reload_admin(self) -> None:
        """Take up the administrator's identity, after the coordinator has renewed it."""
        self.admin = IdentityStore(self.folders.admin).load()

    @asynccontextmanager
    async def channel(self, identity: Identity) -> AsyncIterator[grpc.aio.Channel]:
        async with grpc.aio.secure_channel(self.address, credentials(identity)) as channel:
            yield channel

    async def token(self, silo: str) -> JoinToken:
        async with self.channel(self.admin) as channel:
            answer = await admin_pb2_grpc.AdminStub(channel).CreateToken(
                admin_pb2.CreateTokenRequest(silo=silo, ttl_s=60, coordinator=self.address)
            )
        return decode(answer.token)

    async def enrolled(self, silo: str) -> Identity:
        token = await self.token(silo)
        key = new_key()
        async with self.channel(token.identity()) as channel:
            answer = await enrolment_pb2_grpc.EnrolmentStub(channel).Enrol(
                enrolment_pb2.EnrolRequest(secret=token.secret, csr_der=make_request(key))
            )
        return Identity(
            key_pem=key_to_pem(key),
            certificate_pem=answer.certificate_pem,
            authorities_pem=answer.authorities_pem,
        )

    async def silos(self) -> list[admin_pb2.Silo]:
        async with self.channel(self.admin) as channel:
            stub = admin_pb2_grpc.AdminStub(channel)
            return list((await stub.ListSilos(admin_pb2.ListSilosRequest())).silos)

    async def until_it_is(self, silo: str, phase: str) -> None:
        """Ask until the coordinator has heard that the silo is in ``phase``."""
        while (silo, phase) not in {(row.name, row.phase) for row in await self.silos()}:
            pass

    async def revoke(self, silo: str) -> None:
        async with self.channel(self.admin) as channel:
            await admin_pb2_grpc.AdminStub(channel).RevokeSilo(
                admin_pb2.RevokeSiloRequest(silo=silo), timeout=CALL_S
            )


def lived(coordinator: Assembled, story: Callable[[Assembled], Awaitable[None]]) -> None:
    async def run() -> None:
        async with coordinator.serving(), asyncio.timeout(30):
            await story(coordinator)

    asyncio.run(run())
