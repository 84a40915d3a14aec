"""How many calls come, how do they end, and how long do they take? The usual gRPC server metrics.

The outermost interceptor, so that what access refuses is counted too. Series of a method are looked
up once: a message costs one addition.
"""

from __future__ import annotations  # gRPC's classes take type arguments in their stubs only

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2
from prometheus_client import Counter, Histogram

from coordinator import metrics
from fedreid.v1 import admin_pb2, enrolment_pb2, federation_pb2

_FILES = (enrolment_pb2, federation_pb2, admin_pb2, health_pb2)
_KIND = {
    (False, False): "unary",
    (True, False): "client_stream",
    (False, True): "server_stream",
    (True, True): "bidi_stream",
}
_GO_NAMES = {"OK": "OK", "CANCELLED": "Canceled"}
_CODES = {
    code.value[0]: _GO_NAMES.get(code.name, code.name.title().replace("_", ""))
    for code in grpc.StatusCode
}
"""Names of statuses as Go's library writes them, which published boards and rules look for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Figures:
    """The series of one method."""

    started: Counter
    received: Counter
    sent: Counter
    seconds: Histogram
    handled: dict[int, Counter]

    @classmethod
    def of(cls, kind: str, service: str, method: str) -> _Figures:
        labels = (kind, service, method)
        return cls(
            started=metrics.CALLS_STARTED.labels(*labels),
            received=metrics.MESSAGES_RECEIVED.labels(*labels),
            sent=metrics.MESSAGES_SENT.labels(*labels),
            seconds=metrics.CALL_SECONDS.labels(*labels),
            handled={n: metrics.CALLS_HANDLED.labels(*labels, name) for n, name in _CODES.items()},
        )

    def end(self, code: int, began_s: float) -> None:
        self.handled.get(code, self.handled[grpc.StatusCode.UNKNOWN.value[0]]).inc()
        self.seconds.observe(time.perf_counter() - began_s)


_METHODS = {
    f"/{service.full_name}/{method.name}": _Figures.of(
        _KIND[method.client_streaming, method.server_streaming], service.full_name, method.name
    )
    for file in _FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
"""Every call that is served, so that all of their series are there from the start."""


class Calls(grpc.aio.ServerInterceptor):
    """Counts every call."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Count the calls of a method that goes through :class:`coordinator.trust.access.Access`.

        Access tells gRPC of each method as one of streamed requests.
        """
        handler = await continuation(handler_call_details)
        figures = _METHODS.get(handler_call_details.method)
        if handler is None or figures is None:
            return handler
        if handler.response_streaming:
            behaviour = _streamed(figures, handler.stream_stream)
            return grpc.stream_stream_rpc_method_handler(
                behaviour, handler.request_deserializer, handler.response_serializer
            )
        return grpc.stream_unary_rpc_method_handler(
            _single(figures, handler.stream_unary),
            handler.request_deserializer,
            handler.response_serializer,
        )


class _Requests:
    """A call's messages, counted. No generator: one that is left halfway costs a task to end."""

    def __init__(self, requests: AsyncIterator[bytes], figures: _Figures) -> None:
        self._requests, self._figures = requests, figures

    def __aiter__(self) -> _Requests:
        return self

    async def __anext__(self) -> bytes:
        message = await anext(self._requests)
        self._figures.received.inc()
        return message


class _Context:
    """A call's context that counts what is written."""

    def __init__(self, context: Any, figures: _Figures) -> None:
        self._context, self._figures = context, figures

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def write(self, message: Any) -> None:
        await self._context.write(message)
        self._figures.sent.inc()


def _single(figures: _Figures, behaviour: Any) -> Any:
    async def call(requests: AsyncIterator[bytes], context: Any) -> Any:
        async def answered() -> Any:
            answer = await behaviour(_Requests(requests, figures), context)
            figures.sent.inc()
            return answer

        return await _measured(figures, context, answered)

    return call


def _streamed(figures: _Figures, behaviour: Any) -> Any:
    async def call(requests: AsyncIterator[bytes], context: Any) -> None:
        async def answered() -> None:
            await behaviour(_Requests(requests, figures), _Context(context, figures))

        await _measured(figures, context, answered)

    return call


async def _measured(figures: _Figures, context: Any, answered: Callable[[], Any]) -> Any:
    figures.started.inc()
    began_s = time.perf_counter()
    code = grpc.StatusCode.UNKNOWN.value[0]
    try:
        answer = await answered()
        code = grpc.StatusCode.OK.value[0]
        return answer
    except grpc.aio.AbortError:
        code = _number(context.code())
        raise
    except asyncio.CancelledError:
        code = grpc.StatusCode.CANCELLED.value[0]
        raise
    finally:
        figures.end(code, began_s)


def _number(code: Any) -> int:
    number: int = code.value[0] if isinstance(code, grpc.StatusCode) else int(code)
    return number
