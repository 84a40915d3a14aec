"""How fast is retrieval measured, beside torchreid's code, on sets of the usual sizes?

The methods run in processes of their own on the same saved features, and take turns, so that
whatever else the machine does is shared by all. The features are made up: people as random
directions, images as noisy copies.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from benchmark import ranking_child
from fedreid.errors import RunError, UsageError
from fedreid.reid.distances import FloatArray, IndexArray

OURS = "fedreid"

PEER_BYTES_PER_PAIR = 40
"""What torchreid holds at once: distances, an index matrix, and matches in 64 bit while made."""

SLOW_RUN_S = 40.0
"""A method whose first run takes longer is not run again: torchreid's NumPy path needs minutes."""

FIGURE_TOLERANCE = 1e-4
"""torchreid sums in float32, and equal distances may come in another order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TestSetSize:
    """As many images, people and cameras as a public set has."""

    queries: int
    gallery: int
    people: int
    cameras: int


SIZES = {
    "market1501": TestSetSize(queries=3_368, gallery=19_732, people=750, cameras=6),
    "msmt17": TestSetSize(queries=11_659, gallery=82_161, people=3_060, cameras=15),
    "tiny": TestSetSize(queries=40, gallery=300, people=20, cameras=3),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One method's runs; without any, ``missing`` says why."""

    method: str
    missing: str
    seconds: tuple[float, ...]
    """By the clock on the wall: what a user waits, and what other work on the machine lengthens."""
    cpu_seconds: tuple[float, ...]
    """Of all threads together: what the work costs, whatever else the machine does."""
    map: float
    rank1: float
    grown_bytes: int
    """By how much the process grew, at its peak, beyond the features and libraries."""
    peak_bytes: int
    """The process at its peak, features and libraries included."""

    @classmethod
    def absent(cls, method: str, why: str) -> Self:
        """A method that was not run."""
        return cls(
            method=method,
            missing=why,
            seconds=(),
            cpu_seconds=(),
            map=0.0,
            rank1=0.0,
            grown_bytes=0,
            peak_bytes=0,
        )

    @property
    def median_s(self) -> float:
        """Of all runs; nan without one."""
        return statistics.median(self.seconds) if self.seconds else float("nan")

    @property
    def median_cpu_s(self) -> float:
        """Of all runs; nan without one."""
        return statistics.median(self.cpu_seconds) if self.cpu_seconds else float("nan")

    def to_json(self) -> dict[str, Any]:
        """All fields, and the medians where there are any."""
        medians = {"median_s": self.median_s, "median_cpu_s": self.median_cpu_s}
        return {**dataclasses.asdict(self), **(medians if self.seconds else {})}


def measure_ranking(
    size: str, *, width: int, runs: int, threads: int, peer_python: Path, seed: int = 0
) -> list[Timing]:
    """Ours first, then torchreid's paths as far as ``peer_python`` has them.

    Args:
        size: a name of :data:`SIZES`.
        width: D of the made-up features.
        runs: timed runs of each method; one more before them counts only where it is slow.
        threads: of BLAS, torch and our own pool, in each process.
        peer_python: interpreter that has torchreid.
        seed: of the features.

    Raises:
        UsageError: an unknown size, or a number below 1.
        RunError: a process failed, or the methods' figures differ.
    """
    if size not in SIZES or min(width, runs, threads) < 1:
        raise UsageError(
            f"Can't measure size {size!r}, width {width}, {runs} runs, {threads} threads",
            why="numbers begin at 1, and sizes are " + ", ".join(SIZES),
        )
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        _save_features(Path(folder), SIZES[size], width=width, seed=seed)
        children = []
        for method in ranking_child.METHODS:
            python = Path(sys.executable) if method == OURS else peer_python
            why = "" if method == OURS else _too_large(SIZES[size])
            child = _Child(python, Path(folder), method, threads=threads, missing=why)
            children.append(stack.enter_context(child))
        for _ in range(1 + runs):
            for child in children:
                child.run()
        timings = [child.timing() for child in children]
    _check_agreement(timings)
    return timings


def table_of(timings: Sequence[Timing]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows for people; ratios are of medians, above 1 where ours is faster."""
    columns = ("method", "median s", "/ ours", "CPU s", "/ ours", "grows by MB", "mAP", "rank-1")
    rows: list[tuple[str, ...]] = []
    for timing in timings:
        if timing.missing:
            rows.append((timing.method, timing.missing, *[""] * (len(columns) - 2)))
            continue
        cells = (
            f"{timing.median_s:.3f}",
            f"{timing.median_s / timings[0].median_s:.2f}",
            f"{timing.median_cpu_s:.3f}",
            f"{timing.median_cpu_s / timings[0].median_cpu_s:.2f}",
            f"{timing.grown_bytes / 1e6:.0f}",
            f"{timing.map:.4%}",
            f"{timing.rank1:.4%}",
        )
        rows.append((timing.method, *cells))
    return columns, rows


def made_up_people(
    size: TestSetSize, count: int, random: np.random.Generator, *, distractors: float
) -> tuple[IndexArray, IndexArray]:
    """Persons, 0 for a share of distractors, and cameras of ``count`` images."""
    pids = random.integers(1, size.people + 1, size=count)
    pids[random.random(count) < distractors] = 0
    return pids, random.integers(1, size.cameras + 1, size=count)


def made_up_features(
    pids: IndexArray, directions: FloatArray, random: np.random.Generator
) -> FloatArray:
    """Rows of length 1 around each person's direction; a distractor is noise alone."""
    feats_ND = random.standard_normal((len(pids), directions.shape[1]), dtype=np.float32)
    seen = pids > 0
    feats_ND[seen] += np.float32(0.3) * directions[pids[seen] - 1]
    feats_ND /= np.linalg.norm(feats_ND, axis=1, keepdims=True)
    return feats_ND


def _save_features(folder: Path, size: TestSetSize, *, width: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    directions = random.standard_normal((size.people, width), dtype=np.float32)
    q_pids, q_camids = made_up_people(size, size.queries, random, distractors=0.0)
    g_pids, g_camids = made_up_people(size, size.gallery, random, distractors=0.14)
    arrays: tuple[FloatArray | IndexArray, ...] = (
        made_up_features(q_pids, directions, random),
        made_up_features(g_pids, directions, random),
        q_pids,
        g_pids,
        q_camids,
        g_camids,
    )
    for name, array in zip(ranking_child.ARRAYS, arrays, strict=True):
        np.save(folder / f"{name}.npy", array)


def _too_large(size: TestSetSize) -> str:
    """Why torchreid can't rank this size here, or nothing."""
    needed = size.queries * size.gallery * PEER_BYTES_PER_PAIR
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed < free:
        return ""
    return f"needs about {needed / 1e9:.0f} GB, and {free / 1e9:.0f} GB are free"


def _check_agreement(timings: Sequence[Timing]) -> None:
    ours, *others = timings
    for other in others:
        apart = max(abs(other.map - ours.map), abs(other.rank1 - ours.rank1))
        if other.seconds and apart > FIGURE_TOLERANCE:
            raise RunError(
                f"{other.method} finds mAP {other.map} and rank-1 {other.rank1}, "
                f"{ours.method} {ours.map} and {ours.rank1}",
                why="the two do not measure the same",
                next_step="Do not compare their times; report this.",
            )


class _Child:
    """A process that does one run when told to."""

    def __init__(
        self, python: Path, folder: Path, method: str, *, threads: int, missing: str
    ) -> None:
        self._method = method
        self._missing = missing
        self._lines: list[dict[str, Any]] = []
        self._process: subprocess.Popen[str] | None = None
        if not missing:
            self._process = self._started(python, folder, threads)

    def _started(self, python: Path, folder: Path, threads: int) -> subprocess.Popen[str]:
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        try:
            return subprocess.Popen(
                [python, ranking_child.__file__, folder, self._method, str(threads)],
                env={**os.environ, **dict.fromkeys(names, str(threads))},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        except OSError as error:
            raise UsageError(
                f"Can't start {python}",
                why=error.strerror or str(error),
                next_step="Give --peer-python the path of a Python interpreter.",
            ) from error

    def __enter__(self) -> Self:
        if self._process:
            self._missing = str(self._answer(self._process)["missing"])
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()

    def run(self) -> None:
        """One run, waited for; none where the first was too slow."""
        slow = bool(self._lines) and self._lines[0]["seconds"] > SLOW_RUN_S
        if not self._process or self._missing or slow or not self._process.stdin:
            return
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self._lines.append(self._answer(self._process))

    def timing(self) -> Timing:
        """All runs but the first, which warms up, where there are others."""
        if self._missing:
            return Timing.absent(self._method, self._missing)
        counted, last = self._lines[1:] or self._lines, self._lines[-1]
        return Timing(
            method=self._method,
            missing="",
            seconds=tuple(line["seconds"] for line in counted),
            cpu_seconds=tuple(line["cpu_seconds"] for line in counted),
            map=last["map"],
            rank1=last["rank1"],
            grown_bytes=last["grown_bytes"],
            peak_bytes=last["peak_bytes"],
        )

    def _answer(self, process: subprocess.Popen[str]) -> dict[str, Any]:
        while process.stdout and (line := process.stdout.readline()):
            if line.startswith("{"):  # torchreid prints a note about small galleries
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise RunError(
            f"The process of {self._method} ended with exit code {process.wait()}",
            why="its output above says more",
        )
