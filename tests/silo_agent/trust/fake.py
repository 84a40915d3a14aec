"""Who plays the coordinator to an agent? One that issues what it is told, and loses answers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio

from fedreid.errors import FedreidError, grpc_status_name
from fedreid.names import Principal, Role
from fedreid.pki.certificates import holder_of, key_fingerprint, requested_key, to_pem
from fedreid.pki.identity import Identity
from fedreid.v1 import (
    enrolment_pb2,
    enrolment_pb2_grpc,
    federation_pb2,
    federation_pb2_grpc,
)
from fedreid.wire.failures import failure_metadata
from tests.coordinator.trust.callers import servicer
from tests.parties import HOUR_S, Federation

MODEL_KEY = bytes(range(32))


class FakeCoordinator(enrolment_pb2_grpc.EnrolmentServicer):
    """Issues certificates as told, and remembers who asked."""

    def __init__(self, federation: Federation) -> None:
        self._federation = federation
        self.issues_as = federation
        self.name = "north"
        self.error: FedreidError | None = None
        self.loses_the_answer = False
        self.awaits_approval = 0
        """How often it answers that a person has yet to approve."""
        self.fingerprints: list[str] = []
        """Of the keys for which a certificate was asked."""
        self.secrets: list[str] = []
        self.greeted: asyncio.Queue[str] = asyncio.Queue()
        """Fingerprints of the keys with which somebody said Hello."""
        self.address = ""

    @asynccontextmanager
    async def serving(self, identity: Identity | None = None) -> AsyncIterator[None]:
        identity = identity or self._federation.server()
        server = grpc.aio.server()
        enrolment_pb2_grpc.add_EnrolmentServicer_to_server(self, server)
        federation_pb2_grpc.add_FederationServicer_to_server(
            servicer(federation_pb2_grpc.FederationServicer, "fedreid.v1.Federation", [], self),
            server,
        )
        credentials = grpc.ssl_server_credentials(
            [(identity.key_pem, identity.certificate_pem)],
            root_certificates=self._federation.authority.certificate_pem,
            require_client_auth=True,
        )
        self.address = f"127.0.0.1:{server.add_secure_port('127.0.0.1:0', credentials)}"
        await server.start()
        try:
            yield
        finally:
            await server.stop(None)

    async def Enrol(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Issue a certificate for the key of the request."""
        self.secrets.append(request.secret)
        if self.awaits_approval:
            self.awaits_approval -= 1
            return enrolment_pb2.EnrolResponse(awaits_approval=True)
        return enrolment_pb2.EnrolResponse(
            certificate_pem=await self._issued(request.csr_der, context),
            authorities_pem=self._federation.authority.certificate_pem,
            model_key=MODEL_KEY,
        )

    async def Renew(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Issue a certificate for the next key."""
        return enrolment_pb2.RenewResponse(
            certificate_pem=await self._issued(request.csr_der, context),
            authorities_pem=self._federation.authority.certificate_pem,
        )

    async def Hello(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Note with which certificate the caller came."""
        (pem,) = context.auth_context()["x509_pem_cert"]
        await self.greeted.put(holder_of(pem).key_fingerprint)
        return federation_pb2.HelloResponse(federation=self._federation.name)

    async def _issued(self, request_der: bytes, context: Any) -> bytes:
        key = requested_key(request_der)
        self.fingerprints.append(key_fingerprint(key))
        if self.error is not None:
            await context.abort(
                grpc.StatusCode[grpc_status_name(self.error)],
                str(self.error),
                failure_metadata(self.error.code, ""),
            )
        if self.loses_the_answer:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the line broke")
        certificate = self.issues_as.authority.issue(
            Principal(federation=self._federation.name, role=Role.SILO, name=self.name),
            key,
            now_s=self._federation.now_s,
            life_s=HOUR_S,
        )
        return to_pem(certificate)
