"""How is a call answered that nobody serves? Before gRPC looks at its name.

gRPC's asyncio server decodes the name of every call that it does not know, and when that is no
UTF-8 it stops for good: one request of anybody with a certificate, even a revoked one, would end
the service (grpcio 1.85.1). It asks for such calls by a method of its own, which is overridden
here, so that they never reach it. ``tests/coordinator/trust/test_known_calls.py`` holds this
against each new release.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio
from grpc._cython import cygrpc
from grpc.aio._server import Server


class _KnownCalls(cygrpc.AioServer):  # type: ignore[misc]  # Cython tells no types
    """Serves the calls that were registered, by name."""

    async def _request_call(self) -> Any:
        """Take each call that was not registered and refuse it; give none to the server.

        Its status is waited for before the next is taken, so that they cost one at a time.
        """
        while True:
            state = await super()._request_call()
            context = cygrpc._ServicerContext(state, None, None, cygrpc.get_working_loop())
            with contextlib.suppress(grpc.aio.BaseError):
                await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Nobody serves this call")


class _Server(Server):
    def __init__(
        self, interceptors: Sequence[grpc.aio.ServerInterceptor], options: Sequence[tuple[str, int]]
    ) -> None:
        self._loop = cygrpc.get_working_loop()
        self._server = _KnownCalls(self._loop, None, (), interceptors, tuple(options), None)


def server_of_known_calls(
    interceptors: Sequence[grpc.aio.ServerInterceptor], options: Sequence[tuple[str, int]] = ()
) -> grpc.aio.Server:
    """GRPC's asyncio server, of which the calls that nobody serves are kept away."""
    server: Any = _Server(interceptors, options)
    assert isinstance(server, grpc.aio.Server)
    return server
