"""Is everything that leaves written down before it does, and nothing sent that is not?"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio
import msgspec
import numpy as np
import pytest

from fedreid.audit import AuditLine, AuditLog, read_audit
from fedreid.contract import EvaluationResult
from fedreid.errors import ConnectionFailed, PolicyRefused, Refusal, UpdateRefused
from fedreid.v1 import federation_pb2 as pb
from fedreid.wire.failures import failure_metadata
from fedreid.wire.tensors import FloatArray, save_tensors
from silo_agent.config import AgentConfig, Folders, Policy
from silo_agent.delivery import Delivery
from silo_agent.held import Held
from silo_agent.outbox import UPDATE_FILE, Outbox
from tests.parties import FakeClock
from tests.silo_agent.example_round import RESULT, ROUND

ADDRESS = "coordinator.example:443"
BASE: dict[str, FloatArray] = {"a.weight": np.arange(8, dtype=np.float32)}
SECRET = np.frombuffer(b"classifier-row-of-person-0042!!!", dtype=np.float32)


class Failed(grpc.aio.AioRpcError):
    """A call that the coordinator refused for its content."""

    def __init__(self, reason: Refusal) -> None:
        told = failure_metadata(UpdateRefused.code, reason.value)
        super().__init__(
            grpc.StatusCode.INVALID_ARGUMENT, grpc.aio.Metadata(), grpc.aio.Metadata(*told), "no"
        )


class FakeCall:
    """A call whose turn it is at once, or that tells of none before its answer."""

    def __init__(self, answer: Coroutine[Any, Any, Any], *, takes_turns: bool) -> None:
        self._answer = answer
        self._takes_turns = takes_turns

    async def initial_metadata(self) -> None:
        """They are there, if they ever come."""
        assert self._takes_turns, "an older coordinator sends them with its answer"

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._answer.__await__()


@dataclass
class FakeCoordinator:
    """A stub that notes every call, with the audit log as it stood at that moment."""

    audit: Path
    opening: Any = pb.UPLOAD_STATE_SEND
    offset: int = 0
    takes_turns: bool = True
    answer: Any = pb.UPLOAD_STATE_ACCEPTED
    refuses: Refusal | None = None
    breaks: bool = False
    calls: list[tuple[str, Any, list[str]]] = field(default_factory=list)
    payload: bytes = b""

    def _note(self, name: str, request: Any) -> None:
        self.calls.append((name, request, events(self.audit)))

    async def OpenUpload(self, request: Any, timeout: float) -> Any:  # noqa: N802
        """Answer as told."""
        self._note("OpenUpload", request)
        return pb.OpenUploadResponse(
            state=self.opening, upload_id="u", offset=self.offset, takes_turns=self.takes_turns
        )

    def SendUpload(self, requests: AsyncIterator[Any]) -> "FakeCall":  # noqa: N802
        """Take the payload, or break off."""
        return FakeCall(self._take(requests), takes_turns=self.takes_turns)

    async def _take(self, requests: AsyncIterator[Any]) -> Any:
        self._note("SendUpload", await anext(requests))
        async for message in requests:
            self.payload += message.chunk.data
        if self.breaks:
            raise grpc.aio.AioRpcError(
                grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "broke"
            )
        if self.refuses is not None:
            raise Failed(self.refuses)
        return pb.SendUploadResponse(state=self.answer)

    async def ReportEvaluation(self, request: Any, timeout: float) -> Any:  # noqa: N802
        """Take figures."""
        self._note("ReportEvaluation", request)
        if self.refuses is not None:
            raise Failed(self.refuses)
        return pb.ReportEvaluationResponse()


def lines(audit: Path, event: str = "") -> list[AuditLine]:
    return [line for line in read_audit(audit) if not event or line.event == event]


def events(audit: Path) -> list[str]:
    return [line.event for line in lines(audit)]


@dataclass
class Silo:
    """An agent's folder with a trained round in its outbox."""

    folders: Folders
    clock: FakeClock = field(default_factory=FakeClock)
    told: list[str] = field(default_factory=list)

    def delivery(self, policy: Policy | None = None) -> Delivery:
        """As an agent that starts has it."""
        return Delivery(
            folders=self.folders,
            config=AgentConfig(coordinator=ADDRESS, dataset="/d", policy=policy or Policy()),
            outbox=Outbox(self.folders),
            audit=AuditLog(self.folders.audit, self.clock),
            clock=self.clock,
            tell=self.told.append,
            doing=lambda phase, share: None,
        )

    @property
    def base(self) -> Held:
        """The model that the round started from."""
        path = self.folders.models / "base.safetensors"
        save_tensors(path, BASE)
        return Held(path=str(path), digest="b" * 64, run="spring", round=6, version=6)

    def update(self, stub: FakeCoordinator, policy: Policy | None = None) -> bool:
        """Send the round's update."""
        sent: bool = self._run(lambda d: d.update(cast(Any, stub), ROUND, self.base), policy)
        return sent

    def figures(self, stub: FakeCoordinator, *results: EvaluationResult) -> None:
        """Send figures."""
        self._run(lambda d: d.figures(cast(Any, stub), "spring", 7, results), None)

    def _run(self, act: Callable[[Delivery], Any], policy: Policy | None) -> Any:
        async def run() -> Any:
            return await act(self.delivery(policy))

        return asyncio.run(run())


@pytest.fixture
def silo(tmp_path: Path) -> Silo:
    """A silo whose update file holds more than may leave."""
    folders = Folders(tmp_path)
    outbox = Outbox(folders)
    built = outbox.begin("spring", 7)
    save_tensors(built / UPDATE_FILE, {**BASE, "classifier.weight": SECRET})
    outbox.put(built, ROUND)
    return Silo(folders)


@pytest.fixture
def stub(silo: Silo) -> FakeCoordinator:
    """A coordinator that takes what comes."""
    return FakeCoordinator(silo.folders.audit)


def test_an_update_is_written_down_before_the_first_call_about_it(
    silo: Silo, stub: FakeCoordinator
) -> None:
    assert silo.update(stub)
    assert [(name, log) for name, _, log in stub.calls] == [
        ("OpenUpload", ["update.sent"]),
        ("SendUpload", ["update.sent"]),
    ]
    assert events(stub.audit) == ["update.sent", "update.outcome"]


def test_a_coordinator_that_knows_no_turns_is_not_waited_for(silo: Silo) -> None:
    older = FakeCoordinator(silo.folders.audit, takes_turns=False)
    assert silo.update(older)
    assert older.payload == BASE["a.weight"].tobytes()


def test_the_log_says_of_an_update_what_the_wire_carries(silo: Silo, stub: FakeCoordinator) -> None:
    silo.update(stub)
    _, request, _ = stub.calls[0]
    (line,) = lines(stub.audit, "update.sent")
    noted = line.fields
    assert noted["destination"] == ADDRESS
    assert (noted["run"], noted["round"]) == (request.run, request.round) == ("spring", 7)
    assert noted["payload_digest"] == request.manifest.payload_digest
    assert noted["byte_count"] == request.manifest.byte_count == len(stub.payload)
    assert noted["tensor_count"] == len(request.manifest.tensors)
    assert noted["report"] == msgspec.to_builtins(ROUND.report)
    sent = {field.name: value for field, value in request.report.ListFields()}
    assert {"privacy": None, **sent} == noted["report"]


def test_a_classifier_in_the_update_file_does_not_get_onto_the_wire(
    silo: Silo, stub: FakeCoordinator
) -> None:
    silo.update(stub)
    assert stub.payload == BASE["a.weight"].tobytes()
    sent = b"".join(request.SerializeToString() for _, request, _ in stub.calls) + stub.payload
    assert SECRET.tobytes() not in sent and b"classifier" not in sent


def test_an_upload_that_broke_off_is_one_line_however_often_it_goes_on(
    silo: Silo, stub: FakeCoordinator
) -> None:
    policy = Policy(bytes_per_day=32, rounds_per_day=1)
    stub.breaks = True
    for _ in range(3):
        with pytest.raises(ConnectionFailed):
            silo.update(stub, policy)
    stub.breaks, stub.offset, stub.payload = False, 16, b""
    assert silo.update(stub, policy)
    assert stub.payload == BASE["a.weight"].tobytes()[16:]
    assert events(stub.audit) == ["update.sent", "update.outcome"]


@pytest.mark.parametrize(
    "policy",
    [
        Policy(bytes_per_day=31),
        Policy(minimum_images=11),
        Policy(tensors=("b.*",)),
        Policy(encodings=("bf16",)),
        Policy(coordinators=("elsewhere.example:443",)),
    ],
    ids=["bytes", "images", "tensors", "encodings", "coordinators"],
)
def test_what_the_policy_keeps_here_is_neither_sent_nor_announced(
    silo: Silo, stub: FakeCoordinator, policy: Policy
) -> None:
    with pytest.raises(PolicyRefused):
        silo.update(stub, policy)
    assert stub.calls == []
    assert events(stub.audit) == []


@pytest.mark.parametrize(
    ("opening", "answer", "outcome"),
    [
        (pb.UPLOAD_STATE_SEND, pb.UPLOAD_STATE_ACCEPTED, "accepted"),
        (pb.UPLOAD_STATE_SEND, pb.UPLOAD_STATE_STALE, "too_late"),
        (pb.UPLOAD_STATE_ACCEPTED, None, "accepted"),
        (pb.UPLOAD_STATE_STALE, None, "too_late"),
    ],
)
def test_what_became_of_an_update_is_written_down(
    silo: Silo, stub: FakeCoordinator, opening: Any, answer: Any, outcome: str
) -> None:
    stub.opening, stub.answer = opening, answer
    assert silo.update(stub)
    (line,) = lines(stub.audit, "update.outcome")
    assert line.fields["outcome"] == outcome
    assert line.fields["payload_digest"] == stub.calls[0][1].manifest.payload_digest


def test_a_refused_update_is_written_down_with_the_reason(
    silo: Silo, stub: FakeCoordinator
) -> None:
    stub.refuses = Refusal.NORM
    assert not silo.update(stub)
    (line,) = lines(stub.audit, "update.outcome")
    assert (line.fields["outcome"], line.fields["reason"]) == ("refused", "norm")


def test_figures_are_written_down_before_they_are_sent(silo: Silo, stub: FakeCoordinator) -> None:
    silo.figures(stub, RESULT)
    ((name, request, log),) = stub.calls
    assert (name, log) == ("ReportEvaluation", ["figures.sent"])
    (line,) = lines(stub.audit)
    (sent,) = request.evaluations
    assert line.fields["local"] == {
        "rank1": sent.rank1, "rank5": sent.rank5, "rank10": sent.rank10, "map": sent.map,
        "minp": sent.minp, "queries": sent.queries,
    }  # fmt: skip
    assert (line.fields["run"], line.fields["round"]) == (request.run, request.round)
    assert line.fields["destination"] == ADDRESS


def test_figures_that_come_too_late_do_not_end_the_agent(silo: Silo, stub: FakeCoordinator) -> None:
    stub.refuses = Refusal.REPORT  # another run is on
    silo.figures(stub, RESULT)
    assert "refused the figures" in silo.told[-1]


def test_that_nothing_could_be_measured_is_written_down_too(
    silo: Silo, stub: FakeCoordinator
) -> None:
    silo.figures(stub)
    (line,) = lines(stub.audit)
    assert line.fields == {"destination": ADDRESS, "run": "spring", "round": 7}
