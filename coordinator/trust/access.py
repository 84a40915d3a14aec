"""May this caller make this call? One wrapper around every RPC, asked again on every message.

Identity comes from the certificate that TLS verified, by its single URI SAN; common names and
gRPC's own peer identities are never looked at. Errors of our tree leave here as gRPC statuses.
"""

from __future__ import annotations  # gRPC's classes take type arguments in their stubs only

import asyncio
import contextlib
import functools
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any, TypeAlias

import grpc
import grpc.aio

from coordinator.metrics import ACCESS_DENIED
from coordinator.trust.denials import Denials
from coordinator.trust.registry import Registry
from fedreid.errors import (
    AccessDenied,
    ConnectionFailed,
    FedreidError,
    UpdateRefused,
    grpc_status_name,
)
from fedreid.limits import MESSAGE_IDLE_S
from fedreid.names import Role, SiloName
from fedreid.pki.certificates import Holder, holder_of
from fedreid.wire.failures import failure_message, failure_metadata
from fedreid.work import off_loop

AnyHandler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

_ROLES = {
    "fedreid.v1.Enrolment": (Role.BOOTSTRAP,),
    "fedreid.v1.Enrolment/Renew": (Role.SILO,),
    "fedreid.v1.Federation": (Role.SILO,),
    "fedreid.v1.Admin": (Role.ADMIN,),
    "grpc.health.v1.Health": (Role.SILO, Role.ADMIN),
}
"""Who may call a service, and a call that is not as the others of its service."""

_LEAVE = "Leave"
_TLS_VERSION = b"TLSv1.3"
_caller: ContextVar[Holder] = ContextVar("caller")
_log = logging.getLogger(__name__)

_holder_of_pem = functools.lru_cache(maxsize=4096)(holder_of)
"""Parsing is cached per certificate; expiry and registry are asked each time."""


def calling_silo() -> SiloName:
    """The silo (or the silo to be) behind the call that is being served."""
    return _caller.get().principal.silo


def calling_holder() -> Holder:
    """The holder of the certificate with which the call that is being served was made."""
    return _caller.get()


def calling_admin() -> str:
    """The administrator behind the call that is being served."""
    principal = _caller.get().principal
    assert principal.role is Role.ADMIN
    return principal.name


class Access(grpc.aio.ServerInterceptor):
    """Lets a call through to its handler only for a caller who may make it."""

    def __init__(self, registry: Registry, denials: Denials) -> None:
        self._registry = registry
        self._denials = denials
        self._live: dict[str, set[asyncio.Task[Any]]] = defaultdict(set)
        self._ended: set[asyncio.Task[Any]] = set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[AnyHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> AnyHandler | None:
        """Wrap the handler of the called method."""
        handler = await continuation(handler_call_details)
        if handler is None:  # an unknown method: gRPC answers UNIMPLEMENTED by itself
            return handler
        called = handler_call_details.method.lstrip("/")
        service, _, method = called.rpartition("/")
        return self._wrap(handler, called if called in _ROLES else service, method)

    def end_calls(self, silo: str) -> None:
        """End every call that a silo has under way, except the one that asks for it."""
        asking = asyncio.current_task()
        for task in self._live[silo] - {asking}:
            self._ended.add(task)
            task.cancel()

    def _wrap(self, handler: Any, service: str, method: str) -> AnyHandler:
        codecs = (handler.request_deserializer, handler.response_serializer)
        if handler.request_streaming:
            assert not handler.response_streaming, "no call of the contract streams both ways"
            return grpc.stream_unary_rpc_method_handler(
                self._streamed_request(handler.stream_unary, service), *codecs
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                self._streamed_response(handler.unary_stream, service), *codecs
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(handler.unary_unary, service, leaving=method == _LEAVE), *codecs
        )

    def _unary(self, behaviour: Any, service: str, *, leaving: bool) -> Any:
        async def call(request: Any, context: Any) -> Any:
            async with self._call(context, service):
                answer = await behaviour(request, context)
                if not leaving:  # a long poll outlives what was true when it began
                    self._admit(context, service)
                return answer

        return call

    def _streamed_response(self, behaviour: Any, service: str) -> Any:
        async def call(request: Any, context: Any) -> None:
            async with (
                self._call(context, service),
                contextlib.aclosing(behaviour(request, context)) as messages,
            ):
                async for message in messages:
                    self._admit(context, service)
                    async with _not_idle():
                        await context.write(message)

        return call

    def _streamed_request(self, behaviour: Any, service: str) -> Any:
        async def call(requests: AsyncIterator[Any], context: Any) -> Any:
            async def admitted() -> AsyncIterator[Any]:
                while True:
                    async with _not_idle():
                        message = await anext(requests, None)
                    if message is None:
                        return
                    self._admit(context, service)
                    yield message

            async with self._call(context, service):
                return await behaviour(admitted(), context)

        return call

    @contextlib.asynccontextmanager
    async def _call(self, context: Any, service: str) -> AsyncIterator[None]:
        """One call: admitted, listed while it lives, its failures told as statuses."""
        task = asyncio.current_task()
        assert task is not None
        name = ""
        try:
            holder = self._admit(context, service)
            name = holder.principal.name
            self._live[name].add(task)
            if self._registry.first_use(holder):
                await off_loop(self._registry.note_first_use, holder)
            yield
        except FedreidError as error:
            await _tell(context, error)
        except asyncio.CancelledError:
            if task not in self._ended:
                raise
            task.uncancel()
            try:
                self._admit(context, service)  # says why, as every later call will hear it
            except AccessDenied as denied:
                await _tell(context, denied)
            await _tell(context, AccessDenied(f"The silo {name} may take part no longer"))
        except (grpc.aio.AbortError, GeneratorExit):
            raise
        except Exception:
            # What a bug says is for the operators' log, not for whoever called.
            _log.exception("a call of %s failed", service)
            await context.abort(grpc.StatusCode.INTERNAL, "The coordinator failed at this call")
        finally:
            self._live[name].discard(task)
            self._ended.discard(task)

    def _admit(self, context: Any, service: str) -> Holder:
        caller = ""
        try:
            holder = _peer(context)
            caller = holder.principal.uri
            if holder.principal.role not in _ROLES.get(service, ()):
                raise AccessDenied(
                    f"A certificate of the role {holder.principal.role.value!r} can't call "
                    f"{service}"
                )
            self._registry.check(holder)
        except FedreidError as error:
            ACCESS_DENIED.inc()
            self._denials.note(caller, service, error.what)
            raise
        _caller.set(holder)
        return holder


def _peer(context: Any) -> Holder:
    properties = context.auth_context()
    if properties.get("ssl_tls_version", [b""])[0] != _TLS_VERSION:
        raise AccessDenied("Only TLS 1.3 is spoken here")
    pem = properties.get("x509_pem_cert", [b""])[0]
    return _holder_of_pem(pem)


@contextlib.asynccontextmanager
async def _not_idle() -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(MESSAGE_IDLE_S):
            yield
    except TimeoutError as error:
        raise ConnectionFailed(f"Nothing moved on the stream for {MESSAGE_IDLE_S:g} s") from error


async def _tell(context: Any, error: FedreidError) -> None:
    """Abort a call with an error of our tree, its code and reason beside the message."""
    reason = error.reason.value if isinstance(error, UpdateRefused) else ""
    await context.abort(
        grpc.StatusCode[grpc_status_name(error)],
        failure_message(error),
        failure_metadata(error.code, reason),
    )
