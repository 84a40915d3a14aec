"""How does what a silo gives leave it? Named by egress, written into the audit log, then sent.

Everything that a call of this agent carries of the silo's images goes through here: the update
with its numbers, and the figures of measured models. What the other calls carry (version, phase,
progress) is named in docs/egress.md.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from fedreid import faults
from fedreid.audit import AuditLog
from fedreid.clock import Clock
from fedreid.contract import EvaluationResult, TrainTask
from fedreid.errors import BROKEN_LINE, ConnectionFailed, UpdateRefused
from fedreid.limits import CALL_S
from fedreid.v1 import federation_pb2 as pb
from fedreid.wire.messages import evaluation_to_wire, report_to_wire
from fedreid.wire.stream import reading_alone, send_chunks
from fedreid.wire.tensors import layout_of
from fedreid.work import off_loop
from silo_agent.config import AgentConfig, Folders
from silo_agent.egress import Parcel, outline, pack
from silo_agent.held import Held
from silo_agent.ledger import Ledger
from silo_agent.metrics import EGRESS_BYTES, Phase
from silo_agent.outbox import UPDATE_FILE, FinishedRound, Outbox
from silo_agent.trust.channel import calling

if TYPE_CHECKING:
    from fedreid.v1.federation_pb2_grpc import FederationAsyncStub


class Delivery:
    """Sends updates and figures to the one coordinator of an agent."""

    def __init__(
        self,
        *,
        folders: Folders,
        config: AgentConfig,
        outbox: Outbox,
        audit: AuditLog,
        clock: Clock,
        tell: Callable[[str], None],
        doing: Callable[[Phase, float], None],
    ) -> None:
        self._address = config.coordinator
        self._policy = config.policy
        self._outbox = outbox
        self._audit = audit
        self._ledger = Ledger(folders, audit, clock)
        self._tell = tell
        self._doing = doing
        self._sent_bytes = 0

    async def check_room(self, task: TrainTask, base: Held) -> None:
        """Check, before anything is trained, that the update to come may leave.

        Raises:
            PolicyRefused: the policy keeps a tensor here, or a quota is used up.
        """
        layout = await off_loop(layout_of, Path(base.path))
        leaving = outline(layout, bn=task.bn, encoding=task.upload_encoding, policy=self._policy)
        self._ledger.check_room(
            self._policy, run=task.run, number=task.round, byte_count=leaving.byte_count
        )

    async def update(
        self, stub: "FederationAsyncStub", finished: FinishedRound, base: Held
    ) -> bool:
        """Send a trained round's update; whether the coordinator answered with a yes or too late.

        Raises:
            PolicyRefused: the policy does not let it leave.
            ConnectionFailed: worth another attempt.
        """
        parcel = await off_loop(self._pack, finished, base)
        self._doing("uploading", 0.0)
        try:
            state = await self._upload(stub, parcel)
        except UpdateRefused as refusal:
            if refusal.reason in BROKEN_LINE:
                raise ConnectionFailed("The update arrived damaged", why=str(refusal)) from refusal
            await self._note_outcome(parcel, "refused", reason=refusal.reason.value)
            self._tell(f"round {parcel.round}: the coordinator refused the update: {refusal}")
            return False
        accepted = state == pb.UPLOAD_STATE_ACCEPTED
        if accepted:
            await off_loop(self._outbox.note_accepted, finished, parcel.residual_digest)
        await self._note_outcome(parcel, "accepted" if accepted else "too_late")
        outcome = "accepted" if accepted else "too late, it does not count"
        self._tell(f"round {parcel.round}: update of {parcel.manifest.byte_count} bytes {outcome}")
        return True

    async def figures(
        self,
        stub: "FederationAsyncStub",
        run: str,
        number: int,
        results: tuple[EvaluationResult, ...],
    ) -> None:
        """Send figures; none is an answer too, where no query of the silo has a match.

        No noise covers figures: they stay here where updates leave with noise only.
        """
        sent = () if self._policy.privacy.on else results
        await off_loop(
            self._audit.append,
            "figures.sent",
            destination=self._address,
            run=run,
            round=number,
            **{result.model: _numbers(result) for result in sent},
        )
        request = pb.ReportEvaluationRequest(
            run=run,
            round=number,
            evaluations=[evaluation_to_wire(result) for result in sent],
        )
        try:
            with calling(self._address):
                await stub.ReportEvaluation(request, timeout=CALL_S)
        except UpdateRefused as refusal:  # another run is on by now
            self._tell(f"round {number}: the coordinator refused the figures: {refusal}")

    def _pack(self, finished: FinishedRound, base: Held) -> Parcel:
        folder = self._outbox.folder(finished)
        return pack(
            finished,
            folder=folder,
            update=folder / UPDATE_FILE,
            base=Path(base.path),
            policy=self._policy,
            destination=self._address,
            spares=self._outbox.spares,
        )

    async def _upload(
        self, stub: "FederationAsyncStub", parcel: Parcel
    ) -> "pb.UploadState.ValueType":
        await off_loop(self._ledger.enter, parcel.departure(), self._policy)
        request = pb.OpenUploadRequest(
            run=parcel.run,
            round=parcel.round,
            base_digest=parcel.base_digest,
            manifest=parcel.manifest.to_wire(),
            report=report_to_wire(parcel.report),
        )
        with calling(self._address):
            opening = await stub.OpenUpload(request, timeout=CALL_S)
            if opening.state != pb.UPLOAD_STATE_SEND:
                return opening.state
            turn = asyncio.Event()
            call = stub.SendUpload(self._messages(opening, parcel, turn))
            if opening.takes_turns:
                await call.initial_metadata()  # they come when it is this silo's turn
            turn.set()
            self._sent_bytes = parcel.manifest.byte_count
            answer = await call
        faults.point("upload.ack.received")
        return answer.state

    async def _messages(
        self, opening: pb.OpenUploadResponse, parcel: Parcel, turn: asyncio.Event
    ) -> AsyncIterator[Any]:  # a ChunkMessage stands for a request with a chunk
        yield pb.SendUploadRequest(upload_id=opening.upload_id)
        await turn.wait()
        size = parcel.manifest.byte_count
        payload = reading_alone(parcel.path, parcel.start)
        async for message in send_chunks(payload, size=size, offset=opening.offset):
            yield message
            faults.point("upload.chunk.sent")
            EGRESS_BYTES.inc(len(message.chunk.data))
            self._doing("uploading", message.chunk.offset / size)

    def take_sent_bytes(self) -> int:
        """Bytes of the payload that was sent since this was asked last; 0 if none was."""
        sent_bytes, self._sent_bytes = self._sent_bytes, 0
        return sent_bytes

    async def _note_outcome(self, parcel: Parcel, outcome: str, **more: str) -> None:
        await off_loop(
            self._audit.append,
            "update.outcome",
            run=parcel.run,
            round=parcel.round,
            payload_digest=parcel.manifest.payload_digest,
            outcome=outcome,
            **more,
        )


def _numbers(result: EvaluationResult) -> dict[str, float]:
    numbers: dict[str, float] = msgspec.to_builtins(result)
    return {name: value for name, value in numbers.items() if name != "model"}
