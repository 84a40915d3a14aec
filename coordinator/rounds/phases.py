"""What does each phase of a round ask to be done? The work itself, handed to the worker.

Nothing here changes the round's state; which jobs there are is in ``coordinator.rounds.orders``.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import msgspec

from coordinator import metrics
from coordinator.folders import Folders
from coordinator.learning import jobs
from coordinator.rounds import orders
from coordinator.rounds.journal import EvaluationRow, Journal, ModelRow
from coordinator.rounds.machine import (
    Distilled,
    Evaluated,
    Event,
    Phase,
    ResultsLost,
    RoundState,
    Rules,
    UpdatesLost,
)
from coordinator.rounds.publishing import Models, Origin
from fedreid import faults
from fedreid.errors import RunError
from fedreid.files import remove_folder
from fedreid.jobs import Progress, Worker
from fedreid.names import Digest, FederationName, RoundNumber, RunName
from fedreid.plan import Encoding, Plan, is_difference
from fedreid.work import off_loop


class Phases:
    """Does the work of the phases, one job at a time."""

    def __init__(
        self,
        *,
        federation: FederationName,
        folders: Folders,
        journal: Journal,
        models: Models,
        worker: Worker,
        tell: Callable[[str], None],
    ) -> None:
        """``tell`` hears what the worker is doing, for a person to read."""
        self._federation = federation
        self._folders = folders
        self._journal = journal
        self._models = models
        self._worker = worker
        self._tell = tell

    async def damage(self, state: RoundState) -> Event | None:
        """What the disk has lost of that on which the round's phase is built; mostly nothing.

        Raises:
            StorageError: it is a published model.
        """
        if state.phase in (Phase.AGGREGATING, Phase.DISTILLING):
            for digest in filter(None, (state.base_digest, state.previous_digest)):
                await off_loop(self._models.check, Digest(digest))
            lost = await off_loop(self._lost_updates, state)
            if lost:
                return UpdatesLost(silos=lost)
        return None if await off_loop(self._has_results, state) else ResultsLost()

    async def perform(self, state: RoundState, plan: Plan, rules: Rules) -> Event:
        """Do what the round's phase asks for.

        Raises:
            FedreidError: it failed; trying again is harmless.
        """
        if state.phase is Phase.AGGREGATING:
            return await self._aggregate(state, plan, rules)
        if state.phase is Phase.DISTILLING:
            return await self._distil(state, plan, rules)
        assert state.phase is Phase.EVALUATING
        return await self._evaluate(state, plan, rules)

    async def publish(self, state: RoundState, plan: Plan, rules: Rules) -> list[ModelRow]:
        """Put the round's models in place, each cluster's in order and the global one last.

        The signed releases are the caller's to commit.
        """
        origin = Origin(
            run=RunName(state.run),
            round=RoundNumber(state.number),
            base_digest=Digest(state.base_digest),
        )
        staged = [
            Path(job.out)
            for job in orders.cluster_aggregate_jobs(
                self._folders, state, plan, self._federation, state.clusters
            )
        ]
        staged.append(orders.result_path(self._folders, state, rules))
        return [
            await self._place(path, plan, replace(origin, place=place))
            for place, path in enumerate(staged)
        ]

    async def start_weights(self, plan: Plan) -> ModelRow:
        """Make the model that a run starts from; the release is the caller's to commit."""
        job = orders.start_job(self._folders, plan, self._federation)
        await self._worker.run(job, jobs.InitialiseReport, self._progress)
        await self._worker.close()  # and with it torch's memory: an aggregation needs none
        origin = Origin(run=RunName(plan.name), round=RoundNumber(0), base_digest=Digest(""))
        model = await self._place(Path(job.out), plan, origin)
        await off_loop(remove_folder, Path(job.out).parent)
        return model

    def _spare(self, job: jobs.AggregateJob) -> str:
        return str(self._folders.spares.find(Path(job.base).stat().st_size) or "")

    def _lost_updates(self, state: RoundState) -> tuple[str, ...]:
        spool, _ = self._folders.of_round(state.run, state.number)
        return tuple(
            update.silo
            for update in state.updates
            if not self._is_whole(spool / orders.update_name(update.silo), update.file_digest)
        )

    def _has_results(self, state: RoundState) -> bool:
        _, work = self._folders.of_round(state.run, state.number)
        return all(self._is_whole(work / name, digest) for name, digest in state.results.items())

    async def _aggregate(self, state: RoundState, plan: Plan, rules: Rules) -> Event:
        ordered = orders.aggregate_job(self._folders, state, plan, self._federation)
        job = msgspec.structs.replace(ordered, spare=await off_loop(self._spare, ordered))
        report = await self._worker.run(job, jobs.AggregateReport, self._progress)
        made = [Path(job.out)]
        clusters: tuple[tuple[str, ...], ...] = ()
        if plan.aggregation.clustering == "finch":
            told = await self._worker.run(
                orders.cluster_job(self._folders, state, plan, self._federation),
                jobs.ClusterReport,
                self._progress,
            )
            clusters = told.clusters
        for part in orders.cluster_aggregate_jobs(
            self._folders, state, plan, self._federation, clusters
        ):
            await self._worker.run(part, jobs.AggregateReport, self._progress)
            made.append(Path(part.out))
        if not rules.distils:
            made += await self._quantised(state, plan, rules)
        return replace(
            orders.aggregated(report, clusters), results=await off_loop(self._digests, made)
        )

    async def _distil(self, state: RoundState, plan: Plan, rules: Rules) -> Event:
        job = orders.distil_job(self._folders, state, plan, self._federation)
        report = await self._worker.run(job, jobs.DistilReport, self._progress)
        made = [Path(job.out), *await self._quantised(state, plan, rules)]
        return Distilled(
            loss_before=report.loss_before,
            loss_after=report.loss_after,
            results=await off_loop(self._digests, made),
        )

    async def _quantised(self, state: RoundState, plan: Plan, rules: Rules) -> list[Path]:
        """Round the model that was just made to its payload of differences, if there is to be one.

        After a crash the phase is done from its start again, and so from the exact model.
        """
        job = orders.quantise_job(self._folders, state, plan, rules)
        if job is None:
            return []
        await self._worker.run(job, jobs.EncodeReport, self._progress)
        return [Path(job.out)]

    async def _evaluate(self, state: RoundState, plan: Plan, rules: Rules) -> Event:
        job = orders.evaluate_job(self._folders, state, plan, rules)
        report = await self._worker.run(job, jobs.EvaluateReport, self._progress)
        row = EvaluationRow(run=state.run, round=state.number, silo="", result=report.result)
        with faults.step("evaluate.commit"):
            await off_loop(self._journal.save_evaluations, [row])
        metrics.show_evaluations("", [report.result])
        return Evaluated(map=report.result.map)

    async def _place(self, result: Path, plan: Plan, origin: Origin) -> ModelRow:
        """Move a model to its name, with the payload that the plan's downloads need beside it."""
        encoding = plan.wire.download
        encodings: tuple[Encoding, ...] = ("fp32",)
        if encoding != "fp32" and (origin.base_digest or not is_difference(encoding)):
            encodings = ("fp32", encoding)
        if encoding != "fp32" and not is_difference(encoding):
            job = jobs.EncodeJob(
                model=str(result), encoding=encoding, out=str(result.with_suffix(f".{encoding}"))
            )
            await self._worker.run(job, jobs.EncodeReport, self._progress)
        return await off_loop(self._models.place, result, origin, encodings)

    def _digests(self, files: Iterable[Path]) -> dict[str, str]:
        return {file.name: self._models.digests.of(file) for file in files}

    def _is_whole(self, path: Path, digest: str) -> bool:
        return self._models.digests.is_whole(path, digest)

    def _progress(self, progress: Progress) -> None:
        self._tell(f"{progress.phase} {progress.done}/{progress.total}")


def check_folders(plan: Plan) -> None:
    """Check that the coordinator has the images that a plan counts on.

    Raises:
        RunError: a folder is missing.
    """
    for what, folder in (
        ("distillation.images", plan.distillation.images),
        ("evaluation.folder", plan.evaluation.folder),
    ):
        if folder and not Path(folder).is_dir():
            raise RunError(
                f"The plan's {what} {folder!r} is no folder on the coordinator's machine",
                next_step="Put the images there, or change the plan.",
            )
    for setting, needs, instead in (
        ("bn = 'recalibrated'", plan.aggregation.bn == "recalibrated", "bn = 'pooled'"),
        ("clustering = 'finch'", plan.aggregation.clustering == "finch", "clustering = 'none'"),
    ):
        if needs and not plan.distillation.images:
            raise RunError(
                f"{setting} needs public images",
                next_step=f"Set distillation.images, or choose {instead}.",
            )
