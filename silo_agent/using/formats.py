"""How is a model written in each format, and how would a stranger run what was written?

Exporters leave the paths of this machine's packages in their files, as debugging aids; they are
taken out.

Letters: N images, C channels, H height, W width, D feature width.
"""

import io
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fedreid.errors import JobFailed
from fedreid.reid.backbone import load_backbone
from fedreid.reid.features import pixel_features
from fedreid.reid.transforms import ByteArray
from fedreid.wire.tensors import FloatArray, load_tensors, write_model
from silo_agent.using.chosen import ChosenModel
from silo_agent.using.embedder import Embedder, input_of
from silo_agent.using.extras import needed

INPUT = "images"
OUTPUT = "embeddings"

NOTE_NAME = "fedreid.json"
"""Where the note lies inside: ONNX metadata key, TorchScript extra file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A file's bytes."""

    data: bytes
    run: Callable[[ByteArray], FloatArray]
    """embeddings_ND of pixels_NCHW by the model as it was loaded back from the bytes."""


def safetensors(chosen: ChosenModel) -> Built:
    """The weights by name in the canonical form; for ``global`` the very file that was published.

    (Unless it came in bf16, or the silo's own BatchNorm stands in it.)
    """
    stream = io.BytesIO()
    write_model(stream, chosen.tensors)
    data = stream.getvalue()

    def run(pixels_NCHW: ByteArray) -> FloatArray:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            path.write_bytes(data)
            backbone = load_backbone(chosen.provenance.backbone, load_tensors(path))
        backbone.eval()
        return pixel_features(backbone, pixels_NCHW)

    return Built(data=data, run=run)


def torchscript(embedder: Embedder, example_NCHW: Tensor, note: str) -> Built:
    """A traced module with any number of images per batch."""
    with _quiet(), torch.no_grad():
        traced = torch.jit.trace(embedder, example_NCHW)  # type: ignore[no-untyped-call]
        stream = io.BytesIO()
        torch.jit.save(traced, stream, _extra_files={NOTE_NAME: note})
        data = _without_debugging(stream.getvalue())
        loaded = torch.jit.load(io.BytesIO(data))  # type: ignore[no-untyped-call]

    def run(pixels_NCHW: ByteArray) -> FloatArray:
        with torch.no_grad():
            embeddings_ND: FloatArray = loaded(input_of(pixels_NCHW)).numpy()
        return embeddings_ND

    return Built(data=data, run=run)


def onnx(embedder: Embedder, example_NCHW: Tensor, note: str) -> Built:
    """An ONNX graph with any number of images per batch.

    Raises:
        UsageError: a package of the extra ``export`` is missing.
        JobFailed: the network has an operation that ONNX lacks.
    """
    with needed("Exporting to ONNX", extra="export"):
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter is built on it
    try:
        data = _onnx_bytes(embedder, example_NCHW, note)
    except Exception as error:  # exporters raise what they like
        raise JobFailed(
            "This network can't be exported to ONNX",
            why=str(error).splitlines()[0] if str(error) else type(error).__name__,
            next_step="Export it with --format torchscript.",
        ) from error
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def run(pixels_NCHW: ByteArray) -> FloatArray:
        embeddings_ND: FloatArray
        (embeddings_ND,) = session.run([OUTPUT], {INPUT: input_of(pixels_NCHW).numpy()})
        return embeddings_ND

    return Built(data=data, run=run)


def _onnx_bytes(embedder: Embedder, example_NCHW: Tensor, note: str) -> bytes:
    with _quiet():
        program = torch.onnx.export(
            embedder,
            (example_NCHW,),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes={"images": {0: torch.export.Dim("N", min=1)}},
        )
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    del model.metadata_props[:]
    entry = model.metadata_props.add()
    entry.key, entry.value = NOTE_NAME, note
    data: bytes = model.SerializeToString()
    return data


def _without_debugging(archive: bytes) -> bytes:
    """A TorchScript archive without the tables that map its code to files of this machine."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(archive)) as before,
        zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as after,
    ):
        for name in before.namelist():
            if not name.endswith(".debug_pkl"):
                after.writestr(zipfile.ZipInfo(name), before.read(name))
    return out.getvalue()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings that TorchScript is deprecated: many products load nothing else."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*torch\.jit\.", FutureWarning)
        yield
