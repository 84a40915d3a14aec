"""What is one life of the coordinator? Its own parts over a journal, disk and audit log in memory.

Only gRPC and TLS are left out: a call is admitted by the registry, handed to the true servicer,
and ended when its silo is shut out, as ``coordinator.trust.access`` does it.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from random import Random
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coordinator.folders import Folders
from coordinator.rounds.attending import Attending
from coordinator.rounds.commands import Commands
from coordinator.rounds.conductor import Conductor
from coordinator.rounds.current import Current
from coordinator.rounds.departures import Departures
from coordinator.rounds.intake import Intake
from coordinator.rounds.journal import Journal
from coordinator.rounds.phases import Phases
from coordinator.rounds.presence import Presence
from coordinator.rounds.publishing import Models
from coordinator.rounds.recovery import recover
from coordinator.rounds.turns import Turns
from coordinator.service import FederationServicer
from coordinator.trust import access
from coordinator.trust.registry import ACTIVE, LEFT, Registry
from fedreid.audit import AuditLog
from fedreid.clock import Clock
from fedreid.errors import AccessDenied, ConnectionFailed
from fedreid.jobs import Worker
from fedreid.limits import MESSAGE_IDLE_S
from fedreid.names import FederationName, Principal, Role, SiloName
from fedreid.pki.certificates import Holder
from fedreid.work import off_loop
from tests.simulation.loop import Program

FEDERATION = FederationName("harbour")
_LEAVE = "Leave"


class Call:
    """One call that a silo has under way."""

    def __init__(self, silo: str) -> None:
        self.silo = silo
        self.task: asyncio.Task[Any] | None = None
        self.broken = False
        """Nothing comes any more, and the coordinator has not noticed."""
        self.ended = False
        self.handled = asyncio.Event()


class _Context:
    """A call's other side, which is told nothing but the answer here."""

    async def send_initial_metadata(self, metadata: Sequence[Any]) -> None:
        """The silo of a schedule has all its messages on their way already."""


class _Rollover:
    """No authority is ever replaced here."""

    def has_acknowledged(self, silo: str, digest: str) -> bool:
        """All is known."""
        return True

    def acknowledge(self, silo: str, digest: str) -> None:
        """Nothing to note."""

    def renewal_reason(self, holder: Holder, digest: str) -> str:
        """No reason."""
        return ""


class Server(Program):
    """The coordinator between a start and its end."""

    def __init__(
        self,
        *,
        folders: Folders,
        journal: Journal,
        audit: AuditLog,
        clock: Clock,
        worker: Worker,
        key: Ed25519PrivateKey,
        random: Random,
    ) -> None:
        super().__init__()
        self._parts = (folders, journal, audit, clock, worker, key)
        self._random = random
        self.calls: list[Call] = []
        """Under way."""
        self.steps_left: int | None = None
        """Changes of disk, journal and audit log until it is killed."""

    def boot(self) -> None:
        """Build everything from what is on the disk, in this program."""
        folders, journal, audit, clock, worker, key = self._parts
        self.registry = Registry(journal, FEDERATION, clock)
        models = Models(folders, journal, FEDERATION, key)
        presence = Presence(clock)
        self.current = Current(journal, audit, clock)
        recover(self.current, self.registry, folders, models)
        phases = Phases(
            federation=FEDERATION,
            folders=folders,
            journal=journal,
            models=models,
            worker=worker,
            tell=self.current.tell,
        )
        self.commands = Commands(current=self.current, models=models, phases=phases, clock=clock)
        self.departures = Departures(
            current=self.current,
            registry=self.registry,
            presence=presence,
            end_calls=self._end_calls,
        )
        self.conductor = Conductor(
            current=self.current,
            folders=folders,
            models=models,
            registry=self.registry,
            presence=presence,
            departures=self.departures,
            phases=phases,
            clock=clock,
        )
        downloads = Turns(lambda: self.current.transfers)
        self._servicer = FederationServicer(
            federation=FEDERATION,
            current=self.current,
            attending=Attending(
                current=self.current,
                models=models,
                registry=self.registry,
                presence=presence,
                downloads=downloads,
                clock=clock,
            ),
            departures=self.departures,
            intake=Intake(folders=folders, models=models, current=self.current),
            models=models,
            presence=presence,
            rollover=_Rollover(),  # type: ignore[arg-type]
            downloads=downloads,
            clock=clock,
        )
        self._audit = audit
        audit.append("coordinator.started")

    async def answer(self, call: Call, method: str, requests: Sequence[Any]) -> Any:
        """Serve one call of a silo, as the interceptor before the servicer does."""
        self.calls.append(call)
        principal = Principal(federation=FEDERATION, role=Role.SILO, name=call.silo)
        access._caller.set(
            Holder(
                principal=principal,
                key_fingerprint="",
                not_before_s=0.0,
                not_after_s=1e12,
            )
        )
        try:
            self._admit(call.silo)
            answer = await self._handled(call, method, requests)
            if method != _LEAVE:
                self._admit(call.silo)
            return answer
        except asyncio.CancelledError:
            if call.ended:
                raise AccessDenied(f"The silo {call.silo} may take part no longer") from None
            raise
        finally:
            call.handled.set()
            self.calls.remove(call)

    async def let_in(self, silo: SiloName) -> None:
        """Let a silo in again: by an administrator, or with a new token."""
        row = self.registry.known(silo)
        await off_loop(self.registry.set_state, silo, ACTIVE)
        event = "silo.enrolled" if row.state == LEFT else "silo.resumed"
        await off_loop(self._audit.append, event, silo=silo)
        self.current.notify()

    async def _handled(self, call: Call, method: str, requests: Sequence[Any]) -> Any:
        handler = getattr(self._servicer, method)
        if method == "SendUpload":
            return await handler(self._incoming(call, requests), _Context())
        if method != "FetchModel":
            return await handler(requests[0], None)
        answers = []
        async for answer in handler(requests[0], None):
            self._admit(call.silo)
            answers.append(answer)
        return answers

    async def _incoming(self, call: Call, requests: Sequence[Any]) -> AsyncIterator[Any]:
        for request in requests:
            await asyncio.sleep(self._random.random() * 0.2)
            if call.broken:
                await asyncio.sleep(MESSAGE_IDLE_S)
                raise ConnectionFailed("Nothing moved on the stream")
            self._admit(call.silo)
            yield request

    def _admit(self, silo: str) -> None:
        if not self.registry.may_talk(silo):
            raise AccessDenied(f"The silo {silo} may not call")

    async def _end_calls(self, silo: str) -> None:
        ended = [
            call
            for call in self.calls
            if call.silo == silo and call.task is not asyncio.current_task()
        ]
        for call in ended:
            assert call.task is not None
            call.ended = True
            call.task.cancel()
        for call in ended:
            await call.handled.wait()
