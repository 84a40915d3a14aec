"""How does an error cross the wire, and become the same error on the other side?"""

from collections.abc import Generator
from typing import Any

import grpc
import grpc.aio

from fedreid import errors
from fedreid.errors import (
    ConnectionFailed,
    FedreidError,
    NameRefused,
    Refusal,
    UpdateRefused,
)

_CODE_KEY = "fedreid-code"
_REASON_KEY = "fedreid-reason"
_MESSAGE_CHARACTERS = 1000
_KINDS: dict[str, type[FedreidError]] = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, FedreidError)
}
"""Every error of the tree by its code; the two with arguments of their own are built apart."""
_PASSING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
}


def failure_message(error: FedreidError) -> str:
    """The status message of an error; gRPC drops a status whose headers are too long."""
    return str(error)[:_MESSAGE_CHARACTERS]


def failure_metadata(code: str, reason: str) -> tuple[tuple[str, str], ...]:
    """Trailing metadata by which the other side knows the error again."""
    return ((_CODE_KEY, code), (_REASON_KEY, reason))


def failure_of(failed: grpc.RpcError, address: str) -> FedreidError:
    """The error of our tree behind a failed call to ``address``."""
    error: Any = failed  # both of gRPC's clients raise errors that are calls, too
    told = {str(key): str(value) for key, value in error.trailing_metadata() or ()}
    message = error.details() or error.code().name
    code = told.get(_CODE_KEY, "")
    if code == UpdateRefused.code:
        return UpdateRefused(_reason(told.get(_REASON_KEY, "")), message)
    if code == NameRefused.code:
        return NameRefused.retold(message)
    if code in _KINDS:
        return _KINDS[code](message)
    if error.code() in _PASSING:
        return ConnectionFailed(
            f"The coordinator at {address} can't be reached",
            why=_likely_cause(message),
            next_step="Check the address, the firewall, and that the coordinator runs.",
        )
    return ConnectionFailed(
        f"The coordinator at {address} failed at a call ({error.code().name}: {message})",
        next_step="Tell its operators; its log says more.",
    )


class Answer:
    """The answer to a stream of messages; where it fails, it fails as the server said.

    gRPC's asyncio client puts an internal error of its own in the place of a status that arrived
    while a message was being written, or the other way around
    (https://github.com/grpc/grpc/issues/36066). Who asks to be told of the end is told the first.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._first: grpc.aio.AioRpcError | None = None
        call.add_done_callback(self._note)

    async def initial_metadata(self) -> Any:
        """What the server sends before the answer."""
        return await self._call.initial_metadata()

    def __await__(self) -> Generator[Any, None, Any]:
        return self._wait().__await__()

    async def _wait(self) -> Any:
        try:
            return await self._call
        except grpc.aio.AioRpcError as failed:
            if self._first is None or failed.code() is not grpc.StatusCode.INTERNAL:
                raise
            raise self._first from failed

    def _note(self, ended: Any) -> None:
        failure = _failure(ended)
        try:
            failure.send(None)  # an ended call knows all of this: nothing is waited for
        except StopIteration as returned:
            if returned.value.code() is not grpc.StatusCode.OK:
                self._first = returned.value


async def _failure(ended: Any) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(
        code=await ended.code(),
        initial_metadata=await ended.initial_metadata(),
        trailing_metadata=await ended.trailing_metadata(),
        details=await ended.details(),
    )


def _reason(text: str) -> Refusal:
    """A reason from the wire; one that a newer coordinator has made up is still a refusal."""
    return Refusal(text) if text in {reason.value for reason in Refusal} else Refusal.MANIFEST


def _likely_cause(message: str) -> str:
    lowered = message.lower()
    if "internal error from core" in lowered:
        # gRPC's client says so when a stream ends while it still writes, see Answer: the status
        # with the reason may come too late to be seen.
        return "it ended the stream before everything was sent"
    if "certificate_verify_failed" in lowered or "certificate verify failed" in lowered:
        return (
            "its certificate was not issued by this federation's authority: another federation "
            "answers there, or a proxy on the way opens TLS"
        )
    if "wrong_version_number" in lowered:
        return "what answers there does not speak TLS"
    return message
