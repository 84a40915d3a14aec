"""Which kind of run is in a folder, and how is its report drawn again?"""

from pathlib import Path

from benchmark import report, results
from benchmark.cells import CELLS, read_cells
from benchmark.claims import Claims
from benchmark.grid_report import write_grid_report
from fedreid.errors import ConfigRefused


def draw_again(run: Path, *, claims: Claims) -> Path:
    """Write the report of a demo's or a grid's folder anew; returns the path of its page.

    Raises:
        ConfigRefused: the folder holds neither.
        RunError: no cell of the grid is finished.
        StorageError: a result is damaged, or the folder can't be written.
    """
    if (run / report.DATA_NAME).is_file():
        return report.write_report(results.read(run / report.DATA_NAME), run)
    if (run / CELLS).is_dir():
        return write_grid_report(read_cells(run), run, claims=claims)
    raise ConfigRefused(
        f"{run} is not the folder of a run",
        why=f"it has neither {report.DATA_NAME} nor {CELLS}/",
        next_step="Name the folder that fedreid-bench demo or run wrote to.",
    )
