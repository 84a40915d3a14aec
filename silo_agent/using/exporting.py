"""How does a model leave as a file that other software runs, and is it still the same model?

The file is loaded back and run before it takes its place: its embeddings of random and of real
images must be those of the original. Beside it lies a note (FILE.json) that says which model it is
and what it takes and gives; ONNX and TorchScript carry the same note inside.

Letters: N images, C channels, H height, W width, D feature width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import blake3
import msgspec
import numpy as np
import torch

from fedreid import __version__
from fedreid.datasets.layouts import Dataset
from fedreid.errors import JobFailed
from fedreid.files import write_bytes
from fedreid.reid.features import pixel_features
from fedreid.reid.transforms import MEAN_C, STD_C, ByteArray, ImageStore
from silo_agent.using.chosen import ChosenModel
from silo_agent.using.embedder import Embedder
from silo_agent.using.formats import INPUT, OUTPUT, Built, onnx, safetensors, torchscript
from silo_agent.using.provenance import Provenance, sidecar_of

Format = Literal["onnx", "safetensors", "torchscript"]
FORMATS: tuple[Format, ...] = get_args(Format)

TOLERANCE = 1e-4
"""Largest difference of a component of an embedding, which has length 1."""

RANDOM_IMAGES = 3
REAL_IMAGES = 8
"""Two batches of different sizes, so that the batch dimension is seen to be free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A file that was written, and what its check found."""

    model: Provenance
    path: Path
    note: Path
    file_bytes: int
    largest_difference: float
    """Between components of its embeddings and the original's."""
    images_checked: int


def export_model(chosen: ChosenModel, form: Format, out: Path, *, dataset: Dataset) -> Exported:
    """Write the model to ``out``, and its note beside it, once the file has proved itself.

    ``dataset`` lends the real images of the check; none of them is kept.

    Raises:
        UsageError: packages are missing, or the model's weights don't fit its network.
        DatasetError: the dataset has no image, or one can't be read.
        JobFailed: the network can't be exported, or the file gives other embeddings.
        StorageError: the file can't be written.
    """
    batches = [_random_pixels(chosen), _real_pixels(chosen, dataset)]
    built = _build(chosen, form)
    difference = _largest_difference(chosen, built, batches)
    if not difference <= TOLERANCE:  # NaN fails too
        raise JobFailed(
            f"The {form} file does not give the model's embeddings, so none was written",
            why=f"they differ by up to {difference:.2g}, {TOLERANCE:g} is allowed",
            next_step="Try another format, or other versions of the packages of the extra export.",
        )
    checked = sum(len(batch) for batch in batches)
    note = {
        **_description(chosen, form),
        "file_bytes": len(built.data),
        "file_digest": blake3.blake3(built.data).hexdigest(),
        "checked": {"images": checked, "largest_difference": difference, "allowed": TOLERANCE},
    }
    write_bytes(out, built.data)
    write_bytes(sidecar_of(out), msgspec.json.format(msgspec.json.encode(note)) + b"\n")
    return Exported(
        model=chosen.provenance,
        path=out,
        note=sidecar_of(out),
        file_bytes=len(built.data),
        largest_difference=difference,
        images_checked=checked,
    )


def _random_pixels(chosen: ChosenModel) -> ByteArray:
    size = chosen.provenance.backbone
    shape = (RANDOM_IMAGES, 3, size.height_px, size.width_px)
    return np.random.default_rng(0).integers(0, 256, size=shape, dtype=np.uint8)


def _real_pixels(chosen: ChosenModel, dataset: Dataset) -> ByteArray:
    records = (dataset.query or dataset.gallery or dataset.train)[:REAL_IMAGES]
    size = chosen.provenance.backbone
    images = ImageStore(
        [record.path for record in records], height_px=size.height_px, width_px=size.width_px
    )
    return images.batch(np.arange(len(images)))


def _largest_difference(chosen: ChosenModel, built: Built, batches: Sequence[ByteArray]) -> float:
    backbone = chosen.backbone()
    return max(
        float(np.abs(built.run(pixels) - pixel_features(backbone, pixels)).max())
        for pixels in batches
    )


def _build(chosen: ChosenModel, form: Format) -> Built:
    if form == "safetensors":
        return safetensors(chosen)
    embedder = Embedder(chosen.backbone().to(memory_format=torch.contiguous_format)).eval()
    size = chosen.provenance.backbone
    example_NCHW = torch.rand(2, 3, size.height_px, size.width_px)
    note = msgspec.json.encode(_description(chosen, form)).decode()
    return (onnx if form == "onnx" else torchscript)(embedder, example_NCHW, note)


def _description(chosen: ChosenModel, form: Format) -> dict[str, object]:
    """What the file is, takes and gives; the same in the file, where it can hold it, and beside."""
    size = chosen.provenance.backbone
    network = form == "safetensors"
    return {
        "format": form,
        "made_by": f"fedreid {__version__}",
        "model": chosen.provenance.to_builtins(),
        "input": {
            "name": INPUT,
            "dtype": "float32",
            "shape": ["N", 3, size.height_px, size.width_px],
            "range": [0, 1],
            "colours": "RGB",
            "resize": "bicubic",
        },
        "normalisation": {"mean": MEAN_C, "std": STD_C},
        "embedding": "f(x) + f(mirrored x) of normalised images, divided by its length",
        "left_to_the_caller": [
            "resize, RGB, divide by 255",
            *(["build the network, normalise, mirror, sum, divide by length"] if network else []),
        ],
        "output": {
            "name": OUTPUT,
            "dtype": "float32",
            "shape": ["N", chosen.backbone().feature_width],
            "compare": "inner product, which is the cosine; 1 is the same",
        },
    }
