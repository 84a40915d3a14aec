"""Does an error arrive on the other side of a real connection as the error that it was?"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio
import pytest

from fedreid.errors import (
    ConnectionFailed,
    FedreidError,
    NameRefused,
    Refusal,
    UpdateRefused,
    grpc_status_name,
)
from fedreid.limits import MIB
from fedreid.names import Role
from fedreid.pki.identity import Identity
from fedreid.wire.failures import Answer, failure_message, failure_metadata, failure_of
from silo_agent.trust.channel import calling
from tests.parties import Federation

METHOD = "/test/Fail"


def kinds(root: type[FedreidError] = FedreidError) -> list[type[FedreidError]]:
    """Every class of the tree below ``root``, with it."""
    found = [root]
    for child in root.__subclasses__():
        found += kinds(child)
    return found


def example(kind: type[FedreidError]) -> FedreidError:
    if issubclass(kind, UpdateRefused):
        return kind(Refusal.NORM, "It is too large", why="a reason", next_step="A step.")
    if issubclass(kind, NameRefused):
        return kind(what="silo name", text="Not A Name")
    return kind("It went wrong", why="größer als erlaubt…", next_step="Do this.")


class FailingServer:
    """Fails every call as the coordinator's access wrapper does."""

    def __init__(self, identity: Identity) -> None:
        self.error: FedreidError | None = None
        self.metadata: tuple[tuple[str, str], ...] = ()
        self.status = grpc.StatusCode.UNKNOWN
        self._server = grpc.server(ThreadPoolExecutor(1))
        handler: Any = grpc.unary_unary_rpc_method_handler(self._fail)
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("test", {"Fail": handler}),)
        )
        credentials = grpc.ssl_server_credentials(
            [(identity.key_pem, identity.certificate_pem)],
            root_certificates=identity.authorities_pem,
            require_client_auth=True,
        )
        self.address = f"127.0.0.1:{self._server.add_secure_port('127.0.0.1:0', credentials)}"
        self._server.start()

    def raising(self, error: FedreidError) -> None:
        reason = error.reason.value if isinstance(error, UpdateRefused) else ""
        self.error = error
        self.status = grpc.StatusCode[grpc_status_name(error)]
        self.metadata = failure_metadata(error.code, reason)

    def close(self) -> None:
        self._server.stop(None).wait()

    def _fail(self, request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata(self.metadata)
        context.abort(self.status, "" if self.error is None else failure_message(self.error))
        raise AssertionError


@pytest.fixture(scope="module")
def server(federation: Federation) -> Iterator[FailingServer]:
    """A server that fails as told."""
    failing = FailingServer(federation.server())
    yield failing
    failing.close()


@pytest.fixture(scope="module")
def silo(federation: Federation) -> Identity:
    """Who calls it."""
    return federation.leaf(Role.SILO, "north")


def credentials(identity: Identity) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        identity.authorities_pem, identity.key_pem, identity.certificate_pem
    )


def failed(server: FailingServer, identity: Identity) -> FedreidError:
    """The failure as the synchronous client of the admin commands has it."""
    with (
        grpc.secure_channel(server.address, credentials(identity)) as channel,
        pytest.raises(grpc.RpcError) as error,
    ):
        call: Any = channel.unary_unary(METHOD)
        call(b"", timeout=10)
    return failure_of(error.value, server.address)


def failed_aio(server: FailingServer, identity: Identity) -> grpc.RpcError:
    """The failure as the agent's client has it."""

    async def call() -> grpc.RpcError:
        async with grpc.aio.secure_channel(server.address, credentials(identity)) as channel:
            with pytest.raises(grpc.RpcError) as error:
                fail: Any = channel.unary_unary(METHOD)
                await fail(b"", timeout=10)
            return error.value

    return asyncio.run(call())


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.code)
def test_every_error_class_survives_the_wire_as_itself(
    server: FailingServer, silo: Identity, kind: type[FedreidError]
) -> None:
    sent = example(kind)
    server.raising(sent)
    came = failed(server, silo)
    assert type(came) is kind
    assert came.code == sent.code
    assert came.exit_code == sent.exit_code
    assert str(sent) in str(came)


@pytest.mark.parametrize("reason", Refusal, ids=lambda reason: reason.value)
def test_every_refusal_keeps_its_reason(
    server: FailingServer, silo: Identity, reason: Refusal
) -> None:
    server.raising(UpdateRefused(reason, "No"))
    for came in (failed(server, silo), failure_of(failed_aio(server, silo), "a:1")):
        assert isinstance(came, UpdateRefused)
        assert came.reason is reason


def test_a_refusal_whose_reason_a_newer_coordinator_made_up_is_told_all_the_same(
    server: FailingServer, silo: Identity
) -> None:
    server.raising(UpdateRefused(Refusal.NORM, "It is too new"))
    server.metadata = failure_metadata(UpdateRefused.code, "made_up_later")
    came = failed(server, silo)
    assert isinstance(came, FedreidError)
    assert "too new" in str(came)


def test_an_error_of_an_unknown_code_is_told_with_its_words(
    server: FailingServer, silo: Identity
) -> None:
    server.raising(FedreidError("Something quite new"))
    server.metadata = failure_metadata("made_up_later", "")
    server.status = grpc.StatusCode.FAILED_PRECONDITION
    came = failed(server, silo)
    assert isinstance(came, ConnectionFailed)
    assert "Something quite new" in str(came)


def test_an_error_that_quotes_a_long_text_still_arrives_as_itself(
    server: FailingServer, silo: Identity
) -> None:
    sent = UpdateRefused(Refusal.TENSOR_NAMES, "The name is too long: " + "n" * 20_000)
    server.raising(sent)
    came = failed(server, silo)
    assert isinstance(came, UpdateRefused)
    assert came.reason is Refusal.TENSOR_NAMES


def test_a_coordinator_that_is_not_there_is_a_retryable_connection_error(
    federation: Federation, silo: Identity
) -> None:
    gone = FailingServer(federation.server())
    gone.close()
    came = failed(gone, silo)
    assert isinstance(came, ConnectionFailed)
    assert came.retryable
    assert gone.address in came.what


def test_a_coordinator_of_another_federation_is_named_as_the_likely_cause(
    federation: Federation, silo: Identity
) -> None:
    stranger = FailingServer(Federation.founded(now_s=federation.now_s).server())
    try:
        came = failed(stranger, silo)
    finally:
        stranger.close()
    assert isinstance(came, ConnectionFailed)
    assert "not issued by this federation" in came.why


def test_the_agent_asks_again_after_what_the_coordinator_could_not_do(
    server: FailingServer, silo: Identity
) -> None:
    for kind in kinds():
        sent = example(kind)
        server.raising(sent)
        error = failed_aio(server, silo)
        with pytest.raises(FedreidError) as came, calling("a:1"):
            raise error
        if sent.code in ("access_denied", "token_refused", "update_refused"):
            assert type(came.value) is kind
        elif sent.code in ("storage", "run", "dataset", "usage", "job_failed"):
            assert isinstance(came.value, ConnectionFailed)
            assert "It went wrong" in str(came.value)


def test_a_refusal_in_the_middle_of_a_stream_is_heard_by_its_reason(
    federation: Federation, silo: Identity
) -> None:
    async def refuse(messages: AsyncIterator[bytes], context: Any) -> None:
        await anext(messages)
        await context.abort(
            grpc.StatusCode.INVALID_ARGUMENT, "No", failure_metadata("update_refused", "norm")
        )

    async def messages() -> AsyncIterator[bytes]:
        for _ in range(8):
            yield bytes(MIB)

    async def refusals() -> list[FedreidError]:
        server = grpc.aio.server()
        handler: Any = grpc.stream_unary_rpc_method_handler(refuse)
        generic = grpc.method_handlers_generic_handler("test", {"Fail": handler})
        server.add_generic_rpc_handlers((generic,))
        identity = federation.server()
        pair = [(identity.key_pem, identity.certificate_pem)]
        port = server.add_secure_port(
            "127.0.0.1:0", grpc.ssl_server_credentials(pair, identity.authorities_pem, True)
        )
        await server.start()
        heard = []
        async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials(silo)) as channel:
            send: Any = channel.stream_unary(METHOD)
            for _ in range(50):  # without Answer, about half are heard as INTERNAL
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await Answer(send(messages()))
                heard.append(failure_of(refused.value, "a:1"))
        await server.stop(None)
        return heard

    for error in asyncio.run(refusals()):
        assert isinstance(error, UpdateRefused)
        assert error.reason is Refusal.NORM
