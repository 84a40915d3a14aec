"""Which model does a run start from?"""

from pathlib import Path

from coordinator.learning.jobs import InitialiseJob, InitialiseReport
from fedreid.jobs import ProgressSink
from fedreid.reid.backbone import build_backbone, initialise, shared_tensors
from fedreid.wire.tensors import is_statistic, save_tensors


def write_start(job: InitialiseJob, progress: ProgressSink) -> InitialiseReport:
    """Write the model that a run starts from.

    Raises:
        UsageError: no such network, or start weights that can't be had or do not fit.
    """
    backbone = build_backbone(job.backbone)
    initialise(backbone, job.seed)
    tensors = shared_tensors(backbone)
    save_tensors(Path(job.out), tensors)
    learned = (values.size for name, values in tensors.items() if not is_statistic(name))
    return InitialiseReport(parameters=sum(learned))
