"""How do the report's pictures look, on a light page and on a dark one?

The colours are those of :mod:`fedreid.pictures.theme`; text, grid and ground are also those of
the page's style sheet.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedreid.files import write_bytes
from fedreid.pictures.theme import DARK, LIGHT, THEMES, Theme

__all__ = [
    "DARK",
    "DOTS_PER_INCH",
    "LIGHT",
    "THEMES",
    "WIDTH_INCHES",
    "Theme",
    "legend_above",
    "line_style",
    "round_ticks",
    "save",
    "styled",
]

DOTS_PER_INCH = 200
"""Twice the density of the page, so that pictures stay crisp on good screens."""

WIDTH_INCHES = 9.6

_TICKS = 6


@contextmanager
def styled(theme: Theme) -> Iterator[None]:
    """Within the block matplotlib draws in the theme."""
    settings: Any = {
        "axes.edgecolor": theme.grid,
        "axes.facecolor": theme.surface,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "axes.labelcolor": theme.muted,
        "axes.spines.left": False,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlecolor": theme.ink,
        "axes.titlelocation": "left",
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.ymargin": 0.09,
        "figure.facecolor": theme.surface,
        "font.size": 9,
        "grid.color": theme.grid,
        "grid.linewidth": 0.8,
        "legend.frameon": False,
        "legend.labelcolor": theme.ink,
        "lines.linewidth": 2.0,
        "lines.solid_capstyle": "round",
        "savefig.facecolor": theme.surface,
        "text.color": theme.ink,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
    }
    with mpl.rc_context(settings):
        yield


def line_style(index: int, theme: Theme) -> dict[str, Any]:
    """Colour of a series; past the last colour they begin again with dashes."""
    style = ("-", (0, (4, 2)), (0, (1, 1.5)))[index // len(theme.series) % 3]
    return {"color": theme.series[index % len(theme.series)], "linestyle": style}


def legend_above(figure: Figure, panels: Iterable[Axes], columns: int) -> None:
    """One legend for the whole figure, in a row above it: every label of the panels once."""
    entries: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    figure.legend(
        entries.values(), entries.keys(), loc="outside upper left", ncols=columns, handlelength=1.6
    )


def round_ticks(axes: Axes, numbers: Sequence[int], *, margin: float = 0.3) -> None:
    """Whole rounds on the horizontal axis, and at least ``margin`` rounds beside them."""
    if len(numbers) <= _TICKS:
        axes.set_xticks(numbers)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(_TICKS, integer=True, steps=[1, 2, 5, 10]))
    margin = max(margin, 0.02 * (numbers[-1] - numbers[0]))
    axes.set_xlim(numbers[0] - margin, numbers[-1] + margin)
    axes.set_xlabel("round")


def save(figure: Figure, path: Path) -> Path:
    """Durably write the figure as PNG."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=DOTS_PER_INCH)
    write_bytes(path, buffer.getvalue())
    return path
