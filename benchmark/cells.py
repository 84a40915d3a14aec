"""What did one cell of a grid measure? A method in a scenario with a seed: ``cell.json``.

Ratios are in 0..1, times in seconds, sizes in bytes.
"""

from pathlib import Path
from typing import Literal

from benchmark.results import Accuracy, Record, RoundResult, read_record, write_record
from silo_agent.config import Policy

CellKind = Literal["federated", "standalone", "centralised"]
"""A federation; each silo alone; one model trained on the images of all silos (upper bound)."""

ScenarioKind = Literal["by-dataset", "by-camera", "by-identity"]
Transport = Literal["local", "grpc"]

CELL_NAME = "cell.json"

BENCH_NAME = "bench.json"
"""In a run's folder: the bench that its cells are of."""

CELLS = "cells"
"""Folder of a run that holds a folder per cell."""


class SiloUse(Record, frozen=True, kw_only=True):
    """What a silo trained on, and whose images they were."""

    dataset: str
    """Name of the dataset that its images came from, such as ``market1501``."""
    generated: bool
    """The images are procedural pedestrians, not the dataset of the paper."""
    train_images: int
    train_identities: int
    queries: int
    gallery: int


class CellResult(Record, frozen=True, kw_only=True):
    """One finished cell.

    A baseline's figures stand in its rounds as well: those of the kind ``standalone`` under the
    model kind ``standalone``, those of ``centralised`` under ``global``.
    """

    bench: str
    method: str
    scenario: str
    scenario_kind: ScenarioKind
    seed: int
    kind: CellKind
    transport: Transport
    plan: str
    """The plan's TOML text, as it was run."""
    policy: Policy = Policy()
    """Of every silo."""
    silos: dict[str, SiloUse]
    untrained: dict[str, Accuracy]
    """The start weights on each silo's test set."""
    rounds: tuple[RoundResult, ...]
    """``evaluations[silo]["global"]`` of a round is the model that it published, ``"local"`` the
    silo's own before upload; rounds that the plan did not measure have none."""
    seconds: float
    """Wall time of the whole cell, on a machine that may do other things as well."""
    versions: dict[str, str]


def write_cell(folder: Path, cell: CellResult) -> None:
    """Durably write ``cell.json``; a folder that has it is finished."""
    write_record(folder / CELL_NAME, cell)


def read_cells(run: Path) -> list[CellResult]:
    """The finished cells below a run's folder, in the order of their paths.

    Raises:
        StorageError: a file is damaged.
    """
    return [read_cell(path.parent) for path in sorted(run.glob(f"{CELLS}/*/{CELL_NAME}"))]


def read_cell(folder: Path) -> CellResult:
    """The result of a finished cell.

    Raises:
        StorageError: it is missing or damaged.
    """
    return read_record(
        folder / CELL_NAME,
        CellResult,
        what="result",
        next_step="Remove its folder; the benchmark runs that cell again.",
    )
