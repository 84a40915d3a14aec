"""How does a model file become a network of the coordinator's, and a network a model file?"""

from collections.abc import Mapping
from pathlib import Path

from coordinator.learning.jobs import InitialiseJob, InitialiseReport
from fedreid.files import replacing
from fedreid.jobs import ProgressSink
from fedreid.plan import BackbonePlan
from fedreid.reid.backbone import (
    ReIDBackbone,
    build_backbone,
    initialise,
    load_shared,
    shared_tensors,
)
from fedreid.wire.tensors import FloatArray, TensorFile, is_statistic, write_model


def read_tensors(path: str) -> dict[str, FloatArray]:
    """Every tensor of a model file."""
    with TensorFile(Path(path)) as file:
        return file.read_all()


def network(plan: BackbonePlan, tensors: Mapping[str, FloatArray]) -> ReIDBackbone:
    """The plan's backbone with these weights, in evaluation mode and without dropout."""
    backbone = build_backbone(plan, dropout=0.0)
    load_shared(backbone, tensors)
    return backbone.eval()


def save(backbone: ReIDBackbone, path: str) -> None:
    """Durably write the backbone's shared tensors as a model file."""
    tensors = shared_tensors(backbone)
    with replacing(Path(path)) as stream:
        write_model(stream, tensors)


def write_first(job: InitialiseJob, progress: ProgressSink) -> InitialiseReport:
    """Write the model that a run starts from.

    Raises:
        UsageError: no such network, or start weights that can't be had or do not fit.
    """
    backbone = build_backbone(job.backbone)
    initialise(backbone, job.seed)
    save(backbone, job.out)
    learned = (
        values.size for name, values in shared_tensors(backbone).items() if not is_statistic(name)
    )
    return InitialiseReport(parameters=sum(learned))
