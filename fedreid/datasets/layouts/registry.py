"""Which layouts are there, which one is this folder in, and what does it hold?"""

from pathlib import Path

from fedreid.datasets.layouts.base import Dataset, Layout, Options
from fedreid.datasets.layouts.cuhk import CUHK01, CUHK02
from fedreid.datasets.layouts.drawn_views import ILIDS, THREEDPES
from fedreid.datasets.layouts.folders import FOLDERS
from fedreid.datasets.layouts.market_style import CUHK03_NP, DUKEMTMC_REID, MARKET1501
from fedreid.datasets.layouts.msmt17 import MSMT17
from fedreid.datasets.layouts.preprocessed import PREPROCESSED
from fedreid.datasets.layouts.splitting import check_split
from fedreid.datasets.layouts.two_cameras import PRID2011, VIPER
from fedreid.datasets.layouts.walking import Walk, reading
from fedreid.datasets.records import SPLITS
from fedreid.errors import DatasetError, UsageError

_ALL = (
    MARKET1501,
    DUKEMTMC_REID,
    MSMT17,
    CUHK03_NP,
    CUHK01,
    CUHK02,
    VIPER,
    PRID2011,
    THREEDPES,
    ILIDS,
    PREPROCESSED,
    FOLDERS,
)
LAYOUTS = tuple(layout.name for layout in _ALL)


def load(
    path: Path,
    layout: str = "auto",
    *,
    split: int = 0,
    exclude_p1: bool = True,
    withdrawn_confirmed: bool = False,
) -> Dataset:
    """The records below ``path``; no image is opened; ``auto`` recognises the layout.

    ``split`` (0..9) is which drawn split of a small set is meant, and changes nothing in the
    others. ``exclude_p1`` leaves the part of CUHK02 out that is CUHK01. ``withdrawn_confirmed``
    says that the operator answers for using a set that its owners have withdrawn.

    Raises:
        UsageError: no layout or split of that name; a withdrawn set without confirmation.
        DatasetError: the folder is missing, unreadable, or holds no image in that layout.
    """
    check_split(split)
    with reading(path):
        chosen = _chosen(path, layout)
    if chosen.withdrawn(path) and not withdrawn_confirmed:
        raise UsageError(
            f"{path} looks like DukeMTMC-reID, which is not used unless you say so",
            why="its owners have withdrawn it, for the people in it were never asked",
            next_step="Leave it out, or answer for it with --confirm-withdrawn.",
        )
    walk = Walk()
    options = Options(split=split, exclude_p1=exclude_p1, withdrawn_confirmed=withdrawn_confirmed)
    with reading(path):
        records = chosen.read(path, walk, options)
    if not records:
        raise _empty(path, chosen, walk)
    return Dataset(
        root=path,
        layout=chosen.name,
        **{split: tuple(r for r in records if r.split == split) for split in SPLITS},
        ignored=walk.ignored,
        first_ignored=walk.first_ignored,
        folders=tuple(walk.folders),
        identity_names=walk.identities.names,
        camera_names=walk.cameras.names,
    )


def _chosen(path: Path, name: str) -> Layout:
    if name not in ("auto", *LAYOUTS):
        raise UsageError(
            f"There is no dataset layout {name!r}",
            next_step=f"Use one of: auto, {', '.join(LAYOUTS)}.",
        )
    if not path.is_dir():
        raise DatasetError(
            f"The dataset folder {path} is not there",
            why="it was moved or mistyped, or its disk is not mounted",
            next_step="Mount it, or name the folder that holds the images.",
        )
    if name != "auto":
        return next(layout for layout in _ALL if layout.name == name)
    if FOLDERS.recognises(path):  # a manifest is the operator's own word
        return FOLDERS
    return next((layout for layout in _ALL if layout.recognises(path)), FOLDERS)


def _empty(path: Path, layout: Layout, walk: Walk) -> DatasetError:
    why = f"{walk.ignored} image files have other names or places"
    if walk.first_ignored is not None:
        why += f", such as {walk.first_ignored}"
    return DatasetError(
        f"The dataset folder {path} holds no image in the layout {layout.name!r}",
        why=why,
        next_step=f"Expected: {layout.expected}.",
    )
