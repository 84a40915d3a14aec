"""Which training process learns nothing? It adds a constant that depends on silo and round."""

from pathlib import Path

import numpy as np

from fedreid import faults
from fedreid.files import make_folder, replacing
from fedreid.jobs import ProgressSink, serve
from fedreid.limits import MIB
from fedreid.seeds import derive_seed
from fedreid.wire.tensors import TensorFile
from silo_agent.learning.jobs import EvaluateJob, EvaluateReport, TrainJob, TrainReport
from silo_agent.outbox import UPDATE_FILE

_STEP = 1e-3
_IMAGES = 100
_STEPS = 4
_BLOCK_BYTES = 1 * MIB


def train(job: TrainJob, tell: ProgressSink) -> TrainReport:
    """Write the base model plus a constant, block by block."""
    share = derive_seed(job.seed, job.silo.name, job.round) % 1000 / 1000
    step = np.float32(_STEP * (0.5 + share))
    path = Path(job.out) / UPDATE_FILE
    with (
        TensorFile(Path(job.base_model)) as base,
        replacing(path, over=job.spare) as stream,
    ):
        stream.write(base.layout.header())
        size = base.layout.size_bytes
        for offset in range(0, size, _BLOCK_BYTES):
            values = base.values(offset, min(_BLOCK_BYTES, size - offset))
            values += step
            stream.write(values.view(np.uint8).data)
            faults.point("train.step")
    make_folder(Path(job.out) / "private", mode=0o700)
    return TrainReport(
        num_images=_IMAGES,
        num_identities=1,
        cosine_distance=0.1 + share,
        train_loss=1.0,
        num_steps=_STEPS,
        evaluations=(),
    )


def evaluate(job: EvaluateJob, tell: ProgressSink) -> EvaluateReport:
    """There is nothing to measure."""
    return EvaluateReport(evaluations=())


if __name__ == "__main__":
    serve({TrainJob: train, EvaluateJob: evaluate})
