"""What do silos get answered? The thin servicers of Enrolment and Federation.

Here protobuf becomes our own types and back; every decision is made behind them.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, TypeAlias

import fedreid
from coordinator import metrics
from coordinator.rounds.attending import Attending
from coordinator.rounds.current import Current
from coordinator.rounds.departures import Departures
from coordinator.rounds.intake import Announcement, Intake, Standing
from coordinator.rounds.presence import Presence
from coordinator.rounds.publishing import Models
from coordinator.rounds.tasks import in_known_encodings
from coordinator.rounds.turns import Turn, Turns
from coordinator.trust.access import calling_holder, calling_silo
from coordinator.trust.enrolment import Enrolment
from coordinator.trust.registry import LEFT, PENDING
from coordinator.trust.rollover import RollOver
from fedreid.clock import Clock
from fedreid.contract import RenewTask
from fedreid.errors import FedreidError, Refusal, RunError, TokenRefused, UpdateRefused
from fedreid.limits import (
    CONCURRENT_DOWNLOADS,
    EVALUATIONS_PER_REPORT,
    LONG_POLL_S,
)
from fedreid.names import Digest, SiloName, is_digest
from fedreid.v1 import (
    enrolment_pb2,
    enrolment_pb2_grpc,
    federation_pb2,
    federation_pb2_grpc,
)
from fedreid.versions import check_versions
from fedreid.wire.chunks import AnyChunk, ChunkMessage
from fedreid.wire.manifest import Manifest, encoding_from_wire, encodings_from_wire
from fedreid.wire.messages import (
    evaluation_from_wire,
    policy_key_from_wire,
    report_from_wire,
    task_to_wire,
)
from fedreid.work import off_loop

Sent: TypeAlias = federation_pb2.SendUploadRequest | ChunkMessage

_PHASES = frozenset({"fetching", "training", "evaluating", "uploading", "waiting"})
_STATE = {
    Standing.SEND: federation_pb2.UPLOAD_STATE_SEND,
    Standing.ACCEPTED: federation_pb2.UPLOAD_STATE_ACCEPTED,
    Standing.STALE: federation_pb2.UPLOAD_STATE_STALE,
}


class EnrolmentServicer(enrolment_pb2_grpc.EnrolmentServicer):
    """Redeems join tokens and renews certificates."""

    def __init__(self, enrolment: Enrolment, model_key: bytes) -> None:
        self._enrolment = enrolment
        self._model_key = model_key

    async def Enrol(  # noqa: N802 - the name of the call
        self, request: enrolment_pb2.EnrolRequest, context: Any
    ) -> enrolment_pb2.EnrolResponse:
        """Issue a silo's certificate."""
        try:
            row = await off_loop(
                self._enrolment.enrol, calling_silo(), request.secret, request.csr_der
            )
        except FedreidError as error:
            reused = isinstance(error, TokenRefused) and error.reused
            metrics.ENROLMENTS.labels("reused" if reused else "refused").inc()
            raise
        if row.state == PENDING:
            metrics.ENROLMENTS.labels("awaiting_approval").inc()
            return enrolment_pb2.EnrolResponse(awaits_approval=True)
        metrics.ENROLMENTS.labels("issued").inc()
        return enrolment_pb2.EnrolResponse(
            certificate_pem=row.certificate_pem,
            authorities_pem=self._enrolment.authorities.bundle_pem,
            model_key=self._model_key,
        )

    async def Renew(  # noqa: N802
        self, request: enrolment_pb2.RenewRequest, context: Any
    ) -> enrolment_pb2.RenewResponse:
        """Issue a silo's next certificate."""
        certificate_pem = await off_loop(self._enrolment.renew, calling_holder(), request.csr_der)
        return enrolment_pb2.RenewResponse(
            certificate_pem=certificate_pem,
            authorities_pem=self._enrolment.authorities.bundle_pem,
        )


class FederationServicer(federation_pb2_grpc.FederationServicer):
    """A silo's own business; whose it is comes from its certificate alone."""

    def __init__(
        self,
        *,
        federation: str,
        current: Current,
        attending: Attending,
        departures: Departures,
        intake: Intake,
        models: Models,
        presence: Presence,
        rollover: RollOver,
        downloads: Turns,
        clock: Clock,
    ) -> None:
        self._federation = federation
        self._current = current
        self._attending = attending
        self._departures = departures
        self._intake = intake
        self._models = models
        self._presence = presence
        self._rollover = rollover
        self._clock = clock
        self._reading = asyncio.Semaphore(CONCURRENT_DOWNLOADS)
        self._downloads = downloads
        self._uploads = Turns(lambda: current.transfers)

    async def Hello(  # noqa: N802
        self, request: federation_pb2.HelloRequest, context: Any
    ) -> federation_pb2.HelloResponse:
        """Greet a silo, if its agent is of a version that fits."""
        version = request.agent_version[:64]
        self._presence.seen(calling_silo(), agent_version=version)
        check_versions(agent=version, coordinator=fedreid.__version__)
        self._current.stir()
        return federation_pb2.HelloResponse(
            coordinator_version=fedreid.__version__,
            federation=self._federation,
            now_s=self._clock.now_s(),
        )

    async def NextTask(  # noqa: N802
        self, request: federation_pb2.NextTaskRequest, context: Any
    ) -> federation_pb2.NextTaskResponse:
        """Answer with the silo's task, as soon as there is one."""
        silo, holder, digest = calling_silo(), calling_holder(), request.authorities_digest
        if is_digest(digest) and not self._rollover.has_acknowledged(silo, digest):
            await off_loop(self._rollover.acknowledge, silo, digest)
        self._presence.working(silo, "waiting", 0.0)
        self._current.stir()
        if request.newest_version and is_digest(request.newest_digest):
            await self._attending.catch_up(silo, request.newest_version, request.newest_digest)

        def renewal() -> RenewTask | None:
            reason = self._rollover.renewal_reason(holder, digest)
            return RenewTask(reason=reason) if reason else None

        # Half of what is left: an answer after the certificate's end would be refused.
        left_s = (holder.not_after_s - self._clock.now_s()) / 2
        wait_s = max(0.0, min(request.wait_s, LONG_POLL_S, left_s))
        task = await self._attending.next_task(silo, wait_s, first=renewal)
        return task_to_wire(in_known_encodings(task, encodings_from_wire(request.encodings)))

    async def Heartbeat(  # noqa: N802
        self, request: federation_pb2.HeartbeatRequest, context: Any
    ) -> federation_pb2.HeartbeatResponse:
        """Note what the silo does."""
        silo = calling_silo()
        phase = request.phase if request.phase in _PHASES else "waiting"
        self._presence.working(silo, phase, min(max(request.progress, 0.0), 1.0))
        state = self._current.round
        wanted = (
            state is not None
            and (state.run, state.number) == (request.run, request.round)
            and state.wants(silo)
        )
        return federation_pb2.HeartbeatResponse(wanted=wanted)

    async def FetchModel(  # noqa: N802
        self, request: federation_pb2.FetchModelRequest, context: Any
    ) -> AsyncIterator[Any]:  # a ChunkMessage stands for a response with a chunk
        """Send a published model."""
        self._presence.working(calling_silo(), "fetching", 0.0)
        encoding = encoding_from_wire(request.encoding)
        if not is_digest(request.model_digest):
            raise RunError("A model is named by its digest")
        digest = Digest(request.model_digest)
        async with self._downloads.turn() as turn:
            async with self._reading:  # the whole file: what is damaged is not sent
                release = await off_loop(self._models.signed_release, digest, encoding)
            async with turn.pace():
                yield federation_pb2.FetchModelResponse(release=release)
            if release.manifest.encoding != request.encoding:
                return
            chunks = self._models.chunks(digest, encoding, request.offset)
            while True:
                async with self._reading:  # held while a chunk is read, not while it is sent
                    message = await anext(chunks, None)
                if message is None:
                    return
                async with turn.pace():
                    yield message
                await turn.moved(len(message.chunk.data))
                self._current.downloaded_bytes += len(message.chunk.data)

    async def OpenUpload(  # noqa: N802
        self, request: federation_pb2.OpenUploadRequest, context: Any
    ) -> federation_pb2.OpenUploadResponse:
        """Say where to go on with an update."""
        silo = calling_silo()
        self._presence.seen(silo)
        async with self._intake.judging(silo):
            opening = await self._intake.open(_announcement(silo, request))
        return federation_pb2.OpenUploadResponse(
            state=_STATE[opening.standing],
            upload_id=opening.upload_id,
            offset=opening.offset,
            takes_turns=True,
        )

    async def SendUpload(  # noqa: N802
        self, request_iterator: AsyncIterator[Sent], context: Any
    ) -> federation_pb2.SendUploadResponse:
        """Take an update's payload."""
        silo = calling_silo()
        self._presence.working(silo, "uploading", 0.0)
        first = await anext(request_iterator, None)
        if first is None:
            raise RunError("The upload was empty", next_step="Send its name in the first message.")
        async with self._intake.judging(silo), self._uploads.turn() as turn:
            await context.send_initial_metadata(())  # by which the silo hears that it may send
            standing = await self._intake.receive(
                silo, first.upload_id, self._chunks(silo, first, request_iterator, turn)
            )
        return federation_pb2.SendUploadResponse(state=_STATE[standing])

    async def ReportEvaluation(  # noqa: N802
        self, request: federation_pb2.ReportEvaluationRequest, context: Any
    ) -> federation_pb2.ReportEvaluationResponse:
        """Store what the silo measured."""
        silo = calling_silo()
        self._presence.seen(silo)
        if len(request.evaluations) > EVALUATIONS_PER_REPORT:
            raise UpdateRefused(Refusal.REPORT, "The report holds too many evaluations")
        results = [evaluation_from_wire(evaluation) for evaluation in request.evaluations]
        await self._attending.save_evaluations(silo, request.run, request.round, results)
        metrics.show_evaluations(silo, results)
        return federation_pb2.ReportEvaluationResponse()

    async def Decline(  # noqa: N802
        self, request: federation_pb2.DeclineRequest, context: Any
    ) -> federation_pb2.DeclineResponse:
        """Wait no longer for a silo that will not do its task."""
        await self._attending.decline(
            calling_silo(), request.run, request.round, policy_key_from_wire(request.policy_key)
        )
        return federation_pb2.DeclineResponse()

    async def Leave(  # noqa: N802
        self, request: federation_pb2.LeaveRequest, context: Any
    ) -> federation_pb2.LeaveResponse:
        """Let a silo go."""
        await self._departures.silo_gone(calling_silo(), LEFT)
        return federation_pb2.LeaveResponse()

    async def _chunks(
        self,
        silo: SiloName,
        first: Sent,
        following: AsyncIterator[Sent],
        turn: Turn,
    ) -> AsyncIterator[AnyChunk]:
        if first.HasField("chunk"):
            yield first.chunk
        while True:
            async with turn.pace():
                message = await anext(following, None)
            if message is None:
                return
            await turn.moved(len(message.chunk.data))
            self._presence.seen(silo)
            yield message.chunk


def _announcement(silo: SiloName, request: federation_pb2.OpenUploadRequest) -> Announcement:
    return Announcement(
        silo=silo,
        run=request.run,
        round=request.round,
        base_digest=request.base_digest,
        manifest=Manifest.from_wire(request.manifest),
        report=report_from_wire(request.report),
    )
