"""What did a federation measure? Its rounds, figures and silos, gathered into one result."""

import importlib.metadata
import platform
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from benchmark.baselines import colour_accuracy
from benchmark.federation import LocalFederation
from benchmark.results import Accuracy, ModelKind, Results, RoundResult, SiloResult
from coordinator.client import every_evaluation, every_round
from fedreid.plan import parse_plan
from fedreid.v1 import admin_pb2
from fedreid.wire.messages import evaluation_from_wire
from silo_agent.config import Folders
from silo_agent.outbox import Outbox

if TYPE_CHECKING:
    from fedreid.v1.admin_pb2_grpc import AdminStub

PACKAGES = ("fedreid", "grpcio", "numpy", "protobuf", "torch", "torchvision")
"""Whose versions a result names."""
_PHASES = ("collecting", "aggregating", "distilling", "evaluating", "publishing")

Figures = dict[int, dict[str, dict[ModelKind, Accuracy]]]
"""By round, silo and model."""


def collect(federation: LocalFederation, name: str) -> Results:
    """The results of the finished run of ``federation``, asked of coordinator and agents."""
    with federation.admin() as admin:
        run = admin.GetRun(admin_pb2.GetRunRequest())
        rounds = every_round(admin)
        told = every_evaluation(admin)
    figures = _figures(told)
    published = [state for state in rounds if state.phase == "published"]
    return Results(
        federation=name,
        run=run.run,
        seed=parse_plan(run.plan_toml).seed,
        plan=run.plan_toml,
        silos={silo: _silo(federation, silo, published, figures) for silo in federation.silos},
        rounds=tuple(_round(state, figures) for state in published),
        versions={
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in PACKAGES},
        },
    )


def measured_rounds(admin: "AdminStub") -> tuple[dict[str, Accuracy], tuple[RoundResult, ...]]:
    """Figures of the start weights by silo, and the published rounds of the current run."""
    rounds = every_round(admin)
    told = every_evaluation(admin)
    figures = _figures(told)
    untrained = {silo: models["global"] for silo, models in figures[0].items()}
    published = [state for state in rounds if state.phase == "published"]
    return untrained, tuple(_round(state, figures) for state in published)


def _figures(told: Iterable[admin_pb2.SiloEvaluation]) -> Figures:
    figures: Figures = defaultdict(lambda: defaultdict(dict))
    for item in told:
        result = evaluation_from_wire(item.evaluation)
        figures[item.round][item.silo][result.model] = Accuracy.of(result)
    return figures


def _silo(
    federation: LocalFederation,
    silo: str,
    published: Sequence[admin_pb2.RoundSummary],
    figures: Figures,
) -> SiloResult:
    outbox = Outbox(Folders(federation.agent_data(silo)))
    last = outbox.last()
    final = figures[published[-1].number][silo] if published else {}
    return SiloResult(
        images=0 if last is None else last.report.num_images,
        identities=0 if last is None else last.num_identities,
        colours=colour_accuracy(federation.silos[silo]),
        untrained=figures[0][silo].get("global"),
        standalone=final.get("standalone"),
        local=final.get("local"),
        global_=final.get("global"),
    )


def _round(state: admin_pb2.RoundSummary, figures: Figures) -> RoundResult:
    distils = state.HasField("distillation_loss_before")
    return RoundResult(
        number=state.number,
        model_digest=state.model_digest,
        participants=tuple(participant.silo for participant in state.participants),
        weights={participant.silo: participant.weight for participant in state.participants},
        cosine_distances={
            participant.silo: participant.report.cosine_distance
            for participant in state.participants
        },
        phase_seconds={
            phase: state.phase_seconds[phase] for phase in _PHASES if phase in state.phase_seconds
        },
        upload_bytes=state.upload_bytes,
        download_bytes=state.download_bytes,
        distillation_loss_before=state.distillation_loss_before if distils else None,
        distillation_loss_after=state.distillation_loss_after if distils else None,
        evaluations={silo: dict(models) for silo, models in figures[state.number].items()},
    )
