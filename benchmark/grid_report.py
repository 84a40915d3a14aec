"""How is a grid of finished cells shown to a person? A page, a document and files of figures.

The page holds everything it shows; the document links to the pictures beside it, so that both can
be copied into other documents together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from benchmark import grid_plots
from benchmark.accuracy_table import accuracy_table, published_table
from benchmark.cells import CellResult
from benchmark.claims import Claims, judged
from benchmark.finished import Grid, mean_of_silos
from benchmark.grid_tables import (
    comparison_table,
    cost_table,
    privacy_table,
    steadiness_table,
    winner_table,
)
from benchmark.long_form import write_long_form
from benchmark.pages import PAGE_NAME, Picture, picture, template
from benchmark.results import Metric, ModelKind
from benchmark.statistics import spread
from benchmark.tables import Table, deviation, gain, p_value
from benchmark.theme import THEMES, Theme, save
from fedreid.errors import RunError
from fedreid.files import make_folder, write_bytes
from fedreid.pages.page import Tile, duration_text, percent, size_text

DOCUMENT_NAME = "report.md"

_MISSING_NAMED = 12
"""So many missing cells are named, the rest counted."""

_CURVES: tuple[tuple[ModelKind, Metric, str], ...] = (
    ("global", "rank1", "Rank-1 of the global model over rounds"),
    ("global", "map", "mAP of the global model over rounds"),
    ("local", "rank1", "Rank-1 of the local models over rounds"),
    ("local", "map", "mAP of the local models over rounds"),
)
_CURVE_CAPTION = (
    "Each panel is one silo with its test set; where all share one and its figures, there is one "
    "panel. A line is a method's mean over seeds, its band one standard deviation each way. Level "
    "lines are the baselines at their end."
)
_END_CAPTION = (
    "Mean mAP over silos after the last round: the large dot is the mean over seeds with one "
    "standard deviation each way, the small ones below are the seeds. Right, how much the global "
    "model's rank-1 still moves over the last rounds; less is better."
)
_SHARES_CAPTION = (
    "How much each silo counts in the aggregate, mean over seeds. Each panel is one method."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chapter:
    """What the report shows of one scenario."""

    name: str
    facts: tuple[str, ...]
    tables: tuple[Table, ...]
    pictures: tuple[Picture, ...]


def write_grid_report(
    cells: Sequence[CellResult], out: Path, *, claims: Claims | None = None
) -> Path:
    """Write ``report.html``, ``report.md``, its pictures and ``results.csv`` and ``.parquet``.

    Cells may be missing: what they would have shown is a dash. ``claims`` names the methods that
    the promises are about; its reference is the one that others are compared with. Returns the
    path of the page.

    Raises:
        RunError: there is no cell.
        StorageError: the folder can't be written.
    """
    if not cells:
        raise RunError(
            f"There is nothing to report in {out}",
            why="no cell of the grid is finished",
            next_step="Run the benchmark again; it goes on with the cells that are missing.",
        )
    claims = claims or Claims()
    grid = Grid.of(cells)
    make_folder(out)
    write_long_form(cells, out)
    shown = {
        "bench": ", ".join(sorted({cell.bench for cell in cells})),
        "facts": _facts(grid),
        "missing": _missing(grid),
        "tiles": _tiles(grid, claims),
        "claims": judged(cells, claims),
        "claimed_seeds": claims.seeds,
        "chapters": [_chapter(grid, scenario, out, claims) for scenario in grid.scenarios],
        "plans": _plans(grid),
        "versions": _versions(grid),
        "gain": gain,
        "p_value": p_value,
    }
    for name, source in ((PAGE_NAME, "grid.html.j2"), (DOCUMENT_NAME, "grid.md.j2")):
        write_bytes(out / name, template(source).render(shown).encode())
    return out / PAGE_NAME


def _chapter(grid: Grid, scenario: str, out: Path, claims: Claims) -> Chapter:
    reference = _reference(grid, scenario, claims)
    against = [
        name
        for name in grid.methods(scenario)
        if name == reference or grid.of_method(scenario, name)[0].kind == "standalone"
    ]
    tables = [accuracy_table(grid, scenario), published_table(grid, scenario)]
    if reference is not None:
        tables.append(steadiness_table(grid, scenario, reference))
        tables += [comparison_table(grid, scenario, name) for name in reversed(against)]
        tables.append(winner_table(grid, scenario))
    tables += [privacy_table(grid, scenario), cost_table(grid, scenario)]
    drawings = [] if reference is None else _drawings(grid, scenario, claims, reference)
    cells, kind = grid.in_scenario(scenario), grid.kind(scenario)
    seeds = len({cell.seed for cell in cells})
    return Chapter(
        name=scenario,
        facts=(
            *((kind,) if kind != scenario else ()),
            _counted(len(grid.silos(scenario)), "silo"),
            _counted(seeds, "seed"),
            _counted(len(cells), "cell"),
        ),
        tables=tuple(table for table in tables if table is not None),
        pictures=tuple(_pictures(scenario, out, drawings)),
    )


def _reference(grid: Grid, scenario: str, claims: Claims) -> str | None:
    """The method that others are compared with: the named one, else the first by name."""
    methods = grid.methods(scenario, federated=True)
    return claims.reference if claims.reference in methods else next(iter(methods), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Drawing:
    name: str
    title: str
    caption: str
    draw: Callable[[Theme], Figure | None]


def _drawings(grid: Grid, scenario: str, claims: Claims, reference: str) -> list[_Drawing]:
    def styles(theme: Theme) -> grid_plots.Styles:
        return grid_plots.method_styles(grid, theme, first=(claims.best, claims.reference))

    def curves(model: ModelKind, metric: Metric) -> Callable[[Theme], Figure | None]:
        return lambda theme: grid_plots.convergence(
            grid, scenario, styles(theme), theme, model=model, metric=metric
        )

    return [
        _Drawing(
            name="end",
            title="Where the methods end",
            caption=_END_CAPTION,
            draw=lambda theme: grid_plots.where_methods_end(
                grid, scenario, styles(theme), theme, reference=reference
            ),
        ),
        *(
            _Drawing(
                name=f"{model}-{metric}",
                title=title,
                caption=_CURVE_CAPTION,
                draw=curves(model, metric),
            )
            for model, metric, title in _CURVES
        ),
        _Drawing(
            name="weights",
            title="Who shapes the model",
            caption=_SHARES_CAPTION,
            draw=lambda theme: grid_plots.shares(grid, scenario, theme),
        ),
    ]


def _pictures(scenario: str, out: Path, drawings: Sequence[_Drawing]) -> list[Picture]:
    """The figures that there are, in files whose names begin with the scenario's."""
    pictures = []
    for drawing in drawings:
        name = f"{scenario}-{drawing.name}"
        for theme in THEMES:
            figure = drawing.draw(theme)
            if figure is not None:
                save(figure, out / f"{name}{theme.suffix}.png")
        if figure is not None:
            pictures.append(picture(out, name, title=drawing.title, caption=drawing.caption))
    return pictures


def _facts(grid: Grid) -> tuple[str, ...]:
    cells = grid.cells
    traffic = sum(one.upload_bytes + one.download_bytes for cell in cells for one in cell.rounds)
    return (
        _counted(len(grid.all_methods), "method"),
        _counted(len(grid.scenarios), "scenario"),
        _counted(len({cell.seed for cell in cells}), "seed"),
        _counted(len(cells), "cell"),
        f"transport {', '.join(sorted({cell.transport for cell in cells}))}",
        f"{size_text(traffic)} of models",
        duration_text(sum(cell.seconds for cell in cells)),
    )


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _missing(grid: Grid) -> str:
    """A sentence about the cells that are not there; nothing if all are."""
    missing = grid.missing
    if not missing:
        return ""
    named = [f"{scenario} / {method} / seed {seed}" for scenario, method, seed in missing]
    more = len(named) - _MISSING_NAMED
    listed = "; ".join(named[:_MISSING_NAMED]) + (f"; and {more} more" if more > 0 else "")
    places = len(missing) + len(grid.cells)
    return f"{len(missing)} of {places} cells are not there: {listed}."


def _tiles(grid: Grid, claims: Claims) -> list[Tile]:
    """The best method's mean mAP in each scenario, beside the reference's."""
    tiles = []
    for scenario in grid.scenarios:
        ours, theirs = (
            spread(
                mean_of_silos(cell, "global", "map") for cell in grid.of_method(scenario, method)
            )
            for method in (claims.best, claims.reference)
        )
        if ours is not None:
            tiles.append(
                Tile(
                    label=f"Mean mAP of {claims.best}, {scenario}",
                    value=percent(ours.mean),
                    note=f"{deviation(ours) or 'one seed'}; {claims.reference} "
                    f"{percent(None if theirs is None else theirs.mean)}",
                )
            )
    return tiles


def _plans(grid: Grid) -> dict[str, str]:
    """The plan of each method's first cell."""
    plans: dict[str, str] = {}
    for cell in grid.cells:
        plans.setdefault(cell.method, cell.plan)
    return {method: plans[method] for method in grid.all_methods}


def _versions(grid: Grid) -> dict[str, str]:
    """Every version that took part; more than one of a package are all named."""
    found: dict[str, set[str]] = {}
    for cell in grid.cells:
        for package, version in cell.versions.items():
            found.setdefault(package, set()).add(version)
    return {package: ", ".join(sorted(versions)) for package, versions in found.items()}
