"""What does a model make of a site's own images? One embedding each, with the file it is of.

Letters: N images, C channels, H height, W width, D feature width.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedreid.datasets.checks import Unreadable
from fedreid.datasets.images import is_image
from fedreid.errors import DatasetError
from fedreid.reid.features import EVALUATION_BATCH, pixel_features
from fedreid.reid.transforms import DECODERS, ByteArray, pixels_of
from fedreid.wire.tensors import FloatArray
from silo_agent.using.chosen import ChosenModel, best_device
from silo_agent.using.provenance import Provenance


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """Images by their absolute paths, and values_ND with a row of length 1 for each."""

    provenance: Provenance
    paths: tuple[str, ...]
    values_ND: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Embedded:
    """What became of the images that were named."""

    embeddings: Embeddings
    skipped: tuple[Unreadable, ...]
    """Files of folders that can't be decoded; a file that was named itself is an error."""


@dataclass(frozen=True, slots=True)
class _Found:
    path: Path
    named: bool


def embed(
    chosen: ChosenModel, sources: Sequence[Path], *, tell: Callable[[int, int], None]
) -> Embedded:
    """Embed image files, and all images below folders; ``tell`` hears images done and in all.

    Raises:
        DatasetError: a source is missing, a file named itself can't be decoded, or no image is
            left.
        JobFailed: the model gives values that are not finite.
    """
    found = find_images(sources)
    device = best_device()
    backbone = chosen.backbone().to(device)
    size = (chosen.provenance.backbone.width_px, chosen.provenance.backbone.height_px)
    paths: list[str] = []
    blocks: list[FloatArray] = []
    skipped: list[Unreadable] = []
    done = 0
    for block in _blocks(found):
        pixels, unreadable = _decoded(block, size)
        skipped += unreadable
        if pixels:
            pixels_NCHW = np.stack(list(pixels.values()))
            blocks.append(pixel_features(backbone, pixels_NCHW, device=device))
            paths += [str(path.absolute()) for path in pixels]
        done += len(block)
        tell(done, len(found))
    if not blocks:
        raise DatasetError(
            f"None of {len(found)} image files can be read",
            why=f"the first is {skipped[0].path}: {skipped[0].why}",
            next_step="Name a folder with images.",
        )
    embeddings = Embeddings(
        provenance=chosen.provenance, paths=tuple(paths), values_ND=np.concatenate(blocks)
    )
    return Embedded(embeddings=embeddings, skipped=tuple(skipped))


def find_images(sources: Sequence[Path]) -> list[_Found]:
    """The files as they were named, and each folder's images by path; each file once.

    Raises:
        DatasetError: a source is missing, or there is no image.
    """
    found: dict[Path, _Found] = {}
    for source in sources:
        if source.is_dir():
            for path in _below(source):
                found.setdefault(path.absolute(), _Found(path, named=False))
        elif source.exists():
            found[source.absolute()] = _Found(source, named=True)
        else:
            raise DatasetError(
                f"There is no file or folder {source}", next_step="Check the name and its disk."
            )
    if not found:
        raise DatasetError(
            f"There is no image below {', '.join(map(str, sources))}",
            next_step="Name image files, or a folder that holds some.",
        )
    return list(found.values())


def _below(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "@")))
        yield from (Path(root) / name for name in sorted(names) if is_image(name))


def _blocks(found: Sequence[_Found]) -> Iterator[Sequence[_Found]]:
    for start in range(0, len(found), EVALUATION_BATCH):
        yield found[start : start + EVALUATION_BATCH]


def _decoded(
    block: Sequence[_Found], size: tuple[int, int]
) -> tuple[dict[Path, ByteArray], list[Unreadable]]:
    """pixels_CHW by file, and the files of folders that can't be decoded."""

    def decode(one: _Found) -> ByteArray | Unreadable:
        try:
            return pixels_of(one.path, size)
        except DatasetError as error:
            if one.named:
                raise
            return Unreadable(path=one.path, why=error.why)

    with ThreadPoolExecutor(DECODERS) as pool:
        results = list(pool.map(decode, block))
    pixels = {
        one.path: result
        for one, result in zip(block, results, strict=True)
        if not isinstance(result, Unreadable)
    }
    return pixels, [result for result in results if isinstance(result, Unreadable)]
