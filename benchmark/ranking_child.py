"""What is timed? One process that ranks saved features once for each line that it reads.

Run by path, since the interpreter may be one that has torchreid and not fedreid::

    python benchmark/ranking_child.py FOLDER METHOD THREADS

It answers in JSON lines: first whether the method is there, then figures, seconds and memory of
each run. What is timed is the same for all: features and labels in NumPy arrays in, metrics out.
"""

import importlib
import json
import sys
import time
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ARRAYS = ("feats_QD", "feats_GD", "q_pids", "g_pids", "q_camids", "g_camids")
MAX_RANK = 50

Array = npt.NDArray[Any]
Figures = tuple[float, float]
"""mAP and rank-1."""
Method = Callable[..., Figures]


class MethodMissing(Exception):
    """The method can't be run by this interpreter."""


def fedreid_method(threads: int) -> Method:
    """Ours."""
    retrieval = importlib.import_module("fedreid.reid.retrieval")

    def run(*arrays: Array) -> Figures:
        metrics = retrieval.evaluate(*arrays, max_rank=MAX_RANK, threads=threads)
        return metrics.map, metrics.rank(1)

    return run


def torchreid_method(threads: int, *, cython: bool) -> Method:
    """As torchreid's engine does it: the matrix of all distances by torch, then evaluate_rank."""
    rank = torchreid_module("metrics.rank")
    if cython and not rank.IS_CYTHON_AVAI:
        raise MethodMissing("torchreid's Cython extension is not built here")
    distance = torchreid_module("metrics.distance")
    torch = importlib.import_module("torch")
    torch.set_num_threads(threads)

    def run(feats_QD: Array, feats_GD: Array, *labels: Array) -> Figures:
        dist_QG = distance.compute_distance_matrix(
            torch.from_numpy(feats_QD), torch.from_numpy(feats_GD), "cosine"
        ).numpy()
        cmc, mean_ap = rank.evaluate_rank(dist_QG, *labels, max_rank=MAX_RANK, use_cython=cython)
        return float(mean_ap), float(cmc[0])

    return run


def torchreid_module(name: str) -> Any:
    """A module of ``torchreid.reid`` without the package's own imports, which ask for much more.

    Raises:
        MethodMissing: torchreid is not installed.
    """
    for package in (
        "torchreid",
        "torchreid.reid",
        "torchreid.reid.metrics",
        "torchreid.reid.utils",
    ):
        if package not in sys.modules:
            sys.modules[package] = _bare(package)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its Cython path is missing is told by us
        return importlib.import_module(f"torchreid.reid.{name}")


def _bare(package: str) -> types.ModuleType:
    """A package with its folder and without its contents."""
    parts = package.split(".")
    for root in sys.path:
        folder = Path(root, *parts)
        if (folder / "__init__.py").is_file():
            module = types.ModuleType(package)
            module.__path__ = [str(folder)]
            return module
    raise MethodMissing("torchreid is not installed")


METHODS: dict[str, Callable[[int], Method]] = {
    "fedreid": fedreid_method,
    "torchreid, Cython": lambda threads: torchreid_method(threads, cython=True),
    "torchreid, NumPy": lambda threads: torchreid_method(threads, cython=False),
}


def _peak_bytes() -> int:
    """The most this program has held; getrusage would give the parent's peak if that is higher."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM")


def _tell(**line: object) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main(folder: Path, name: str, threads: int) -> None:
    """Answer each line on standard input with one run."""
    try:
        method = METHODS[name](threads)
    except (MethodMissing, ImportError) as error:
        _tell(missing=str(error))
        return
    arrays = [np.load(folder / f"{array}.npy") for array in ARRAYS]
    before = _peak_bytes()
    _tell(missing="")
    for _ in sys.stdin:
        start_s, start_cpu_s = time.perf_counter(), time.process_time()
        mean_ap, rank1 = method(*arrays)
        _tell(
            seconds=time.perf_counter() - start_s,
            cpu_seconds=time.process_time() - start_cpu_s,
            map=mean_ap,
            rank1=rank1,
            grown_bytes=_peak_bytes() - before,
            peak_bytes=_peak_bytes(),
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
