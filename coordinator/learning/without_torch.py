"""What can a coordinator do that was installed without torch? Start from a model, and aggregate.

Its image is small: most of it elsewhere is torch. A run of such a coordinator starts from a file
that ``coordinator model export`` wrote, which holds the whole backbone; whatever computes with
networks is refused with a sentence instead of failing at an import.
"""

import importlib.util
from pathlib import Path

from coordinator.learning.jobs import InitialiseJob, InitialiseReport
from fedreid.errors import UsageError
from fedreid.wire.tensors import is_statistic, load_tensors, save_tensors

_OURS = ("trunk.", "neck.")
_NEXT_STEP = "Install it with torch (the extra 'coordinator', or an image with torch)"


def has_torch() -> bool:
    """Whether torch is installed; it is not imported."""
    return importlib.util.find_spec("torch") is not None


def check_torch(what: str) -> None:
    """Check that torch is there for ``what``.

    Raises:
        UsageError: it is not.
    """
    if not has_torch():
        raise UsageError(
            f"This coordinator was installed without torch and can't {what}",
            next_step=f"{_NEXT_STEP}, or leave this out of the plan.",
        )


def copy_start(job: InitialiseJob) -> InitialiseReport:
    """Write the model that a run starts from, where ``start`` is a whole backbone's file.

    Names and shapes are not compared with the network, which takes torch: the first silo that
    builds it refuses a model of another one.

    Raises:
        UsageError: start weights that have to be computed, or no file of a whole backbone.
        StorageError: the file is missing or damaged.
    """
    path = Path(job.backbone.start)
    if path.suffix != ".safetensors":
        raise UsageError(
            f"This coordinator was installed without torch and can't start from {str(path)!r}",
            next_step=f"{_NEXT_STEP}, or start from a model that 'coordinator model export' wrote.",
        )
    tensors = load_tensors(path)
    if not all(name.startswith(_OURS) for name in tensors):
        raise UsageError(
            f"{path} is not the file of a whole backbone",
            why=f"the names of its tensors do not all begin with {' or '.join(_OURS)}",
            next_step="Start from a model that 'coordinator model export' wrote.",
        )
    save_tensors(Path(job.out), tensors)
    learned = (values.size for name, values in tensors.items() if not is_statistic(name))
    return InitialiseReport(parameters=sum(learned))
