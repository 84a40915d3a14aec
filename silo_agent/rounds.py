"""How does a silo take part? Ask for a task, do it, deliver, and ask again.

The agent only dials out. It keeps nothing in memory that a restart would miss: a trained round
lies in the outbox, a fetched model in the cache, and the coordinator is asked where both stand.
"""

import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fedreid.audit import AuditLog
from fedreid.clock import Clock
from fedreid.contract import (
    EvaluateTask,
    EvaluationResult,
    PrivacyReport,
    RenewTask,
    TrainTask,
    WaitTask,
)
from fedreid.datasets.layouts import load
from fedreid.errors import ConnectionFailed, PolicyRefused
from fedreid.jobs import Progress, Worker
from fedreid.limits import CALL_S, LONG_POLL_S, REFUSAL_CHARACTERS
from fedreid.pki.certificates import authorities_digest
from fedreid.pki.identity import Identity
from fedreid.plan import is_difference
from fedreid.v1 import federation_pb2 as pb
from fedreid.wire.manifest import ENCODINGS, encoding_to_wire
from fedreid.wire.messages import task_from_wire
from fedreid.work import off_loop
from silo_agent import metrics
from silo_agent.budget import PrivacyBudget
from silo_agent.config import AgentConfig, Folders, Membership
from silo_agent.contact import Contact
from silo_agent.delivery import Delivery
from silo_agent.egress import check_images, check_task
from silo_agent.held import Held
from silo_agent.jumps import check_model
from silo_agent.learning.jobs import EvaluateJob, EvaluateReport, Silo, TrainJob, TrainReport
from silo_agent.models import ModelCache
from silo_agent.outbox import FinishedRound, Outbox
from silo_agent.privacy import make_private
from silo_agent.signs import RoundLost, Signs
from silo_agent.trust.channel import Line, calling

if TYPE_CHECKING:
    from fedreid.v1.federation_pb2_grpc import FederationAsyncStub


class Participant:
    """One silo's part in the federation, over one line at a time."""

    def __init__(
        self,
        *,
        folders: Folders,
        config: AgentConfig,
        membership: Membership,
        worker: Worker,
        audit: AuditLog,
        clock: Clock,
        contact: Contact,
        say: Callable[[str], None],
        show: Callable[[str, float], None],
    ) -> None:
        self._folders = folders
        self._config = config
        self._membership = membership
        self._worker = worker
        self._audit = audit
        self._clock = clock
        self._contact = contact
        self._signs = Signs(contact, say, show)
        folders.spares.clear()
        self._models = ModelCache(folders, membership, audit)
        self._outbox = Outbox(folders)
        self._budget = PrivacyBudget(folders, config.policy.privacy)
        self._silo = Silo(
            federation=membership.federation,
            name=membership.silo,
            dataset=config.dataset,
            layout=config.layout,
            split=config.split,
            withdrawn_confirmed=config.withdrawn_confirmed,
        )
        self._delivery = Delivery(
            folders=folders,
            config=config,
            outbox=self._outbox,
            audit=audit,
            clock=clock,
            tell=self._signs.tell,
            doing=self._signs.doing,
        )
        self.jobs_done = 0
        """Jobs that the training process has done since the start."""

    async def take_part(self, line: Line, renew: Callable[[Identity], Awaitable[None]]) -> None:
        """Do task after task, until something fails.

        ``renew`` replaces an identity by the next one, if it has not been replaced already.

        Raises:
            ConnectionFailed: worth another attempt on a new line.
            FedreidError: a person has to act.
        """
        greeting = await line.greet()
        self._contact.made()
        self._signs.tell(f"connected to the federation {greeting.federation} at {line.address}")
        await self._deliver_left_over(line.stub)
        while True:
            await self._next(line, renew)

    async def _next(self, line: Line, renew: Callable[[Identity], Awaitable[None]]) -> None:
        self._signs.doing("waiting", 0.0)
        stub, identity = line.stub, line.identity
        newest = await off_loop(self._models.newest)
        request = pb.NextTaskRequest(
            wait_s=LONG_POLL_S,
            authorities_digest=authorities_digest(identity.authorities_pem),
            encodings=[encoding_to_wire(encoding) for encoding in ENCODINGS],
            newest_version=newest.version,
            newest_digest=newest.digest,
        )
        with calling(self._config.coordinator):
            answer = await stub.NextTask(request, timeout=LONG_POLL_S + CALL_S)
        self._contact.heard()
        task = task_from_wire(answer)
        if isinstance(task, WaitTask):
            self._signs.tell(task.reason)
        elif isinstance(task, RenewTask):
            self._signs.tell(f"renewing the identity: {task.reason}")
            await renew(identity)
        else:
            await self._do(stub, task)
            line.relieve(self._delivery.take_sent_bytes())

    async def _do(self, stub: "FederationAsyncStub", task: TrainTask | EvaluateTask) -> None:
        try:
            if isinstance(task, EvaluateTask):
                await self._evaluate(stub, task)
            else:
                await self._train(stub, task)
        except PolicyRefused as refused:
            await self._note_refused(task, refused)
            await self._decline(stub, task, refused)
            raise

    async def _note_refused(self, task: TrainTask | EvaluateTask, refused: PolicyRefused) -> None:
        await off_loop(
            self._audit.append,
            "policy.refused",
            run=task.run,
            round=task.round,
            key=refused.key,
            what=refused.brief[:REFUSAL_CHARACTERS],
            again=refused.again_at_s is not None,
        )

    async def _decline(
        self, stub: "FederationAsyncStub", task: TrainTask | EvaluateTask, refused: PolicyRefused
    ) -> None:
        """Tell the coordinator not to wait, and of the reason no more than the policy's key."""
        request = pb.DeclineRequest(run=task.run, round=task.round, policy_key=refused.key)
        try:
            with calling(self._config.coordinator):
                await stub.Decline(request, timeout=CALL_S)
        except ConnectionFailed as error:
            self._signs.tell(
                f"round {task.round}: it waits for this silo until its deadline: {error}"
            )

    async def _train(self, stub: "FederationAsyncStub", task: TrainTask) -> None:
        check_task(task, self._config.policy)
        finished = await self._find_whole(task)
        if finished and self._config.policy.privacy.on and finished.report.privacy is None:
            finished = None  # trained before noise was switched on: it may not leave as it is
        if finished is None:
            await off_loop(self._budget.check)
        base = await self._fetch(stub, task)
        if finished is None:
            await self._check_before_training(task, base)
            try:
                finished = await self._train_round(stub, task, base)
            except RoundLost:
                self._signs.tell(f"round {task.round} has closed without this silo")
                return
        await self._deliver(stub, finished, base)
        await off_loop(self._outbox.remove_before, finished)
        await off_loop(self._models.remove_others, task.base_digest)

    async def _find_whole(self, task: TrainTask) -> FinishedRound | None:
        """The round, if it was trained already and lies on the disk as it was put there."""
        finished = self._outbox.find(task.run, task.round, task.base_digest)
        return finished if finished is not None and await self._is_whole(finished) else None

    async def _is_whole(self, finished: FinishedRound) -> bool:
        """Whether a round lies on the disk as it was put there; if not, it is told."""
        folder = self._outbox.folder(finished)
        damaged = await off_loop(self._outbox.damaged, folder)
        if damaged:
            self._signs.tell(
                f"round {finished.round}: {folder} is damaged ({', '.join(damaged)}): it is not "
                "sent, and the round is trained again if it still runs. Check the disk"
            )
        return not damaged

    async def _deliver_left_over(self, stub: "FederationAsyncStub") -> None:
        """Deliver what a crash or a break has left between an update and the answer to it.

        The coordinator may have counted the update long since, and gives no task for it then; but
        what became of it, and the round's figures, are known only when it is asked again.
        """
        finished = self._outbox.undelivered()
        if finished is None or not await self._is_whole(finished):
            return
        base = await off_loop(self._models.find_whole, finished.base_digest)
        if base is None:
            return
        with contextlib.suppress(PolicyRefused):  # told when there is a task for the round again
            await self._deliver(stub, finished, base)

    async def _deliver(
        self, stub: "FederationAsyncStub", finished: FinishedRound, base: Held
    ) -> None:
        if await self._delivery.update(stub, finished, base):
            await self._report(
                stub, finished.run, finished.round, finished.base_round, finished.evaluations
            )
        await off_loop(self._outbox.note_delivered, finished)

    async def _check_before_training(self, task: TrainTask, base: Held) -> None:
        """Refuse what the policy forbids while it has cost nothing yet.

        Raises:
            PolicyRefused: too few images, a tensor or quota of the policy, or a model that jumped.
        """
        policy = self._config.policy
        check_images(await off_loop(self._count_images), policy)
        await self._delivery.check_room(task, base)
        previous = self._outbox.newest(task.run, before=task.round)
        before = None
        if previous is not None:
            await off_loop(self._models.remove_others, task.base_digest, previous.base_digest)
            before = await off_loop(self._models.find_whole, previous.base_digest)
        change = await off_loop(check_model, base, before, policy, self._clock.now_s())
        if change is not None:
            self._signs.tell(
                f"round {task.round}: the model has changed by {change:.3g} of its norm"
            )

    def _count_images(self) -> int:
        silo = self._silo
        found = load(
            Path(silo.dataset),
            silo.layout,
            split=silo.split,
            withdrawn_confirmed=silo.withdrawn_confirmed,
        )
        return len(found.train)

    async def _fetch(self, stub: "FederationAsyncStub", task: TrainTask) -> Held:
        self._signs.doing("fetching", 0.0)
        self._signs.tell(f"round {task.round}: fetching the model {task.base_digest[:12]}…")
        return await self._models.ensure(
            stub, self._config.coordinator, task.base_digest, task.download_encoding
        )

    async def _train_round(
        self, stub: "FederationAsyncStub", task: TrainTask, base: Held
    ) -> FinishedRound:
        self._signs.tell(f"round {task.round}: training")
        out = await off_loop(self._outbox.begin, task.run, task.round)
        pace = metrics.TrainingPace(task.training.batch_size, self._clock)

        def tell(progress: Progress) -> None:
            self._signs.note_progress(progress)
            pace.note(progress)

        async with self._signs.heartbeats(stub, task.run, task.round):
            report = await self._worker.run(self._train_job(task, base, out), TrainReport, tell)
        self.jobs_done += 1
        for note in report.notes:
            self._signs.tell(f"round {task.round}: this silo {note}")
        previous = self._outbox.newest(task.run, before=task.round)
        finished = FinishedRound.of(
            task,
            report,
            base_round=base.round,
            previous=previous,
            privacy=await self._make_private(task, base, out),
        )
        if is_difference(task.upload_encoding):
            private = self._config.policy.privacy.on
            await off_loop(self._outbox.carry_over, previous, out, private=private)
        await off_loop(self._outbox.put, out, finished)
        metrics.ROUNDS_TRAINED.inc()
        self._signs.tell(
            f"round {task.round}: trained on {report.num_images} images in "
            f"{report.num_steps} steps, loss {report.train_loss:.3f}, "
            f"cosine distance {report.cosine_distance:.4f}"
        )
        return finished

    async def _make_private(self, task: TrainTask, base: Held, out: Path) -> PrivacyReport | None:
        policy = self._config.policy
        report = await off_loop(
            make_private, out, Path(base.path), bn=task.bn, policy=policy, budget=self._budget
        )
        if report is not None:
            self._signs.tell(
                f"round {task.round}: noise added, epsilon is {report.epsilon:.4g} of "
                f"{policy.privacy.epsilon_budget:g} at a delta of {report.delta:g}"
            )
        return report

    def _train_job(self, task: TrainTask, base: Held, out: Path) -> TrainJob:
        return TrainJob.of(
            task,
            self._silo,
            base_model=base.path,
            previous=self._previous(task.run, before=task.round),
            out=str(out),
            spare=self._spare(base),
            checkpoints=str(self._outbox.checkpoints(task.run, task.round)),
            compiled=self._config.compiled,
        )

    def _spare(self, base: Held) -> str:
        return str(self._folders.spares.find(Path(base.path).stat().st_size) or "")

    def _previous(self, run: str, *, before: int | None = None) -> str:
        """The folder of the silo's last round in a run; empty if there is none."""
        previous = self._outbox.newest(run, before=before)
        return "" if previous is None else str(self._outbox.folder(previous))

    async def _evaluate(self, stub: "FederationAsyncStub", task: EvaluateTask) -> None:
        check_task(task, self._config.policy)
        self._signs.tell(f"measuring the model of round {task.round}")
        model = await self._models.ensure(
            stub, self._config.coordinator, task.model_digest, task.download_encoding
        )
        previous = self._outbox.newest(task.run)
        job = EvaluateJob.of(task, self._silo, model=model.path, previous=self._previous(task.run))
        async with self._signs.heartbeats(stub, "", 0):
            report = await self._worker.run(job, EvaluateReport, self._signs.note_progress)
        self.jobs_done += 1
        if previous is not None and report.evaluations:
            await off_loop(self._outbox.note_published, previous, report.evaluations[0])
        await self._delivery.figures(stub, task.run, task.round, report.evaluations)

    async def _report(
        self,
        stub: "FederationAsyncStub",
        run: str,
        trained_round: int,
        published_round: int,
        results: tuple[EvaluationResult, ...],
    ) -> None:
        """Send figures: of the global model under the round that made it, else of training."""
        for number, kinds in (
            (published_round, ("global",)),
            (trained_round, ("local", "standalone")),
        ):
            wanted = tuple(result for result in results if result.model in kinds)
            if wanted:
                await self._delivery.figures(stub, run, number, wanted)
