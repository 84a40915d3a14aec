"""Who may knock at the coordinator's port? Every kind of caller, and how to call anything.

The calls are found in the descriptors of the contract, so a call that is added later is tested
without anybody's doing.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from fedreid.names import Role
from fedreid.pki.identity import Identity
from fedreid.v1 import admin_pb2, enrolment_pb2, federation_pb2
from tests.parties import HOUR_S, Federation, forge

CALL_S = 10.0

SERVICES: dict[str, Role] = {
    "fedreid.v1.Enrolment": Role.BOOTSTRAP,
    "fedreid.v1.Federation": Role.SILO,
    "fedreid.v1.Admin": Role.ADMIN,
}
"""Each service of the contract, and the only role that may call it."""

APART: dict[str, Role] = {"/fedreid.v1.Enrolment/Renew": Role.SILO}
"""Calls that another role makes than the rest of their service."""

_FILES = (enrolment_pb2, federation_pb2, admin_pb2)


@dataclass(frozen=True, slots=True)
class Call:
    """One RPC of the contract."""

    method: MethodDescriptor

    @property
    def service(self) -> str:
        """Its service's full name."""
        service: ServiceDescriptor = self.method.containing_service
        return str(service.full_name)

    @property
    def path(self) -> str:
        """As it stands in the request."""
        return f"/{self.service}/{self.method.name}"

    @property
    def role(self) -> Role:
        """The only role that may make it."""
        return APART.get(self.path, SERVICES[self.service])

    async def make(self, channel: grpc.aio.Channel) -> grpc.StatusCode:
        """Call it with an empty request; gives the status."""
        kind = {
            (False, False): channel.unary_unary,
            (False, True): channel.unary_stream,
            (True, False): channel.stream_unary,
        }[self.method.client_streaming, self.method.server_streaming]
        call: Any = kind(self.path)
        request = _one() if self.method.client_streaming else b""
        try:
            answer = call(request, timeout=CALL_S)
            if self.method.server_streaming:
                async for _ in answer:
                    pass
            else:
                await answer
        except grpc.aio.AioRpcError as error:
            return error.code()
        return grpc.StatusCode.OK


async def _one() -> AsyncIterator[bytes]:
    yield b""


def calls() -> list[Call]:
    """Every RPC of every service in the contract."""
    return [
        Call(method)
        for file in _FILES
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]


def stand_in(method: MethodDescriptor, reached: list[str]) -> Any:
    """A behaviour that notes that it was reached, takes what comes, and answers emptily."""
    answer = message_factory.GetMessageClass(method.output_type)
    path = Call(method).path

    async def unary(request: Any, context: Any) -> Any:
        reached.append(path)
        if method.client_streaming:
            async for _ in request:
                pass
        return answer()

    async def streamed(request: Any, context: Any) -> AsyncIterator[Any]:
        reached.append(path)
        yield answer()

    return streamed if method.server_streaming else unary


def servicer(base: type[Any], service: str, reached: list[str], instead: object = None) -> Any:
    """A servicer whose every method is a stand-in, but for those that ``instead`` has."""
    descriptor = descriptor_pool.Default().FindServiceByName(service)
    methods = {
        method.name: staticmethod(getattr(instead, method.name, stand_in(method, reached)))
        for method in descriptor.methods
    }
    return type(f"StandIn{base.__name__}", (base,), methods)()


def credentials(
    identity: Identity | None, *, trusting: Federation | None = None
) -> grpc.ChannelCredentials:
    """What a caller brings along; without an identity it only verifies the server."""
    if identity is None:
        assert trusting is not None
        return grpc.ssl_channel_credentials(trusting.authority.certificate_pem)
    roots = identity.authorities_pem if trusting is None else trusting.authority.certificate_pem
    return grpc.ssl_channel_credentials(roots, identity.key_pem, identity.certificate_pem)


def hopeless(federation: Federation) -> dict[str, Identity | None]:
    """Callers who may call nothing at all, whatever the registry says."""
    silo, admin, bootstrap = (
        f"spiffe://{federation.name}/{role.value}/north"
        for role in (Role.SILO, Role.ADMIN, Role.BOOTSTRAP)
    )
    other = Federation.founded(now_s=federation.now_s, name=federation.name)
    stranger = federation.name.__class__("stranger")
    return {
        "nobody": None,
        "silo of another authority": other.leaf(Role.SILO, "north"),
        "admin of another authority": other.leaf(Role.ADMIN, "admin"),
        "bootstrap of another authority": other.leaf(Role.BOOTSTRAP, "north"),
        "expired silo": forge(federation, uris=[silo], starts_s=-2 * HOUR_S, ends_s=-HOUR_S),
        "expired admin": forge(federation, uris=[admin], starts_s=-2 * HOUR_S, ends_s=-HOUR_S),
        "expired bootstrap": forge(
            federation, uris=[bootstrap], starts_s=-2 * HOUR_S, ends_s=-HOUR_S
        ),
        "silo of tomorrow": forge(federation, uris=[silo], starts_s=HOUR_S, ends_s=2 * HOUR_S),
        "admin of tomorrow": forge(federation, uris=[admin], starts_s=HOUR_S, ends_s=2 * HOUR_S),
        "unregistered silo": federation.leaf(Role.SILO, "unheard-of"),
        "another key of the silo": federation.leaf(Role.SILO, "north"),
        "silo of another federation": federation.leaf(Role.SILO, "north", federation=stranger),
        "admin of another federation": federation.leaf(Role.ADMIN, "admin", federation=stranger),
        "bootstrap of another federation": federation.leaf(
            Role.BOOTSTRAP, "north", federation=stranger
        ),
        "no URI": forge(federation, uris=[], common_name=admin),
        "two URIs": forge(federation, uris=[silo, admin]),
        "the same URI twice": forge(federation, uris=[admin, admin]),
        "a URI of another form": forge(federation, uris=[admin + "/x"]),
        "a role that there is not": forge(
            federation, uris=[f"spiffe://{federation.name}/root/north"]
        ),
        "the coordinator itself": federation.server(),
        "a coordinator that may dial": forge(
            federation, uris=[f"spiffe://{federation.name}/coordinator/coordinator"]
        ),
    }
