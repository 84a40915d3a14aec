"""How did the run go, in pictures? Accuracy, shares, traffic, time and distillation by round.

Every function draws one figure in one theme, or returns None where nothing was measured.
"""

import math
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmark.results import DEPLOYABLE, Metric, Results, RoundResult, series
from benchmark.theme import (
    WIDTH_INCHES,
    Theme,
    legend_above,
    line_style,
    round_ticks,
    styled,
)
from fedreid.limits import MIB

Draw = Callable[[Results, Theme], Figure | None]

_PANELS_IN_A_ROW = 4
_PANEL_INCHES = 2.5
_MARKED_ROUNDS = 30
"""Up to so many points a line shows each; more would run into one another."""


def rank1_over_rounds(results: Results, theme: Theme) -> Figure | None:
    """A panel per silo: rank-1 of its three models after every round."""
    return _accuracy(results, theme, "rank1")


def map_over_rounds(results: Results, theme: Theme) -> Figure | None:
    """A panel per silo: mAP of its three models after every round."""
    return _accuracy(results, theme, "map")


def _accuracy(results: Results, theme: Theme, metric: Metric) -> Figure | None:
    if not any(one.evaluations for one in results.rounds):
        return None
    silos = results.largest_first
    columns = min(_PANELS_IN_A_ROW, len(silos))
    rows = math.ceil(len(silos) / columns)
    with styled(theme):
        figure = Figure(figsize=(WIDTH_INCHES, 0.6 + _PANEL_INCHES * rows), layout="constrained")
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
        for axes, silo in zip(panels, silos, strict=False):
            _draw_silo(axes, results, silo, metric, theme)
        for axes in panels[len(silos) :]:
            axes.set_axis_off()
        panels[0].set_ylim(bottom=0.0)
        legend_above(figure, panels[:1], 4)
    return figure


def _draw_silo(axes: Axes, results: Results, silo: str, metric: Metric, theme: Theme) -> None:
    numbers = [one.number for one in results.rounds]
    for index, model in enumerate(reversed(DEPLOYABLE)):
        points = series(results.rounds, silo, model, metric)
        axes.plot(
            [number for number, _ in points],
            [value for _, value in points],
            label=model,
            color=theme.series[index],
            marker="o" if len(points) <= _MARKED_ROUNDS else None,
            markersize=3.5,
        )
    untrained = results.silos[silo].untrained
    if untrained is not None:
        axes.axhline(
            getattr(untrained, metric),
            color=theme.muted,
            linestyle=(0, (2, 2)),
            linewidth=1.2,
            label="untrained",
        )
    axes.set_title(silo)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    round_ticks(axes, numbers)


def weights_over_rounds(results: Results, theme: Theme) -> Figure | None:
    """Each silo's share of the aggregate, and the cosine distance it follows from."""
    if not results.rounds:
        return None
    numbers = [one.number for one in results.rounds]
    with styled(theme):
        figure = Figure(figsize=(WIDTH_INCHES, 3.3), layout="constrained")
        left, right = figure.subplots(1, 2)
        for index, silo in enumerate(results.largest_first):
            for axes, of in ((left, _weights), (right, _distances)):
                points = [(one.number, of(one)[silo]) for one in results.rounds if silo in of(one)]
                axes.plot(
                    [number for number, _ in points],
                    [value for _, value in points],
                    label=silo,
                    marker="o" if len(points) <= _MARKED_ROUNDS else None,
                    markersize=3.5,
                    **line_style(index, theme),
                )
        left.set_title("Share of the aggregate")
        left.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        right.set_title("Cosine distance before / after local training")
        for axes in (left, right):
            axes.set_ylim(bottom=0.0)
            round_ticks(axes, numbers)
        legend_above(figure, [left], 6)
    return figure


def _weights(one: RoundResult) -> dict[str, float]:
    return one.weights


def _distances(one: RoundResult) -> dict[str, float]:
    return one.cosine_distances


def cost_over_rounds(results: Results, theme: Theme) -> Figure | None:
    """Bytes each way and seconds per phase, stacked."""
    if not results.rounds:
        return None
    rounds = results.rounds
    phases = list(dict.fromkeys(phase for one in rounds for phase in one.phase_seconds))
    traffic = {
        "download": [one.download_bytes / MIB for one in rounds],
        "upload": [one.upload_bytes / MIB for one in rounds],
    }
    seconds = {phase: [one.phase_seconds.get(phase, 0.0) for one in rounds] for phase in phases}
    with styled(theme):
        figure = Figure(figsize=(WIDTH_INCHES, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        _stack(left, rounds, traffic, "Traffic of all silos (MiB)", theme)
        _stack(right, rounds, seconds, "Time by phase (s)", theme)
    return figure


def _stack(
    axes: Axes,
    rounds: Sequence[RoundResult],
    layers: dict[str, list[float]],
    title: str,
    theme: Theme,
) -> None:
    numbers = [one.number for one in rounds]
    below = [0.0] * len(numbers)
    for index, (label, values) in enumerate(layers.items()):
        axes.bar(
            numbers,
            values,
            bottom=below,
            width=0.72,
            label=label,
            color=theme.series[index % len(theme.series)],
            edgecolor=theme.surface,
            linewidth=0.8 if len(numbers) <= _MARKED_ROUNDS else 0.0,
        )
        below = [low + value for low, value in zip(below, values, strict=True)]
    axes.set_title(title, pad=30)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.02, 0.985),
        ncols=5,
        handlelength=0.9,
        columnspacing=1.0,
        fontsize=8,
    )
    round_ticks(axes, numbers, margin=0.6)


def distillation_over_rounds(results: Results, theme: Theme) -> Figure | None:
    """The distillation loss of each round, before and after."""
    points = [
        (one.number, one.distillation_loss_before, one.distillation_loss_after)
        for one in results.rounds
        if one.distillation_loss_before is not None and one.distillation_loss_after is not None
    ]
    if not points:
        return None
    numbers, before, after = zip(*points, strict=True)
    with styled(theme):
        figure = Figure(figsize=(WIDTH_INCHES, 2.9), layout="constrained")
        axes = figure.subplots()
        axes.vlines(numbers, after, before, color=theme.muted, linewidth=1.4, alpha=0.7)
        axes.plot(numbers, before, "o", markersize=6, color=theme.series[1], label="before")
        axes.plot(numbers, after, "o", markersize=6, color=theme.series[0], label="after")
        axes.set_title("Distillation loss over all public images")
        axes.set_ylim(bottom=0.0)
        round_ticks(axes, numbers)
        legend_above(figure, [axes], 2)
    return figure
