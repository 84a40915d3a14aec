"""Is every call counted once, under its method and its end?"""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path

import grpc
import grpc.aio
import pytest
from prometheus_client import REGISTRY

from fedreid.v1 import admin_pb2, admin_pb2_grpc, federation_pb2, federation_pb2_grpc
from tests.coordinator.trust.assembled import Assembled

ADMIN = {"grpc_service": "fedreid.v1.Admin", "grpc_method": "ListSilos", "grpc_type": "unary"}
HELLO = {"grpc_service": "fedreid.v1.Federation", "grpc_method": "Hello", "grpc_type": "unary"}
FETCH = {
    "grpc_service": "fedreid.v1.Federation",
    "grpc_method": "FetchModel",
    "grpc_type": "server_stream",
}
UPLOAD = {
    "grpc_service": "fedreid.v1.Federation",
    "grpc_method": "SendUpload",
    "grpc_type": "client_stream",
}


def value(name: str, labels: dict[str, str]) -> float:
    found = REGISTRY.get_sample_value(f"grpc_server_{name}", labels)
    assert found is not None, (name, labels)
    return found


def handled(method: dict[str, str], code: str) -> float:
    return value("handled_total", {**method, "grpc_code": code})


def told(folder: Path, story: Callable[[Assembled], Coroutine[None, None, None]]) -> None:
    async def all_of_it() -> None:
        assembled = Assembled(folder)
        async with assembled.serving():
            await story(assembled)

    asyncio.run(all_of_it())


@pytest.mark.parametrize("method", [ADMIN, HELLO, FETCH, UPLOAD], ids=lambda m: m["grpc_method"])
def test_every_method_is_there_from_the_start(method: dict[str, str]) -> None:
    for name in ("started_total", "msg_received_total", "msg_sent_total"):
        assert value(name, method) >= 0
    for code in ("OK", "Canceled", "PermissionDenied", "Internal", "DeadlineExceeded"):
        assert handled(method, code) >= 0


def test_a_call_is_counted_with_its_messages_its_end_and_its_time(tmp_path: Path) -> None:
    async def story(assembled: Assembled) -> None:
        names = ("started_total", "msg_received_total", "msg_sent_total", "handling_seconds_count")
        before = {name: value(name, ADMIN) for name in names}
        answered = handled(ADMIN, "OK")
        async with assembled.channel(assembled.admin) as channel:
            await admin_pb2_grpc.AdminStub(channel).ListSilos(admin_pb2.ListSilosRequest())
        assert {name: value(name, ADMIN) - was for name, was in before.items()} == dict.fromkeys(
            names, 1.0
        )
        assert handled(ADMIN, "OK") == answered + 1

    told(tmp_path, story)


def test_what_access_refuses_is_counted_under_its_status(tmp_path: Path) -> None:
    async def story(assembled: Assembled) -> None:
        before = handled(HELLO, "PermissionDenied")
        async with assembled.channel(assembled.admin) as channel:
            with pytest.raises(grpc.aio.AioRpcError):
                await federation_pb2_grpc.FederationStub(channel).Hello(
                    federation_pb2.HelloRequest(agent_version="0.1")
                )
        assert handled(HELLO, "PermissionDenied") == before + 1

    told(tmp_path, story)


def test_streams_both_ways_are_counted_under_what_ended_them(tmp_path: Path) -> None:
    async def story(assembled: Assembled) -> None:
        silo = await assembled.enrolled("north")
        before = {m["grpc_method"]: value("started_total", m) for m in (FETCH, UPLOAD)}
        fine = [handled(m, "OK") for m in (FETCH, UPLOAD)]
        async with assembled.channel(silo) as channel:
            stub = federation_pb2_grpc.FederationStub(channel)
            with pytest.raises(grpc.aio.AioRpcError):
                async for _ in stub.FetchModel(federation_pb2.FetchModelRequest(model_digest="x")):
                    pass
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.SendUpload(iter([federation_pb2.SendUploadRequest(upload_id="x")]))
        for method in (FETCH, UPLOAD):
            assert value("started_total", method) == before[method["grpc_method"]] + 1
        assert [handled(m, "OK") for m in (FETCH, UPLOAD)] == fine

    told(tmp_path, story)
