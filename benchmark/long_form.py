"""How are a grid's figures handed to other programs? One row per cell, round, silo and model.

Ratios are in 0..1, sizes in bytes, times in seconds. The columns that begin with ``round_`` are of
all silos together and stand the same on each row of a round, ``cell_seconds`` on each row of a
cell: take them once, don't add them up. What was not measured is null, an empty field in CSV.
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv, parquet

from benchmark.cells import CellResult
from benchmark.results import Accuracy, ModelKind, RoundResult
from fedreid.files import write_with

CSV_NAME = "results.csv"
PARQUET_NAME = "results.parquet"

SCHEMA = pa.schema(
    [
        ("bench", pa.string()),
        ("scenario", pa.string()),
        ("scenario_kind", pa.string()),
        ("method", pa.string()),
        ("seed", pa.int64()),
        ("kind", pa.string()),
        ("transport", pa.string()),
        ("silo", pa.string()),
        ("dataset", pa.string()),
        ("generated", pa.bool_()),
        ("train_images", pa.int64()),
        ("train_identities", pa.int64()),
        ("round", pa.int64()),
        ("model", pa.string()),
        ("rank1", pa.float64()),
        ("rank5", pa.float64()),
        ("map", pa.float64()),
        ("minp", pa.float64()),
        ("queries", pa.int64()),
        ("weight", pa.float64()),
        ("cosine_distance", pa.float64()),
        ("epsilon", pa.float64()),
        ("round_upload_bytes", pa.int64()),
        ("round_download_bytes", pa.int64()),
        ("round_seconds", pa.float64()),
        ("cell_seconds", pa.float64()),
    ]
)
"""The columns in their order. Round 0 is the start weights, model ``untrained``."""


def write_long_form(cells: Sequence[CellResult], out: Path) -> None:
    """Durably write ``results.csv`` and ``results.parquet``.

    Raises:
        StorageError: the folder can't be written.
    """
    table = pa.Table.from_pylist(list(_rows(cells)), schema=SCHEMA)
    write_with(out / CSV_NAME, lambda stream: csv.write_csv(table, stream))
    write_with(out / PARQUET_NAME, lambda stream: parquet.write_table(table, stream))


def _rows(cells: Iterable[CellResult]) -> Iterator[dict[str, Any]]:
    for cell in cells:
        for silo in sorted(cell.silos):
            place = _place(cell, silo)
            if silo in cell.untrained:
                untrained: ModelKind = "untrained"
                yield {**place, "round": 0, **_figures(untrained, cell.untrained[silo])}
            for one in cell.rounds:
                yield from ({**place, **row} for row in _round_rows(one, silo))


def _place(cell: CellResult, silo: str) -> dict[str, Any]:
    use = cell.silos[silo]
    return {
        "bench": cell.bench,
        "scenario": cell.scenario,
        "scenario_kind": cell.scenario_kind,
        "method": cell.method,
        "seed": cell.seed,
        "kind": cell.kind,
        "transport": cell.transport,
        "silo": silo,
        "dataset": use.dataset,
        "generated": use.generated,
        "train_images": use.train_images,
        "train_identities": use.train_identities,
        "cell_seconds": cell.seconds,
    }


def _round_rows(one: RoundResult, silo: str) -> Iterator[dict[str, Any]]:
    """A silo that took part but measured nothing has one row, without model."""
    measured = one.evaluations.get(silo, {})
    shared = {
        "round": one.number,
        "weight": one.weights.get(silo),
        "cosine_distance": one.cosine_distances.get(silo),
        "epsilon": one.epsilons.get(silo),
        "round_upload_bytes": one.upload_bytes,
        "round_download_bytes": one.download_bytes,
        "round_seconds": sum(one.phase_seconds.values()),
    }
    if measured:
        yield from ({**shared, **_figures(model, found)} for model, found in measured.items())
    elif silo in one.participants:
        yield shared


def _figures(model: ModelKind, found: Accuracy) -> dict[str, Any]:
    return {
        "model": model,
        "rank1": found.rank1,
        "rank5": found.rank5,
        "map": found.map,
        "minp": found.minp,
        "queries": found.queries,
    }
