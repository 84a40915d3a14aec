"""May this caller make this call? One wrapper around every RPC, asked again on every message.

Identity comes from the certificate that TLS verified, by its single URI SAN; common names and
gRPC's own peer identities are never looked at. Errors of our tree leave here as gRPC statuses.
"""

from __future__ import annotations  # gRPC's classes take type arguments in their stubs only

import asyncio
import contextlib
import functools
import inspect
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any, TypeAlias

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from coordinator.metrics import ACCESS_DENIED
from coordinator.trust.denials import Denials
from coordinator.trust.registry import Registry
from coordinator.trust.under_way import CallsUnderWay, UnderWay
from fedreid.errors import (
    AccessDenied,
    ConnectionFailed,
    Denial,
    FedreidError,
    LimitReached,
    UpdateRefused,
    UsageError,
    grpc_status_name,
)
from fedreid.limits import MESSAGE_IDLE_S
from fedreid.names import Principal, Role, SiloName
from fedreid.pki.certificates import Holder, holder_of
from fedreid.wire.chunks import parser, serialiser
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
        self._under_way = CallsUnderWay()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[AnyHandler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> AnyHandler | None:
        """Wrap the handler of the called method."""
        handler = await continuation(handler_call_details)
        if handler is None:  # an unknown method: gRPC answers UNIMPLEMENTED by itself
            return handler
        if handler.unary_stream and not inspect.isasyncgenfunction(handler.unary_stream):
            return None  # it would write by itself, past all checks: Health.Watch is not served
        called = handler_call_details.method.lstrip("/")
        service, _, method = called.rpartition("/")
        return self._wrap(handler, called if called in _ROLES else service, method)

    async def end_calls(self, silo: str) -> None:
        """End every call that a silo has under way, except the one that asks for it.

        When this returns, none of their handlers does anything any more.
        """
        await self._under_way.end(silo)

    def _wrap(self, handler: Any, service: str, method: str) -> AnyHandler:
        """The handler behind its checks, told to gRPC as one of streamed requests.

        gRPC would receive a whole message of a unary call before it asked anybody. On the wire
        a stream of one message is the same, and is asked about before its first byte is taken.
        Messages are parsed here for the same reason.
        """
        streamed = handler.stream_unary or handler.stream_stream
        messages = functools.partial(
            self._messages, service=service, parse=parser(handler.request_deserializer)
        )
        serializer = serialiser(handler.response_serializer)
        if handler.response_streaming:
            assert streamed is None, "no call of the contract streams both ways"
            behaviour = self._streamed_response(handler.unary_stream, service, messages)
            return grpc.stream_stream_rpc_method_handler(behaviour, None, serializer)
        if streamed is not None:
            behaviour = self._streamed_request(streamed, service, messages)
        else:
            leaving = method == _LEAVE
            behaviour = self._unary(handler.unary_unary, service, messages, leaving=leaving)
        return grpc.stream_unary_rpc_method_handler(behaviour, None, serializer)

    def _unary(self, behaviour: Any, service: str, messages: Any, *, leaving: bool) -> Any:
        async def call(requests: AsyncIterator[bytes], context: Any) -> Any:
            async with self._call(context, service):
                answer = await behaviour(await _only(messages(requests)), context)
                if not leaving:  # a long poll outlives what was true when it began
                    self._admit(_caller.get(), service)
                return answer

        return call

    def _streamed_response(self, behaviour: Any, service: str, messages: Any) -> Any:
        async def call(requests: AsyncIterator[bytes], context: Any) -> None:
            async with self._call(context, service) as under_way:
                request = await _only(messages(requests))
                async with contextlib.aclosing(behaviour(request, context)) as answers:
                    async for message in answers:
                        self._admit(_caller.get(), service)
                        async with _not_idle():
                            await under_way.send(context.write(message))

        return call

    def _streamed_request(self, behaviour: Any, service: str, messages: Any) -> Any:
        async def call(requests: AsyncIterator[bytes], context: Any) -> Any:
            async with (
                self._call(context, service),
                contextlib.aclosing(messages(requests)) as admitted,
            ):
                return await behaviour(admitted, context)

        return call

    async def _messages(
        self, requests: AsyncIterator[bytes], *, service: str, parse: Any
    ) -> AsyncIterator[Any]:
        """The messages of a call: each comes in time, from one who may send it, and is one."""
        while True:
            async with _not_idle():
                message = await anext(requests, None)
            if message is None:
                return
            self._admit(_caller.get(), service)
            try:
                parsed = parse(message)
            except DecodeError as error:
                raise UsageError("A message of this call can't be read") from error
            yield parsed

    @contextlib.asynccontextmanager
    async def _call(self, context: Any, service: str) -> AsyncIterator[UnderWay]:
        """One call: admitted, listed while it lives, its failures told as statuses."""
        call = None
        try:
            holder = self._identify(context, service)
            self._admit(holder, service)
            call = self._begin(holder.principal, service)
            try:
                if self._registry.first_use(holder):
                    await off_loop(self._registry.note_first_use, holder)
                yield call
            finally:
                call.handled.set()
        except FedreidError as error:
            if call is not None:
                await call.sent()
            await _tell(context, error)
        except asyncio.CancelledError:
            if call is None or not call.ended:
                raise
            call.task.uncancel()
            await call.sent()
            try:
                self._admit(_caller.get(), service)  # says why, as every later call will hear it
            except AccessDenied as denied:
                await _tell(context, denied)
            name = call.principal.name
            await _tell(context, AccessDenied(f"The silo {name} may take part no longer"))
        except (grpc.aio.AbortError, GeneratorExit):
            raise
        except Exception:
            # What a bug says is for the operators' log, not for whoever called.
            _log.exception("a call of %s failed", service)
            await context.abort(grpc.StatusCode.INTERNAL, "The coordinator failed at this call")
        finally:
            if call is not None:
                self._under_way.over(call)

    def _begin(self, principal: Principal, service: str) -> UnderWay:
        try:
            return self._under_way.begin(principal)
        except LimitReached as error:
            self._note_denied(principal.uri, service, error, Denial.LIMIT)
            raise

    def _identify(self, context: Any, service: str) -> Holder:
        """Who calls: the certificate of the connection, one and the same for all of the call."""
        try:
            holder = _peer(context)
        except FedreidError as error:
            self._note_denied("", service, error, Denial.CERTIFICATE)
            raise
        _caller.set(holder)
        return holder

    def _admit(self, holder: Holder, service: str) -> None:
        """Whether the caller may make this call at this moment."""
        try:
            if holder.principal.role not in _ROLES.get(service, ()):
                raise AccessDenied(
                    f"A certificate of the role {holder.principal.role.value!r} can't call "
                    f"{service}",
                    reason=Denial.ROLE,
                )
            self._registry.check(holder)
        except FedreidError as error:
            self._note_denied(holder.principal.uri, service, error, Denial.CERTIFICATE)
            raise

    def _note_denied(
        self, caller: str, service: str, error: FedreidError, otherwise: Denial
    ) -> None:
        """Count and note a refusal; ``otherwise`` is the reason of one that names none itself."""
        reason = error.reason if isinstance(error, AccessDenied) else otherwise
        ACCESS_DENIED.labels(reason.value).inc()
        self._denials.note(caller, service, error.what)


def _peer(context: Any) -> Holder:
    properties = context.auth_context()
    if properties.get("ssl_tls_version", [b""])[0] != _TLS_VERSION:
        raise AccessDenied("Only TLS 1.3 is spoken here", reason=Denial.CERTIFICATE)
    if properties.get("ssl_session_reused", [b""])[0] != b"false":
        # A resumed session carries what was checked when it began, and agents never resume one.
        raise AccessDenied(
            "A connection must begin with a whole TLS handshake", reason=Denial.CERTIFICATE
        )
    pem = properties.get("x509_pem_cert", [b""])[0]
    return _holder_of_pem(pem)


async def _only(messages: AsyncGenerator[Any, None]) -> Any:
    """The message of a unary call; what comes after it is never taken."""
    async with contextlib.aclosing(messages):
        request = await anext(messages, None)
    if request is None:
        raise UsageError("The call holds no message")
    return request


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
