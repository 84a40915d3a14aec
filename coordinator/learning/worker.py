"""Which process does the coordinator's heavy work? ``python -m coordinator.learning.worker``.

Only the jobs that need torch import it: a coordinator that merely aggregates stays small.
"""

from collections.abc import Callable
from pathlib import Path

from coordinator.learning.aggregation import aggregate
from coordinator.learning.jobs import (
    AggregateJob,
    ClusterJob,
    ClusterReport,
    DistilJob,
    DistilReport,
    EncodeJob,
    EncodeReport,
    EvaluateJob,
    EvaluateReport,
    InitialiseJob,
    InitialiseReport,
)
from coordinator.learning.without_torch import check_torch, copy_start, has_torch
from fedreid.files import digest_of, replacing
from fedreid.jobs import Job, ProgressSink, Report, serve
from fedreid.wire.differences import Difference
from fedreid.wire.encoding import decode, encode
from fedreid.wire.tensors import TensorFile

_INITIALISE_THREADS = 1
"""Drawing random numbers gains nothing from more."""


def write_payload(job: EncodeJob, progress: ProgressSink) -> EncodeReport:
    """Write a model's payload in the encoding that downloads take."""
    out = Path(job.out)
    if job.base:
        _quantise(job)
    else:
        with TensorFile(Path(job.model)) as file, replacing(out) as stream:
            encode(file, file.layout, job.encoding, stream)
    return EncodeReport(digest=digest_of(out), size_bytes=out.stat().st_size)


def _quantise(job: EncodeJob) -> None:
    """Write how a model differs from its base, and make the model what this says.

    Not to be done twice to the same model: differences of what was rounded round to others.
    """
    out, model = Path(job.out), Path(job.model)
    with TensorFile(model) as file, TensorFile(Path(job.base)) as base:
        with replacing(out) as stream:
            encode(file, file.layout, job.encoding, stream, Difference(base=base))
        with out.open("rb") as payload, replacing(model) as stream:
            decode(payload, file.layout, job.encoding, stream, base)


def _initialise(job: InitialiseJob, progress: ProgressSink) -> InitialiseReport:
    if not has_torch():
        return copy_start(job)
    from coordinator.learning.start import write_start

    _settle_torch(_INITIALISE_THREADS)
    return write_start(job, progress)


def _distil(job: DistilJob, progress: ProgressSink) -> DistilReport:
    check_torch("distil")
    from coordinator.learning.distillation import distil

    _settle_torch(job.distillation.threads)
    return distil(job, progress)


def _cluster(job: ClusterJob, progress: ProgressSink) -> ClusterReport:
    check_torch("cluster silos")
    from coordinator.learning.clustering import cluster

    _settle_torch(job.distillation.threads)
    return cluster(job, progress)


def _evaluate(job: EvaluateJob, progress: ProgressSink) -> EvaluateReport:
    check_torch("evaluate")
    from coordinator.learning.evaluation import evaluate

    _settle_torch(job.threads)
    return evaluate(job, progress)


def _settle_torch(threads: int) -> None:
    """The same bits every time, with a fixed number of threads."""
    import torch

    from fedreid.reid.settling import settle_torch

    torch.set_num_threads(threads)
    settle_torch()


HANDLERS: dict[type[Job], Callable[..., Report]] = {
    InitialiseJob: _initialise,
    AggregateJob: aggregate,
    ClusterJob: _cluster,
    DistilJob: _distil,
    EvaluateJob: _evaluate,
    EncodeJob: write_payload,
}
"""What does each kind of job."""


if __name__ == "__main__":
    serve(HANDLERS)
