"""How does a federation run in one process? With the learning code of the real one, and no wire.

The same jobs in the same order as coordinator and agents give, on files in the same places, so
that the published digests are those of the real federation (a test compares them). What is left
out is what learning does not see: network, certificates, journal.

After each round what was measured is written down, so that an interrupted run goes on.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmark.results import Accuracy, ModelKind, Record, RoundResult
from coordinator.folders import Folders
from coordinator.learning import jobs
from coordinator.learning.worker import HANDLERS
from coordinator.rounds import orders
from coordinator.rounds.machine import (
    Accepted,
    Aggregated,
    Distilled,
    Event,
    Phase,
    Published,
    RoundState,
    UpdateAccepted,
    advance,
    open_round,
)
from coordinator.rounds.tasks import evaluate_task, train_task
from coordinator.rounds.validation import check_manifest, check_values
from fedreid.contract import EvaluationResult, TrainTask, UpdateReport
from fedreid.errors import RunError, storage_errors
from fedreid.files import digest_of, make_folder, remove_folder, replacing, write_bytes
from fedreid.jobs import Job, Progress, ReportT
from fedreid.names import Digest
from fedreid.plan import Plan, is_difference
from fedreid.reid.settling import settle_torch
from fedreid.wire.encoding import decode, encode, payload_bytes
from fedreid.wire.tensors import Layout, TensorFile, layout_of
from silo_agent import config as agent
from silo_agent.budget import PrivacyBudget
from silo_agent.egress import Parcel, pack
from silo_agent.learning.jobs import EvaluateJob, Silo, TrainJob
from silo_agent.learning.local_round import has_own_batch_norm
from silo_agent.learning.worker import SiloWorker
from silo_agent.outbox import UPDATE_FILE, FinishedRound, Outbox
from silo_agent.privacy import make_private

PROGRESS_NAME = "progress.json"
Tamper = Callable[[str, Path, Path, UpdateReport], UpdateReport]
"""Given silo, its update's file, the base model and the report: changes the file and the report."""

_POLICY = agent.Policy()


@dataclass(frozen=True, slots=True, kw_only=True)
class SiloFolder:
    """A silo's images."""

    path: Path
    layout: str = "auto"
    split: int = 0
    withdrawn_confirmed: bool = False
    test: str = ""
    """Silos with the same word here have the same test set, on which a model is measured once."""

    @property
    def flags(self) -> tuple[str, ...]:
        """What an agent is told of the folder when it joins."""
        confirmed = ("--confirm-withdrawn",) if self.withdrawn_confirmed else ()
        return ("--layout", self.layout, "--split", str(self.split), *confirmed)


class _Reached(Record, frozen=True, kw_only=True):
    """How far a run is."""

    plan: Plan
    base_digest: str
    last: RoundState | None
    seconds: float
    untrained: dict[str, Accuracy]
    rounds: tuple[RoundResult, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalResult:
    """A finished run."""

    untrained: dict[str, Accuracy]
    rounds: tuple[RoundResult, ...]
    seconds: float


class LocalRun:
    """One run of a plan."""

    def __init__(
        self,
        root: Path,
        *,
        federation: str,
        plan: Plan,
        silos: Mapping[str, SiloFolder],
        tests: Mapping[str, SiloFolder] | None = None,
        tamper: Tamper | None = None,
        policy: agent.Policy = _POLICY,
    ) -> None:
        """Prepare a run below ``root``; one of the same plan that was interrupted goes on.

        ``tests`` names the test sets of the global model, by default those of the silos;
        ``tamper`` changes what a silo sends, as one that is not honest would; ``policy`` is every
        silo's.
        """
        self._root = root
        self._federation = federation
        self._plan = plan
        self._silos = dict(sorted(silos.items()))
        self._tests = dict(sorted((silos if tests is None else tests).items()))
        self._folders = Folders(root / "coordinator")
        self._tamper = tamper
        self._workers = {name: SiloWorker() for name in {*self._silos, *self._tests}}
        folders = {name: agent.Folders(make_folder(root / name)) for name in self._silos}
        self._outboxes = {name: Outbox(own) for name, own in folders.items()}
        self._policy = policy
        self._budgets = {name: PrivacyBudget(own, policy.privacy) for name, own in folders.items()}

    @property
    def model(self) -> Path:
        """The newest published model, after :meth:`run`."""
        reached = self._resumed()
        assert reached is not None
        return orders.model_path(self._folders, Digest(reached.base_digest))

    def run(self) -> LocalResult:
        """All rounds of the plan.

        Raises:
            FedreidError: a job failed, an update was refused; what was reached is kept.
        """
        settle_torch()
        reached = self._resumed() or self._begun()
        while len(reached.rounds) < self._plan.rounds:
            begun = time.monotonic()
            reached = self._round(reached)
            spent = reached.seconds + time.monotonic() - begun
            reached = msgspec.structs.replace(reached, seconds=spent)
            write_bytes(self._root / PROGRESS_NAME, msgspec.json.encode(reached))
            # Only now: a round that is done again needs the models that it was done from.
            self._tidy(reached.last)
        return LocalResult(
            untrained=reached.untrained, rounds=reached.rounds, seconds=reached.seconds
        )

    def _resumed(self) -> _Reached | None:
        path = self._root / PROGRESS_NAME
        if not path.exists():
            return None
        reached = msgspec.json.decode(path.read_bytes(), type=_Reached)
        if reached.plan == self._plan:
            return reached
        raise RunError(
            f"The run in {self._root} was begun with another plan",
            next_step="Remove the folder to run it anew, or name another one.",
        )

    def _begun(self) -> _Reached:
        job = orders.start_job(self._folders, self._plan, self._federation)
        self._do(job, jobs.InitialiseReport)
        digest = self._place(Path(job.out))
        return _Reached(
            plan=self._plan, base_digest=digest, last=None, seconds=0.0, untrained={}, rounds=()
        )

    def _round(self, reached: _Reached) -> _Reached:
        number = len(reached.rounds) + 1
        state = self._opened(number, reached)
        seconds: dict[str, float] = {}
        begun = time.monotonic()
        before = self._before(state)
        uploaded, local = 0, {}
        for silo in self._silos:
            state, results, size = self._take_part(state, silo)
            local[silo] = results
            uploaded += size
        seconds["collecting"] = time.monotonic() - begun
        while not state.ended:
            phase, begun = state.phase, time.monotonic()
            state = self._next(state, self._perform(state))
            seconds[str(phase)] = time.monotonic() - begun
        one = self._result(state, seconds, uploaded, local)
        figured = self._with_figures(reached, one, before, self._after(state))
        return msgspec.structs.replace(figured, base_digest=state.model_digest, last=state)

    def _opened(self, number: int, reached: _Reached) -> RoundState:
        return open_round(
            run=self._plan.name,
            number=number,
            base_digest=reached.base_digest,
            before=reached.last,
            published_before=number - 1,
            invited=tuple(self._silos),
            rules=orders.rules_of(self._plan, None),
            now_s=0.0,
        )

    def _next(self, state: RoundState, event: Event) -> RoundState:
        # No deadline passes: silos that train one after the other are no stragglers.
        rules = orders.rules_of(self._plan, state)
        after = advance(state, event, rules, state.phase_since_s)
        if after == state or after.phase in (Phase.SKIPPED, Phase.FAILED):
            raise RunError(f"Round {state.number} can't go on", why=after.reason)
        return after

    def _take_part(
        self, state: RoundState, silo: str
    ) -> tuple[RoundState, tuple[EvaluationResult, ...], int]:
        """What a silo's agent does in a round: train, pack, send; and what intake does with it."""
        task = train_task(self._plan, state, silo, 0.0)
        outbox = self._outboxes[silo]
        finished = outbox.find(task.run, task.round, task.base_digest)
        if finished is None:
            finished = self._train(task, silo, self._downloaded(state.base_of(silo)))
        parcel = self._packed(finished, outbox.folder(finished), state, silo)
        report = self._deliver(parcel, state, silo, finished.report)
        outbox.note_accepted(finished, parcel.residual_digest)
        outbox.remove_before(finished)
        update = Accepted(
            silo=silo,
            payload_digest=parcel.manifest.payload_digest,
            size_bytes=parcel.manifest.byte_count,
            report=report.checked(),
        )
        accepted = self._next(state, UpdateAccepted(update=update))
        return accepted, finished.evaluations, parcel.manifest.byte_count

    def _train(self, task: TrainTask, silo: str, base: Path) -> FinishedRound:
        outbox = self._outboxes[silo]
        out = outbox.begin(task.run, task.round)
        job = TrainJob.of(
            task,
            self._silo(silo, self._silos[silo]),
            base_model=str(base),
            previous=self._previous(silo, before=task.round),
            out=str(out),
        )
        kinds = tuple(kind for kind in job.evaluate if kind != "global")  # measured once for all
        job = msgspec.structs.replace(job, evaluate=kinds if len(self._silos) > 1 else ())
        report = self._workers[silo].train(job, _unheard)
        previous = outbox.newest(task.run, before=task.round)
        finished = FinishedRound.of(
            task,
            report,
            base_round=task.round - 1,
            previous=previous,
            privacy=make_private(
                out, base, bn=task.bn, policy=self._policy, budget=self._budgets[silo]
            ),
        )
        if is_difference(task.upload_encoding):
            outbox.carry_over(previous, out, private=self._policy.privacy.on)
        outbox.put(out, finished)
        return finished

    def _packed(
        self, finished: FinishedRound, folder: Path, state: RoundState, silo: str
    ) -> Parcel:
        return pack(
            finished,
            folder=folder,
            update=folder / UPDATE_FILE,
            base=self._downloaded(state.base_of(silo)),
            policy=self._policy,
            destination="",
        )

    def _deliver(
        self, parcel: Parcel, state: RoundState, silo: str, report: UpdateReport
    ) -> UpdateReport:
        manifest = parcel.manifest
        target = orders.update_path(self._folders, state, silo)
        check_manifest(manifest, self._layout(state.base_of(silo)), self._plan.aggregation.bn)
        base = orders.model_path(self._folders, Digest(state.base_of(silo)))
        with (
            parcel.path.open("rb") as payload,
            TensorFile(base) as before,
            replacing(target) as stream,
        ):
            payload.seek(parcel.start)
            decode(payload, manifest.layout, manifest.encoding, stream, before)
        if self._tamper is not None:
            report = self._tamper(silo, target, base, report)
        with TensorFile(target) as update, TensorFile(base) as before:
            check_values(update, before, self._plan.validation)
        return report

    def _downloaded(self, digest: str) -> Path:
        """A silo's copy of a published model, as the wire would give it."""
        encoding = self._plan.wire.download
        path = orders.model_path(self._folders, Digest(digest))
        if encoding == "fp32" or is_difference(encoding):
            return path
        copy = path.with_suffix(f".{encoding}.safetensors")
        if not copy.exists():
            payload = path.with_suffix(f".{encoding}")
            with TensorFile(path) as file:
                layout = file.layout
                with payload.open("wb") as stream:
                    encode(file, layout, encoding, stream)
            with payload.open("rb") as source, replacing(copy) as stream:
                decode(source, layout, encoding, stream)
        return copy

    def _perform(self, state: RoundState) -> Event:
        """What the coordinator's worker does in a phase."""
        if state.phase is Phase.AGGREGATING:
            return self._aggregate(state)
        if state.phase is Phase.DISTILLING:
            job = orders.distil_job(self._folders, state, self._plan, self._federation)
            distilled = self._do(job, jobs.DistilReport)
            self._quantise(state)
            return Distilled(loss_before=distilled.loss_before, loss_after=distilled.loss_after)
        assert state.phase is Phase.PUBLISHING, "bench files refuse an evaluation.folder"
        rules = orders.rules_of(self._plan, state)
        parts = orders.cluster_aggregate_jobs(
            self._folders, state, self._plan, self._federation, state.clusters
        )
        digests = [self._place(Path(job.out)) for job in parts]
        return Published(
            model_digest=self._place(orders.result_path(self._folders, state, rules)),
            models=orders.models_by_silo(state, digests),
            download_bytes=sum(self._payload_bytes(state.base_of(silo)) for silo in self._silos),
        )

    def _aggregate(self, state: RoundState) -> Aggregated:
        whole = orders.aggregate_job(self._folders, state, self._plan, self._federation)
        report = self._do(whole, jobs.AggregateReport)
        clusters: tuple[tuple[str, ...], ...] = ()
        if self._plan.aggregation.clustering == "finch":
            job = orders.cluster_job(self._folders, state, self._plan, self._federation)
            clusters = self._do(job, jobs.ClusterReport).clusters
        for part in orders.cluster_aggregate_jobs(
            self._folders, state, self._plan, self._federation, clusters
        ):
            self._do(part, jobs.AggregateReport)
        if not orders.rules_of(self._plan, state).distils:
            self._quantise(state)
        return orders.aggregated(report, clusters)

    def _quantise(self, state: RoundState) -> None:
        rules = orders.rules_of(self._plan, state)
        job = orders.quantise_job(self._folders, state, self._plan, rules)
        if job is not None:
            self._do(job, jobs.EncodeReport)

    def _do(self, job: Job, returns: type[ReportT]) -> ReportT:
        report = HANDLERS[type(job)](job, _unheard)
        assert isinstance(report, returns)
        return report

    def _place(self, staged: Path) -> Digest:
        digest = digest_of(staged)
        path = orders.model_path(self._folders, digest)
        payload = staged.with_suffix(f".{self._plan.wire.download}")
        with storage_errors("publish", path):
            if payload.exists():
                payload.replace(path.with_suffix(payload.suffix))
            staged.replace(path)
        return digest

    def _tidy(self, state: RoundState | None) -> None:
        assert state is not None, "a round was done"
        remove_folder(self._folders.spool(state.run, state.number))
        remove_folder(self._folders.work(state.run, state.number))
        kept = {state.model_digest, state.base_digest, *state.models.values()}
        for path in self._folders.models.iterdir():
            if path.name.partition(".")[0] not in kept:
                path.unlink()

    def _before(self, state: RoundState) -> dict[str, Accuracy]:
        """What the round starts from on each test set, where the plan measures this round."""
        if not train_task(self._plan, state, "", 0.0).evaluate:
            return {}
        return self._measured(state, state.base_of, before=state.number)

    def _after(self, state: RoundState) -> dict[str, Accuracy]:
        """The run's last models on each test set."""
        last = state.published_before + 1 >= self._plan.rounds
        return self._measured(state, state.model_of, before=None) if last else {}

    def _measured(
        self, state: RoundState, model_of: Callable[[str], str], *, before: int | None
    ) -> dict[str, Accuracy]:
        found: dict[str, Accuracy] = {}
        known: dict[tuple[str, str], Accuracy] = {}
        for name, folder in self._tests.items():
            previous = self._previous(name, before=before) if name in self._silos else ""
            own = has_own_batch_norm(previous, self._plan.aggregation.bn)
            key = (model_of(name), folder.test)
            if key in known and not own:
                found[name] = known[key]
                continue
            model = self._downloaded(model_of(name))
            job = EvaluateJob.of(
                evaluate_task(self._plan, state, name),
                self._silo(name, folder),
                model=str(model),
                previous=previous,
            )
            for result in self._workers[name].evaluate(job, _unheard).evaluations:
                found[name] = Accuracy.of(result)
                if folder.test and not own:
                    known[key] = found[name]
        return found

    def _result(
        self,
        state: RoundState,
        seconds: dict[str, float],
        uploaded: int,
        local: dict[str, tuple[EvaluationResult, ...]],
    ) -> RoundResult:
        figures: dict[str, dict[ModelKind, Accuracy]] = {
            silo: {result.model: Accuracy.of(result) for result in results}
            for silo, results in local.items()
            if results
        }
        return RoundResult(
            number=state.number,
            model_digest=state.model_digest,
            participants=tuple(self._silos),
            weights=state.weights,
            cosine_distances={u.silo: u.report.cosine_distance for u in state.updates},
            epsilons={u.silo: u.report.privacy.epsilon for u in state.updates if u.report.privacy},
            phase_seconds=seconds,
            upload_bytes=uploaded,
            download_bytes=state.download_bytes,
            distillation_loss_before=state.loss_before,
            distillation_loss_after=state.loss_after,
            evaluations=figures,
        )

    def _with_figures(
        self,
        reached: _Reached,
        one: RoundResult,
        before: dict[str, Accuracy],
        after: dict[str, Accuracy],
    ) -> _Reached:
        """Put the global model's figures under the round that published it."""
        rounds = reached.rounds
        untrained = reached.untrained
        if rounds:
            rounds = (*rounds[:-1], _with_global(rounds[-1], before))
        else:
            untrained = before
        return msgspec.structs.replace(
            reached,
            untrained=untrained,
            rounds=(*rounds, _with_global(one, after)),
        )

    def _previous(self, silo: str, *, before: int | None) -> str:
        outbox = self._outboxes[silo]
        previous = outbox.newest(self._plan.name, before=before)
        return "" if previous is None else str(outbox.folder(previous))

    def _silo(self, name: str, folder: SiloFolder) -> Silo:
        return Silo(
            federation=self._federation,
            name=name,
            dataset=str(folder.path),
            layout=folder.layout,
            split=folder.split,
            withdrawn_confirmed=folder.withdrawn_confirmed,
        )

    def _layout(self, digest: str) -> Layout:
        return layout_of(orders.model_path(self._folders, Digest(digest)))

    def _payload_bytes(self, digest: str) -> int:
        """What a silo downloads that holds the model before: of the first one, fp32."""
        encoding = self._plan.wire.download
        if not is_difference(encoding):
            return payload_bytes(self._layout(digest), encoding)
        payload = orders.model_path(self._folders, Digest(digest)).with_suffix(f".{encoding}")
        if payload.exists():
            return payload.stat().st_size
        return payload_bytes(self._layout(digest), "fp32")


def _unheard(progress: Progress) -> None:
    """Steps within a job are not shown."""


def _with_global(one: RoundResult, figures: dict[str, Accuracy]) -> RoundResult:
    merged = {silo: dict(models) for silo, models in one.evaluations.items()}
    for silo, accuracy in figures.items():
        merged.setdefault(silo, {})["global"] = accuracy
    return msgspec.structs.replace(one, evaluations=merged)
