"""Which public, unlabelled images does the coordinator distil on?

Any image below the plan's folder counts; of CUHK02, which contains the people of CUHK01, P1 is left
out unless the plan says otherwise. They are used every round, so the process keeps them
decoded between jobs, until a file of the folder changes.
"""

from functools import lru_cache
from pathlib import Path

from fedreid.datasets.images import SUFFIXES, is_image
from fedreid.datasets.layouts import load
from fedreid.datasets.layouts.cuhk import is_cuhk02
from fedreid.errors import DatasetError, storage_errors
from fedreid.limits import MIB
from fedreid.plan import BackbonePlan, DistillationPlan
from fedreid.reid.transforms import ImageStore

PUBLIC_CACHE_BYTES = 1024 * MIB
"""Decoded public images kept in memory: all 7,264 of CUHK02 at 256×128 are 0.7 GiB."""

_File = tuple[Path, int, int]
"""Path, modification time and size: another file in its place is noticed."""


def public_images(plan: DistillationPlan, backbone: BackbonePlan) -> ImageStore:
    """The images of the plan's folder at the backbone's size, in the order of their paths.

    Raises:
        DatasetError: the folder is missing or holds fewer than two images.
    """
    folder = Path(plan.images)
    files = _files(folder, exclude_cuhk01=plan.exclude_cuhk01)
    if len(files) < 2:  # BatchNorm can't be re-estimated on one, nor cosines be compared
        raise DatasetError(
            f"The folder of public images {folder} holds {len(files)} image(s)",
            why=f"distillation needs at least two; counted are {', '.join(sorted(SUFFIXES))}",
            next_step="Put images there, or leave distillation.images empty in the plan.",
        )
    return _store(files, backbone.height_px, backbone.width_px)


def _files(folder: Path, *, exclude_cuhk01: bool) -> tuple[_File, ...]:
    if not folder.is_dir():
        raise DatasetError(
            f"There is no folder of public images {folder}",
            why="the plan's distillation.images names a folder of the coordinator's machine",
            next_step="Correct the path, or leave it empty to run without distillation.",
        )
    with storage_errors("read", folder):
        if exclude_cuhk01 and is_cuhk02(folder):
            paths = [record.path for record in load(folder, "cuhk02", exclude_p1=True).train]
        else:
            paths = sorted(path for path in folder.rglob("*") if is_image(path.name))
        states = [path.stat() for path in paths]
    return tuple(
        (path, state.st_mtime_ns, state.st_size) for path, state in zip(paths, states, strict=True)
    )


@lru_cache(maxsize=1)
def _store(files: tuple[_File, ...], height_px: int, width_px: int) -> ImageStore:
    return ImageStore(
        [path for path, _, _ in files],
        height_px=height_px,
        width_px=width_px,
        cache_bytes=PUBLIC_CACHE_BYTES,
    )
