"""Do operators and the coordinator hear of a silo's work, and does a lost round end it?"""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from fedreid.jobs import Progress
from fedreid.v1 import federation_pb2 as pb
from silo_agent import signs
from silo_agent.contact import Contact
from silo_agent.signs import RoundLost, Signs
from tests.parties import FakeClock

Answer = Callable[[], pb.HeartbeatResponse]


class Stub:
    """A coordinator that answers heartbeats one after the other, the last answer for ever."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.heard: list[pb.HeartbeatRequest] = []
        self.enough = asyncio.Event()

    async def Heartbeat(self, request: pb.HeartbeatRequest, timeout: float) -> Any:  # noqa: N802
        """Answer one."""
        self.heard.append(request)
        if len(self._answers) == 1:
            self.enough.set()
            return self._answers[0]()
        return self._answers.pop(0)()


def wanted() -> pb.HeartbeatResponse:
    return pb.HeartbeatResponse(wanted=True)


def over() -> pb.HeartbeatResponse:
    return pb.HeartbeatResponse(wanted=False)


def away() -> pb.HeartbeatResponse:
    nothing = grpc.aio.Metadata()
    raise grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, nothing, nothing)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What an operator reads; heartbeats follow each other at once."""
    monkeypatch.setattr(signs, "HEARTBEAT_S", 0.0)
    return []


def signs_of(said: list[str]) -> Signs:
    return Signs(Contact(FakeClock(), said.append), said.append, lambda doing, share: None)


def test_the_same_line_twice_is_said_once(said: list[str]) -> None:
    told = signs_of(said)
    for line in ("training", "training", "delivered", "training"):
        told.tell(line)
    assert said == ["training", "delivered", "training"]


def test_heartbeats_say_what_is_done_and_how_far_it_has_come(said: list[str]) -> None:
    async def story() -> pb.HeartbeatRequest:
        told, stub = signs_of(said), Stub(wanted)
        told.note_progress(Progress(phase="standalone", done=1, total=4))
        async with told.heartbeats(stub, "spring", 3):  # type: ignore[arg-type]
            await stub.enough.wait()
        return stub.heard[-1]

    expected = pb.HeartbeatRequest(run="spring", round=3, phase="training", progress=0.25)
    assert asyncio.run(story()) == expected


def test_work_goes_on_while_the_coordinator_is_away_and_that_is_said_once(said: list[str]) -> None:
    async def story() -> None:
        stub = Stub(away, away, wanted)
        async with signs_of(said).heartbeats(stub, "spring", 3):  # type: ignore[arg-type]
            await stub.enough.wait()

    asyncio.run(story())
    assert said == ["training goes on; the coordinator is away (UNAVAILABLE)"]


def test_a_round_that_is_over_ends_the_work_and_nothing_else(said: list[str]) -> None:
    async def story() -> None:
        told, never = signs_of(said), asyncio.Event()
        with pytest.raises(RoundLost):
            async with told.heartbeats(Stub(wanted, over), "spring", 3):  # type: ignore[arg-type]
                await never.wait()
        here = asyncio.current_task()
        assert here is not None and here.cancelling() == 0

    asyncio.run(story())


def test_work_that_belongs_to_no_round_is_never_ended(said: list[str]) -> None:
    async def story() -> None:
        stub = Stub(over, over)
        async with signs_of(said).heartbeats(stub, "", 0):  # type: ignore[arg-type]
            await stub.enough.wait()

    asyncio.run(story())


def test_work_that_is_cancelled_from_outside_is_no_lost_round(said: list[str]) -> None:
    async def working(stub: Stub) -> None:
        async with signs_of(said).heartbeats(stub, "spring", 3):  # type: ignore[arg-type]
            await asyncio.Event().wait()

    async def story() -> None:
        stub = Stub(wanted)
        work = asyncio.create_task(working(stub))
        await stub.enough.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(story())
