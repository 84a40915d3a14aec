"""Which kind of run is in a folder, and how is its report drawn again?"""

from pathlib import Path

from benchmark import report, results
from benchmark.cells import BENCH_NAME, CELLS, read_cells
from benchmark.claims import Claims
from benchmark.grid_report import write_grid_report
from benchmark.results import Record, read_record
from fedreid.errors import ConfigRefused


class _Named(Record, frozen=True, kw_only=True):
    """As much of a bench as its report needs."""

    best: str = Claims().best
    reference: str = Claims().reference


def draw_again(run: Path, *, best: str = "", reference: str = "") -> Path:
    """Write the report of a demo's or a grid's folder anew; returns the path of its page.

    ``best`` and ``reference`` take the place of the methods that a grid's bench names.

    Raises:
        ConfigRefused: the folder holds neither.
        RunError: no cell of the grid is finished.
        StorageError: a result is damaged, or the folder can't be written.
    """
    if (run / report.DATA_NAME).is_file():
        return report.write_report(results.read(run / report.DATA_NAME), run)
    if (run / CELLS).is_dir():
        return write_grid_report(read_cells(run), run, claims=_claims(run, best, reference))
    raise ConfigRefused(
        f"{run} is not the folder of a run",
        why=f"it has neither {report.DATA_NAME} nor {CELLS}/",
        next_step="Name the folder that fedreid-bench demo or run wrote to.",
    )


def _claims(run: Path, best: str, reference: str) -> Claims:
    """Of the methods that were given, else those that the run's bench names."""
    path = run / BENCH_NAME
    named = _Named()
    if path.is_file():
        named = read_record(
            path,
            _Named,
            what="bench",
            next_step="Run the benchmark again; it writes the file anew.",
        )
    return Claims(best=best or named.best, reference=reference or named.reference)
