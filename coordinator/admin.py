"""What does the platform team get answered? The servicer of Admin."""

from collections.abc import AsyncIterator
from typing import Any

from coordinator.rounds.commands import Commands
from coordinator.rounds.current import Current
from coordinator.rounds.departures import Departures
from coordinator.rounds.journal import PAUSED, RUNNING, STOPPED, Journal, RunRow
from coordinator.rounds.machine import RoundState
from coordinator.rounds.presence import Presence
from coordinator.rounds.publishing import Models
from coordinator.rounds.tasks import evaluation_awaited
from coordinator.trust.access import calling_admin
from coordinator.trust.authorities import Authorities
from coordinator.trust.enrolment import Enrolment
from coordinator.trust.registry import ACTIVE, KEPT_OUT, REVOKED, SUSPENDED, Registry
from coordinator.trust.rollover import RollOver
from fedreid.audit import AuditLog
from fedreid.errors import RunError, UsageError
from fedreid.limits import PAGE_BYTES, PAGE_ROUNDS, REASON_CHARACTERS
from fedreid.names import Digest, SiloName, silo_name
from fedreid.pki.certificates import key_fingerprint
from fedreid.v1 import admin_pb2, admin_pb2_grpc, federation_pb2
from fedreid.wire.messages import evaluation_to_wire, report_to_wire
from fedreid.work import off_loop

_COMMANDS = {
    admin_pb2.RUN_COMMAND_PAUSE: PAUSED,
    admin_pb2.RUN_COMMAND_RESUME: RUNNING,
    admin_pb2.RUN_COMMAND_STOP: STOPPED,
}


class AdminServicer(admin_pb2_grpc.AdminServicer):
    """Tokens, silos, runs, rounds and models."""

    def __init__(
        self,
        *,
        current: Current,
        commands: Commands,
        departures: Departures,
        journal: Journal,
        models: Models,
        presence: Presence,
        registry: Registry,
        enrolment: Enrolment,
        authorities: Authorities,
        rollover: RollOver,
        audit: AuditLog,
    ) -> None:
        self._current = current
        self._commands = commands
        self._departures = departures
        self._journal = journal
        self._models = models
        self._presence = presence
        self._registry = registry
        self._enrolment = enrolment
        self._authorities = authorities
        self._rollover = rollover
        self._audit = audit

    async def CreateToken(  # noqa: N802 - the name of the call
        self, request: admin_pb2.CreateTokenRequest, context: Any
    ) -> admin_pb2.CreateTokenResponse:
        """Mint a join token."""
        token = await off_loop(
            self._enrolment.create_token,
            silo_name(request.silo),
            ttl_s=request.ttl_s,
            coordinator=request.coordinator,
        )
        return admin_pb2.CreateTokenResponse(token=token.encode(), expires_at_s=token.expires_at_s)

    async def ListSilos(  # noqa: N802
        self, request: admin_pb2.ListSilosRequest, context: Any
    ) -> admin_pb2.ListSilosResponse:
        """Every registered silo."""
        silos = []
        for row in self._registry.silos():
            sighting = self._presence.of(SiloName(row.name))
            silos.append(
                admin_pb2.Silo(
                    name=row.name,
                    state=row.state,
                    reason=row.reason,
                    key_fingerprint=row.key_fingerprint,
                    certificate_not_after_s=row.not_after_s,
                    last_seen_s=sighting.seen_s,
                    phase=sighting.phase,
                    progress=sighting.progress,
                    agent_version=sighting.agent_version,
                )
            )
        return admin_pb2.ListSilosResponse(silos=silos)

    async def RevokeSilo(  # noqa: N802
        self, request: admin_pb2.RevokeSiloRequest, context: Any
    ) -> admin_pb2.RevokeSiloResponse:
        """Withdraw a silo's identity."""
        row = self._registry.known(request.silo)
        await self._departures.silo_gone(SiloName(row.name), REVOKED)
        return admin_pb2.RevokeSiloResponse()

    async def ApproveSilo(  # noqa: N802
        self, request: admin_pb2.ApproveSiloRequest, context: Any
    ) -> admin_pb2.ApproveSiloResponse:
        """Let in the silo whose key awaits approval, or that an outside PKI vouches for."""
        silo, by = silo_name(request.silo), calling_admin()
        if request.fingerprint:
            await off_loop(self._enrolment.approve, silo, request.fingerprint, by=by)
        else:
            await off_loop(self._enrolment.register, silo, by=by)
        return admin_pb2.ApproveSiloResponse()

    async def SuspendSilo(  # noqa: N802
        self, request: admin_pb2.SuspendSiloRequest, context: Any
    ) -> admin_pb2.SuspendSiloResponse:
        """Keep a silo out for a time, or let it in again."""
        row = self._registry.known(request.silo)
        silo, reason = SiloName(row.name), request.reason[:REASON_CHARACTERS]
        if request.suspended:
            if not self._registry.may_talk(silo):
                raise UsageError(f"The silo {silo} is {row.state}: it can't be suspended")
            await self._departures.silo_gone(silo, SUSPENDED, reason)
            return admin_pb2.SuspendSiloResponse(state=SUSPENDED)
        if row.state not in KEPT_OUT:
            raise UsageError(f"The silo {silo} is {row.state}: there is nothing to resume")
        await off_loop(self._registry.set_state, silo, ACTIVE)
        await off_loop(self._audit.append, "silo.resumed", silo=silo, reason=reason)
        self._current.notify()
        return admin_pb2.SuspendSiloResponse(state=ACTIVE)

    async def GetAuthorities(  # noqa: N802
        self, request: admin_pb2.GetAuthoritiesRequest, context: Any
    ) -> admin_pb2.GetAuthoritiesResponse:
        """The certificate authorities, and whom the next step would lock out."""
        return admin_pb2.GetAuthoritiesResponse(
            step=self._authorities.step,
            authorities=[
                admin_pb2.AuthorityInfo(
                    key_fingerprint=key_fingerprint(authority.key.public_key()),
                    not_after_s=authority.certificate.not_valid_after_utc.timestamp(),
                    issuing=authority is self._authorities.issuing,
                )
                for authority in self._authorities.trusted
            ],
            awaited=self._rollover.awaited(),
        )

    async def ChangeAuthorities(  # noqa: N802
        self, request: admin_pb2.ChangeAuthoritiesRequest, context: Any
    ) -> admin_pb2.ChangeAuthoritiesResponse:
        """Take a step of a roll-over."""
        if request.step == admin_pb2.AUTHORITY_STEP_PREPARE:
            await off_loop(self._rollover.prepare)
        elif request.step == admin_pb2.AUTHORITY_STEP_ACTIVATE:
            await off_loop(self._rollover.activate, force=request.force)
        elif request.step == admin_pb2.AUTHORITY_STEP_DROP:
            await off_loop(self._rollover.drop, force=request.force)
        else:
            raise UsageError("The steps are prepare, activate and drop")
        self._current.notify()
        return admin_pb2.ChangeAuthoritiesResponse(step=self._authorities.step)

    async def StartRun(  # noqa: N802
        self, request: admin_pb2.StartRunRequest, context: Any
    ) -> admin_pb2.StartRunResponse:
        """Start a run."""
        run = await self._commands.start_run(request.plan_toml)
        return admin_pb2.StartRunResponse(run=run.name)

    async def ControlRun(  # noqa: N802
        self, request: admin_pb2.ControlRunRequest, context: Any
    ) -> admin_pb2.ControlRunResponse:
        """Pause, resume or stop the run."""
        state = _COMMANDS.get(request.command)
        if state is None:
            raise UsageError("A run can be paused, resumed or stopped")
        run = await self._commands.control_run(state, f"{state} by {calling_admin()}")
        return admin_pb2.ControlRunResponse(state=run.state)

    async def ChangeRun(  # noqa: N802
        self, request: admin_pb2.ChangeRunRequest, context: Any
    ) -> admin_pb2.ChangeRunResponse:
        """Change the run's plan."""
        from_round, changes = await self._commands.change_run(request.plan_toml, calling_admin())
        return admin_pb2.ChangeRunResponse(from_round=from_round, changes=changes)

    async def GetRun(  # noqa: N802
        self, request: admin_pb2.GetRunRequest, context: Any
    ) -> admin_pb2.GetRunResponse:
        """The current or last run."""
        current = self._current
        run, state = current.run, current.round
        if run is None:
            return admin_pb2.GetRunResponse(state="none", reason=current.activity)
        return admin_pb2.GetRunResponse(
            run=run.name,
            state=run.state,
            reason=run.reason or current.activity,
            rounds_planned=current.newest_plan.plan.rounds,
            rounds_published=current.rounds_published,
            round=_summary(state) if state is not None else None,
            plan_toml=current.newest_plan.toml,
            model_digest=await off_loop(self._models.newest_digest),
            awaited_evaluations=self._awaited_evaluations(run, state),
        )

    def _awaited_evaluations(self, run: RunRow, state: RoundState | None) -> list[str]:
        """Silos whose figures for the run's last model are still to come."""
        if state is None:
            return []
        return [
            silo
            for silo in state.invited
            if self._registry.active(silo)
            and evaluation_awaited(run, state, silo, self._current.evaluated)
        ]

    async def ListRounds(  # noqa: N802
        self, request: admin_pb2.ListRoundsRequest, context: Any
    ) -> admin_pb2.ListRoundsResponse:
        """Rounds of a run, a page of them."""
        return await off_loop(
            rounds_page, self._journal, self._run_name(request.run), request.first
        )

    async def ListEvaluations(  # noqa: N802
        self, request: admin_pb2.ListEvaluationsRequest, context: Any
    ) -> admin_pb2.ListEvaluationsResponse:
        """Figures of a run, a page of them."""
        return await off_loop(
            evaluations_page, self._journal, self._run_name(request.run), request.first
        )

    async def ListModels(  # noqa: N802
        self, request: admin_pb2.ListModelsRequest, context: Any
    ) -> admin_pb2.ListModelsResponse:
        """Every published model."""
        rows = await off_loop(self._journal.models)
        return admin_pb2.ListModelsResponse(
            models=[federation_pb2.Release.FromString(row.release) for row in rows]
        )

    async def ExportModel(  # noqa: N802
        self, request: admin_pb2.ExportModelRequest, context: Any
    ) -> AsyncIterator[admin_pb2.ExportModelResponse]:
        """Send a published model in exact values."""
        digest = Digest(request.model_digest or await off_loop(self._models.newest_digest))
        if not digest:
            raise RunError("No model has been published yet")
        release = await off_loop(self._models.signed_release, digest, "fp32")
        yield admin_pb2.ExportModelResponse(release=release)
        async for message in self._models.chunks(digest, "fp32", 0):
            yield admin_pb2.ExportModelResponse(chunk=message.chunk.to_wire())

    async def RollBackModel(  # noqa: N802
        self, request: admin_pb2.RollBackModelRequest, context: Any
    ) -> admin_pb2.RollBackModelResponse:
        """Publish an earlier model again."""
        model = await self._commands.roll_back(request.version, calling_admin())
        return admin_pb2.RollBackModelResponse(
            model=federation_pb2.Release.FromString(model.release)
        )

    def _run_name(self, asked: str) -> str:
        if asked:
            return asked
        return "" if self._current.run is None else self._current.run.name


def rounds_page(journal: Journal, run: str, first: int) -> admin_pb2.ListRoundsResponse:
    """The rounds from ``first`` on that fit into an answer."""
    page = admin_pb2.ListRoundsResponse()
    states = journal.rounds(run, first=first, limit=PAGE_ROUNDS)
    for state in states:
        if page.ByteSize() > PAGE_BYTES:
            page.next = state.number
            return page
        page.rounds.append(_summary(state))
    if len(states) == PAGE_ROUNDS:
        page.next = states[-1].number + 1
    return page


def evaluations_page(journal: Journal, run: str, first: int) -> admin_pb2.ListEvaluationsResponse:
    """The figures of the rounds from ``first`` on that fit into an answer."""
    page = admin_pb2.ListEvaluationsResponse()
    newest = journal.newest_round(run)
    for number in range(first, 1 if newest is None else newest.number + 1):
        if page.ByteSize() > PAGE_BYTES:
            page.next = number
            return page
        page.evaluations.extend(
            admin_pb2.SiloEvaluation(
                silo=row.silo, round=row.round, evaluation=evaluation_to_wire(row.result)
            )
            for row in journal.evaluations(run, number)
        )
    return page


def _summary(state: RoundState) -> admin_pb2.RoundSummary:
    return admin_pb2.RoundSummary(
        number=state.number,
        phase=str(state.phase),
        reason=state.reason,
        base_digest=state.base_digest,
        model_digest=state.model_digest,
        invited=state.invited,
        participants=[
            admin_pb2.Participant(
                silo=update.silo,
                report=report_to_wire(update.report),
                weight=state.weights.get(update.silo, 0.0),
                payload_digest=update.payload_digest,
                update_norm=state.update_norms.get(update.silo, 0.0),
                flags=state.flags.get(update.silo, ()),
            )
            for update in state.updates
        ],
        phase_seconds=state.phase_seconds,
        upload_bytes=sum(update.size_bytes for update in state.updates),
        download_bytes=state.download_bytes,
        distillation_loss_before=state.loss_before,
        distillation_loss_after=state.loss_after,
        update_norm=state.update_norm,
        gate_map=state.gate_map,
        gate_best_map=state.gate_best_map if state.gate_map is not None else None,
        declined=state.declined,
        refused=state.refused,
        deadline_s=0.0 if state.ended else state.deadline_s,
    )
