"""How do embeddings lie in a file, and how is a gallery of them searched?

By the ending of the name: ``.npz`` (NumPy), ``.parquet`` (a table, for databases) or ``.faiss``
(an index that FAISS opens; its paths and model stand in a note beside it). All three can be
searched; distances are exact inner products, which are cosines.

Letters: Q queries, G gallery images, D feature width, K ranks.
"""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import blake3
import msgspec
import numpy as np

from fedreid.errors import StorageError, UsageError, storage_errors
from fedreid.files import write_bytes
from silo_agent.using.embedding import Embeddings
from silo_agent.using.extras import needed
from silo_agent.using.provenance import Provenance, sidecar_of

_MODEL = "model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """One gallery image."""

    path: str
    similarity: float
    """Cosine, in -1..1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """A query's best gallery images, best first."""

    query: str
    matches: tuple[Match, ...]


def check_comparable(asking: Provenance, searched: Provenance) -> None:
    """Refuse to compare embeddings of different models: their spaces have nothing in common.

    Raises:
        UsageError: the two are not of the same weights, or not of the same image size.
    """
    if not asking.comparable(searched):
        raise UsageError(
            "Embeddings of different models can't be compared",
            why=f"the gallery was embedded by {searched.named()} (weights "
            f"{searched.digest[:12]}…), the queries would be by {asking.named()} "
            f"({asking.digest[:12]}…)",
            next_step="Embed the gallery again, or choose the model that it was embedded by: "
            f"--model {'FILE' if searched.model == 'file' else searched.model}.",
        )


def search(queries: Embeddings, gallery: Embeddings, *, top: int) -> list[Ranked]:
    """The ``top`` best gallery images of each query; a query never finds its own file.

    Raises:
        UsageError: FAISS is not installed.
    """
    assert queries.provenance.comparable(gallery.provenance)
    index = _index(gallery)
    similarities_QK, places_QK = index.search(queries.values_ND, min(top + 1, index.ntotal))
    ranked = []
    for query, places_K, similarities_K in zip(
        queries.paths, places_QK.tolist(), similarities_QK.tolist(), strict=True
    ):
        matches = [
            Match(path=gallery.paths[place], similarity=similarity)
            for place, similarity in zip(places_K, similarities_K, strict=True)
            if gallery.paths[place] != query
        ]
        ranked.append(Ranked(query=query, matches=tuple(matches[:top])))
    return ranked


def is_gallery_file(path: Path) -> bool:
    """Whether the name is one of an embeddings file."""
    return path.suffix.lower() in _FORMATS


def check_name(path: Path) -> None:
    """Look at the ending before work is done for it.

    Raises:
        UsageError: the ending is not known.
    """
    _format_of(path)


def save(path: Path, embeddings: Embeddings) -> None:
    """Durably write embeddings in the format of the file's ending.

    Raises:
        UsageError: the ending is not known, or its package is not installed.
        StorageError: the file can't be written.
    """
    _format_of(path).write(path, embeddings)


def load(path: Path) -> Embeddings:
    """Read embeddings back.

    Raises:
        UsageError: the ending is not known, or its package is not installed.
        StorageError: the file is missing or damaged.
    """
    with storage_errors("read", path):
        data = path.read_bytes()
    try:
        embeddings = _format_of(path).read(path, data)
        if len(embeddings.paths) != len(embeddings.values_ND):
            raise ValueError("paths and embeddings differ in number")
    except (UsageError, StorageError):
        raise
    except Exception as error:  # readers raise what they like
        raise StorageError(
            f"The embeddings {path} are damaged",
            why=str(error).splitlines()[0] if str(error) else type(error).__name__,
            next_step="Embed the images again.",
        ) from error
    return embeddings


@dataclass(frozen=True, slots=True)
class _Format:
    write: Callable[[Path, Embeddings], None]
    read: Callable[[Path, bytes], Embeddings]


def _format_of(path: Path) -> _Format:
    form = _FORMATS.get(path.suffix.lower())
    if form is None:
        raise UsageError(
            f"Embeddings can't be kept in {path.name!r}",
            next_step=f"Give the file one of the endings {', '.join(_FORMATS)}.",
        )
    return form


def _encoded(provenance: Provenance) -> str:
    return json.dumps(provenance.to_builtins())


def _decoded(text: str | bytes) -> Provenance:
    return msgspec.json.decode(text, type=Provenance)


def _write_npz(path: Path, embeddings: Embeddings) -> None:
    stream = io.BytesIO()
    np.savez(
        stream,
        embeddings=embeddings.values_ND,
        paths=np.array(embeddings.paths),
        model=np.array(_encoded(embeddings.provenance)),
    )
    write_bytes(path, stream.getvalue())


def _read_npz(path: Path, data: bytes) -> Embeddings:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return Embeddings(
            provenance=_decoded(str(arrays[_MODEL])),
            paths=tuple(arrays["paths"].tolist()),
            values_ND=arrays["embeddings"].astype(np.float32),
        )


def _parquet() -> tuple[ModuleType, ModuleType]:
    with needed("Parquet files", extra="search"):
        import pyarrow
        import pyarrow.parquet
    return pyarrow, pyarrow.parquet


def _write_parquet(path: Path, embeddings: Embeddings) -> None:
    arrow, parquet = _parquet()
    width = embeddings.values_ND.shape[1]
    rows = arrow.FixedSizeListArray.from_arrays(embeddings.values_ND.reshape(-1), width)
    table = arrow.table({"path": list(embeddings.paths), "embedding": rows})
    table = table.replace_schema_metadata({_MODEL: _encoded(embeddings.provenance)})
    stream = io.BytesIO()
    parquet.write_table(table, stream)
    write_bytes(path, stream.getvalue())


def _read_parquet(path: Path, data: bytes) -> Embeddings:
    _, parquet = _parquet()
    table = parquet.read_table(io.BytesIO(data))
    values = table["embedding"].combine_chunks()
    return Embeddings(
        provenance=_decoded(table.schema.metadata[_MODEL.encode()]),
        paths=tuple(table["path"].to_pylist()),
        values_ND=values.flatten().to_numpy().reshape(len(values), -1),
    )


def _faiss() -> ModuleType:
    with needed("Searching", extra="search"):
        import faiss
    return faiss


def _index(embeddings: Embeddings) -> Any:
    index = _faiss().IndexFlatIP(embeddings.values_ND.shape[1])
    index.add(np.ascontiguousarray(embeddings.values_ND))
    return index


class _FaissNote(msgspec.Struct, frozen=True, kw_only=True):
    """Beside an index, which knows neither files nor models."""

    model: Provenance
    paths: tuple[str, ...]
    file_digest: str
    """Of the index: a crash between the two files must not pair an old one with a new one."""


def _write_faiss(path: Path, embeddings: Embeddings) -> None:
    data = _faiss().serialize_index(_index(embeddings)).tobytes()
    note = {
        _MODEL: embeddings.provenance.to_builtins(),
        "paths": embeddings.paths,
        "file_digest": blake3.blake3(data).hexdigest(),
    }
    write_bytes(path, data)
    write_bytes(sidecar_of(path), msgspec.json.format(msgspec.json.encode(note)) + b"\n")


def _read_faiss(path: Path, data: bytes) -> Embeddings:
    with storage_errors("read", sidecar_of(path)):
        text = sidecar_of(path).read_bytes()
    note = msgspec.json.decode(text, type=_FaissNote)
    if blake3.blake3(data).hexdigest() != note.file_digest:
        raise ValueError(f"{sidecar_of(path).name} belongs to another index")
    index = _faiss().deserialize_index(np.frombuffer(data, dtype=np.uint8))
    return Embeddings(
        provenance=note.model, paths=note.paths, values_ND=index.reconstruct_n(0, index.ntotal)
    )


_FORMATS = {
    ".npz": _Format(_write_npz, _read_npz),
    ".parquet": _Format(_write_parquet, _read_parquet),
    ".faiss": _Format(_write_faiss, _read_faiss),
}
