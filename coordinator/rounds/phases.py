"""What does each phase of a round ask to be done? The work itself, handed to the worker.

Every job reads and writes files and is seeded from the round, so that doing it again after a
crash gives the same bytes. Nothing here changes the round's state.
"""

from collections.abc import Callable
from pathlib import Path

from coordinator.folders import Folders
from coordinator.learning import jobs
from coordinator.rounds.journal import EvaluationRow, Journal, ModelRow
from coordinator.rounds.machine import (
    Aggregated,
    Distilled,
    Evaluated,
    Event,
    Phase,
    RoundState,
    Rules,
)
from coordinator.rounds.publishing import Models, Origin
from fedreid.errors import RunError
from fedreid.files import remove_folder
from fedreid.jobs import Progress, Worker
from fedreid.names import Digest, FederationName, RoundNumber, RunName
from fedreid.plan import Encoding, Plan
from fedreid.seeds import derive_seed
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
    ) -> None:
        self._federation = federation
        self._folders = folders
        self._journal = journal
        self._models = models
        self._worker = worker
        self.tell: Callable[[str], None] = lambda activity: None
        """Told what the worker is doing, for a person to read."""

    async def perform(self, state: RoundState, plan: Plan, rules: Rules) -> Event:
        """Do what the round's phase asks for.

        Raises:
            FedreidError: it failed; trying again is harmless.
        """
        if state.phase is Phase.AGGREGATING:
            return await self._aggregate(state, plan)
        if state.phase is Phase.DISTILLING:
            return await self._distil(state, plan)
        assert state.phase is Phase.EVALUATING
        return await self._evaluate(state, plan, rules)

    async def publish(self, state: RoundState, plan: Plan, rules: Rules) -> ModelRow:
        """Put the round's model in place; the signed release is the caller's to commit."""
        origin = Origin(
            run=RunName(state.run),
            round=RoundNumber(state.number),
            base_digest=Digest(state.base_digest),
        )
        return await self._place(self._result(state, rules), plan, origin)

    async def start_weights(self, plan: Plan) -> ModelRow:
        """Make the model that a run starts from; the release is the caller's to commit."""
        out = self._folders.work(plan.name, 0) / "start.safetensors"
        await self._worker.run(
            jobs.InitialiseJob(
                backbone=plan.backbone,
                seed=derive_seed(plan.seed, self._federation, plan.name, "start"),
                out=str(out),
            ),
            jobs.InitialiseReport,
            self._progress,
        )
        origin = Origin(run=RunName(plan.name), round=RoundNumber(0), base_digest=Digest(""))
        model = await self._place(out, plan, origin)
        await off_loop(remove_folder, out.parent)
        return model

    async def _aggregate(self, state: RoundState, plan: Plan) -> Event:
        report = await self._worker.run(
            jobs.AggregateJob(
                base=str(self._models.path(Digest(state.base_digest))),
                contributions=self._contributions(state),
                aggregation=plan.aggregation,
                out=str(self._work(state) / "aggregate.safetensors"),
            ),
            jobs.AggregateReport,
            self._progress,
        )
        return Aggregated(weights=report.weights, update_norm=report.update_norm)

    async def _distil(self, state: RoundState, plan: Plan) -> Event:
        report = await self._worker.run(
            jobs.DistilJob(
                backbone=plan.backbone,
                student=str(self._work(state) / "aggregate.safetensors"),
                contributions=self._contributions(state),
                weights=state.weights,
                distillation=plan.distillation,
                distil=_distils(plan, state),
                recalibrate=plan.aggregation.bn == "recalibrated",
                seed=derive_seed(plan.seed, self._federation, state.run, state.number, "distil"),
                out=str(self._work(state) / "distilled.safetensors"),
            ),
            jobs.DistilReport,
            self._progress,
        )
        return Distilled(loss_before=report.loss_before, loss_after=report.loss_after)

    async def _evaluate(self, state: RoundState, plan: Plan, rules: Rules) -> Event:
        report = await self._worker.run(
            jobs.EvaluateJob(
                backbone=plan.backbone,
                model=str(self._result(state, rules)),
                folder=plan.evaluation.folder,
                threads=plan.distillation.threads,
            ),
            jobs.EvaluateReport,
            self._progress,
        )
        row = EvaluationRow(run=state.run, round=state.number, silo="", result=report.result)
        await off_loop(self._journal.save_evaluations, [row])
        return Evaluated()

    async def _place(self, result: Path, plan: Plan, origin: Origin) -> ModelRow:
        """Move a model to its name, with the payload that the plan's downloads need beside it."""
        encoding = plan.wire.download
        encodings: tuple[Encoding, ...] = ("fp32",)
        if encoding != "fp32":
            encodings = ("fp32", encoding)
            job = jobs.EncodeJob(
                model=str(result), encoding=encoding, out=str(result.with_suffix(f".{encoding}"))
            )
            await self._worker.run(job, jobs.EncodeReport, self._progress)
        return await off_loop(self._models.place, result, origin, encodings)

    def _contributions(self, state: RoundState) -> tuple[jobs.Contribution, ...]:
        return tuple(
            jobs.Contribution(
                silo=update.silo,
                path=str(update_path(self._folders, state, update.silo)),
                num_images=update.report.num_images,
                cosine_distance=update.report.cosine_distance,
            )
            for update in state.updates
        )

    def _work(self, state: RoundState) -> Path:
        return self._folders.work(state.run, state.number)

    def _result(self, state: RoundState, rules: Rules) -> Path:
        name = "distilled" if rules.distils else "aggregate"
        return self._work(state) / f"{name}.safetensors"

    def _progress(self, progress: Progress) -> None:
        self.tell(f"{progress.phase} {progress.done}/{progress.total}")


def update_path(folders: Folders, state: RoundState, silo: str) -> Path:
    """Where the accepted update of a silo lies, in canonical form."""
    return folders.spool(state.run, state.number) / f"{silo}.safetensors"


def uses_public_images(plan: Plan, state: RoundState) -> bool:
    """Whether this round distils, or re-estimates BatchNorm statistics."""
    return _distils(plan, state) or plan.aggregation.bn == "recalibrated"


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
    if plan.aggregation.bn == "recalibrated" and not plan.distillation.images:
        raise RunError(
            "bn = 'recalibrated' needs public images",
            next_step="Set distillation.images, or choose bn = 'pooled'.",
        )


def _distils(plan: Plan, state: RoundState) -> bool:
    due = (state.published_before + 1) % plan.distillation.every == 0
    return bool(plan.distillation.images) and due
