"""How did a scenario go, in pictures? Curves by silo, where methods end, shares over rounds.

Every function draws one figure in one theme, or returns None where nothing was measured. A method
has the same colour in every picture of a report.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from benchmark.cells import CellResult
from benchmark.claims import FLUCTUATION_RATIO
from benchmark.finished import Grid, at_the_end, curve, mean_of_silos, models_of
from benchmark.results import Metric, ModelKind
from benchmark.statistics import spread, unrest
from benchmark.theme import WIDTH_INCHES, Theme, legend_above, line_style, round_ticks, styled

Styles = Mapping[str, dict[str, Any]]
"""Line properties by method."""

_ONE_TEST_SET = "every silo, on the test set that they share"
_PANELS_IN_A_ROW = 4
_PANEL_INCHES = 2.7
_TITLE_LETTERS = 88
"""So many letters of titles fit beside one another."""

_ROW_INCHES = 0.36
_SEEDS_BELOW = 0.27
"""Of a row: the seeds' dots must not hide the deviation's bar."""
_MARKED_ROUNDS = 12
"""Up to so many points a line shows each; with several methods more would hide one another."""

_LEGEND_LETTERS = 120
"""So many letters fit into a line of the legend, handles counted as six."""

_DASHES: tuple[tuple[float, ...], ...] = ((0.6, 1.6), (2.4, 2.0), (4.5, 1.5, 0.8, 1.5))
_SHARED: tuple[ModelKind, ...] = ("global", "local")


def method_styles(grid: Grid, theme: Theme, *, first: Sequence[str] = ()) -> Styles:
    """Colours of the grid's federated methods; those in ``first`` get the first ones."""
    federated = {cell.method for cell in grid.cells if cell.kind == "federated"}
    others = sorted(federated - set(first))
    ordered = [*(method for method in first if method in federated), *others]
    return {method: line_style(index, theme) for index, method in enumerate(ordered)}


def convergence(
    grid: Grid, scenario: str, styles: Styles, theme: Theme, *, model: ModelKind, metric: Metric
) -> Figure | None:
    """A panel per silo, a line per method: mean over seeds, the band one deviation each way.

    Silos with the same figures, as of a global model on a shared test set, have one panel. The
    ends of the baselines are level lines, the mean of the panel's silos.
    """
    silos = grid.silos(scenario)
    methods = [m for m in styles if grid.of_method(scenario, m)]
    curves = {
        (silo, method): curve(grid.of_method(scenario, method), silo, model, metric)
        for silo in silos
        for method in methods
    }
    numbers = sorted({number for points in curves.values() for number in points})
    if len(numbers) < 2:
        return None
    same = all(curves[silo, m] == curves[silos[0], m] for silo in silos for m in methods)
    groups = {_ONE_TEST_SET: silos} if same and len(silos) > 1 else {silo: [silo] for silo in silos}
    with styled(theme):
        figure, panels = _panels(list(groups))
        for axes, group in zip(panels, groups.values(), strict=True):
            for depth, method in enumerate(methods):
                _draw_curve(axes, method, curves[group[0], method], styles[method], depth)
            _draw_baselines(axes, grid, scenario, group, metric, theme)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            round_ticks(axes, numbers)
        panels[0].set_ylim(bottom=0.0)
        names = [*methods, *_baselines(grid, scenario)]
        legend_above(figure, panels, _legend_columns(names))
    return figure


def _panels(titles: Sequence[str]) -> tuple[Figure, list[Axes]]:
    """A panel per title; they share their vertical axis and are filled row by row."""
    count = len(titles)
    fitting = _TITLE_LETTERS // max(len(title) for title in titles)
    rows = math.ceil(count / max(1, min(_PANELS_IN_A_ROW, fitting)))
    columns = math.ceil(count / rows)
    figure = Figure(figsize=(WIDTH_INCHES, 0.7 + _PANEL_INCHES * rows), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for axes, title in zip(panels, titles, strict=False):
        axes.set_title(title)
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, list(panels[:count])


def _draw_curve(
    axes: Axes, method: str, points: Mapping[int, list[float]], style: dict[str, Any], depth: int
) -> None:
    """The first methods lie over the others: they are what the report is about."""
    if not points:
        return
    numbers = list(points)
    means = [fmean(values) for values in points.values()]
    deviations = [stdev(values) if len(values) > 1 else 0.0 for values in points.values()]
    if any(deviations):
        low = [mean - deviation for mean, deviation in zip(means, deviations, strict=True)]
        high = [mean + deviation for mean, deviation in zip(means, deviations, strict=True)]
        axes.fill_between(numbers, low, high, color=style["color"], alpha=0.16, linewidth=0)
    axes.plot(
        numbers,
        means,
        label=method,
        marker="o" if len(numbers) <= _MARKED_ROUNDS else None,
        markersize=3.5,
        linewidth=1.8,
        zorder=3.0 - 0.01 * depth,
        **style,
    )


def _draw_baselines(
    axes: Axes, grid: Grid, scenario: str, silos: Sequence[str], metric: Metric, theme: Theme
) -> None:
    for method in _baselines(grid, scenario):
        cells = grid.of_method(scenario, method)
        found = [at_the_end(cell, silo, models_of(cell)[0]) for cell in cells for silo in silos]
        level = spread(None if one is None else getattr(one, metric) for one in found)
        if level is not None:
            axes.axhline(
                level.mean, label=method, zorder=1.5, **_baseline_style(grid, method, theme)
            )


def _baselines(grid: Grid, scenario: str) -> list[str]:
    federated = grid.methods(scenario, federated=True)
    return [method for method in grid.methods(scenario) if method not in federated]


def _baseline_style(grid: Grid, method: str, theme: Theme) -> dict[str, Any]:
    """By the place among all baselines, so that it is the same in every scenario."""
    index = grid.all_methods.index(method)
    return {
        "color": theme.muted,
        "linestyle": (0, _DASHES[index % len(_DASHES)]),
        "linewidth": 1.3,
    }


def where_methods_end(
    grid: Grid, scenario: str, styles: Styles, theme: Theme, *, reference: str
) -> Figure | None:
    """A line per method: mean mAP of its global and local model, fluctuation of the global one.

    A small dot is one seed, the large one their mean, the bar one deviation each way.
    """
    methods = [method for method in styles if grid.of_method(scenario, method)]
    ends = {
        (method, model): [
            value
            for cell in grid.of_method(scenario, method)
            if (value := mean_of_silos(cell, model, "map")) is not None
        ]
        for method in methods
        for model in _SHARED
    }
    if not any(ends.values()):
        return None
    with styled(theme):
        height = 1.3 + _ROW_INCHES * max(3, len(methods))
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        panels = figure.subplots(1, 3, sharey=True)
        panels[1].sharex(panels[0])
        for axes, model in zip(panels, _SHARED, strict=False):
            for row, method in enumerate(methods):
                _draw_seeds(axes, row, ends[method, model], styles[method], theme)
            _draw_baseline_means(axes, grid, scenario, theme)
            axes.set_title(f"mAP, {model} model")
            axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        _draw_fluctuation(panels[2], grid, scenario, styles, theme, reference)
        for axes in panels:
            _rows_of_methods(axes, methods)
        legend_above(figure, panels, 4)
    return figure


def _draw_seeds(
    axes: Axes, row: int, values: Sequence[float], style: dict[str, Any], theme: Theme
) -> None:
    found = spread(values)
    if found is None:
        return
    below = [row + _SEEDS_BELOW] * len(values)
    axes.plot(
        values, below, "o", color=style["color"], markersize=3.4, markeredgewidth=0, alpha=0.6
    )
    axes.errorbar(
        found.mean,
        row,
        xerr=found.sd,
        fmt="o",
        color=style["color"],
        markersize=6.5,
        markeredgecolor=theme.surface,
        elinewidth=2.0,
    )


def _draw_baseline_means(axes: Axes, grid: Grid, scenario: str, theme: Theme) -> None:
    for method in _baselines(grid, scenario):
        cells = grid.of_method(scenario, method)
        level = spread(mean_of_silos(cell, models_of(cell)[0], "map") for cell in cells)
        if level is not None:
            axes.axvline(
                level.mean, label=method, zorder=1.5, **_baseline_style(grid, method, theme)
            )


def _draw_fluctuation(
    axes: Axes, grid: Grid, scenario: str, styles: Styles, theme: Theme, reference: str
) -> None:
    """Bars in points of rank-1, and the line that a third of the reference's makes."""
    methods = [method for method in styles if grid.of_method(scenario, method)]
    for row, method in enumerate(methods):
        found = unrest(grid.of_method(scenario, method), "global", "rank1")
        value = 0.0 if found is None else 100 * found.fluctuation
        axes.barh(row, value, height=0.5, color=styles[method]["color"])
        text = "–" if found is None else f"{value:.1f}"
        axes.annotate(
            text,
            (value, row),
            va="center",
            xytext=(4, 0),
            textcoords="offset points",
            bbox={"facecolor": theme.surface, "edgecolor": "none", "pad": 0.6},
        )
    against = unrest(grid.of_method(scenario, reference), "global", "rank1")
    if against is not None:
        axes.axvline(
            100 * against.fluctuation * FLUCTUATION_RATIO,
            label=f"a third of {reference}'s",
            color=theme.ink,
            linewidth=1.2,
        )
    axes.margins(x=0.18)
    axes.set_xlim(left=0.0)
    axes.set_title("Fluctuation of rank-1 (points)")


def _rows_of_methods(axes: Axes, methods: Sequence[str]) -> None:
    axes.set_yticks(range(len(methods)), methods)
    axes.set_ylim(len(methods) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))


def shares(grid: Grid, scenario: str, theme: Theme) -> Figure | None:
    """A panel per method: each silo's share of the aggregate over rounds, mean over seeds."""
    silos = grid.silos(scenario)
    found = {
        method: _mean_shares(grid.of_method(scenario, method), silos)
        for method in grid.methods(scenario, federated=True)
    }
    drawn = {method: points for method, points in found.items() if points}
    if not drawn:
        return None
    with styled(theme):
        figure, panels = _panels(list(drawn))
        for axes, points in zip(panels, drawn.values(), strict=True):
            for index, silo in enumerate(silos):
                shares_by_round = points.get(silo, {})
                axes.plot(
                    list(shares_by_round),
                    list(shares_by_round.values()),
                    label=silo,
                    marker="o" if len(shares_by_round) <= _MARKED_ROUNDS else None,
                    markersize=3.5,
                    linewidth=1.8,
                    **line_style(index, theme),
                )
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            round_ticks(axes, sorted({number for of in points.values() for number in of}))
        panels[0].set_ylim(bottom=0.0)
        legend_above(figure, panels, _legend_columns(silos))
    return figure


def _mean_shares(cells: Sequence[CellResult], silos: Sequence[str]) -> dict[str, dict[int, float]]:
    """By silo and round, over the seeds in which the silo took part."""
    found: dict[str, dict[int, list[float]]] = {}
    for cell in cells:
        for one in cell.rounds:
            for silo in silos:
                if silo in one.weights:
                    rounds = found.setdefault(silo, {})
                    rounds.setdefault(one.number, []).append(one.weights[silo])
    return {
        silo: {number: fmean(values) for number, values in sorted(rounds.items())}
        for silo, rounds in found.items()
    }


def _legend_columns(names: Sequence[str]) -> int:
    longest = max(len(name) for name in names) + 6
    return max(1, min(len(names), _LEGEND_LETTERS // longest))
