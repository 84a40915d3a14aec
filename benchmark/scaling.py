"""How do a round's time and memory grow with silos, with bytes, and by encoding?

Null rounds (``transport``) one configuration after another, each beside the bare limit in the same
run; then one table, three pictures and all figures as JSON, so that a document can show them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmark.theme import THEMES, WIDTH_INCHES, Theme, legend_above, line_style, save, styled
from benchmark.transport import Transported, measure_transport
from fedreid.errors import UsageError
from fedreid.files import write_bytes
from fedreid.limits import MIB
from fedreid.plan import Encoding
from fedreid.wire.manifest import ENCODINGS

MODELS = ("shufflenet_v2_x0_5", "resnet18", "resnet50")
"""Smallest first; 1.4, 45 and 94 MB are shared."""
_FEWEST = 2
_USUAL = 4
_PICTURE_INCHES = 3.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One configuration."""

    silos: int
    model: str
    encoding: Encoding


class Scaling(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured at each point."""

    points: list[Transported]

    def by_silos(self) -> list[Transported]:
        """Of the largest model as it is, fewest silos first."""
        found = [p for p in self.points if p.model == self._largest and p.encoding == "fp32"]
        return sorted(found, key=lambda point: point.silos)

    def by_bytes(self) -> list[Transported]:
        """Of as many silos as the smallest model had, fewest bytes first."""
        silos = next(p.silos for p in self.points if p.model != self._largest)
        found = [p for p in self.points if p.silos == silos and p.encoding == "fp32"]
        return sorted(found, key=lambda point: point.bytes_up)

    @property
    def _largest(self) -> str:
        return max(self.points, key=lambda point: point.bytes_up / point.silos).model


def points_to(most: int) -> list[Point]:
    """Twice as many silos each time, up to ``most``; and models and encodings at four.

    Raises:
        UsageError: too few to grow.
    """
    if most < _USUAL:
        raise UsageError(f"Growth needs at least {_USUAL} silos")
    counts = [_FEWEST]
    while 2 * counts[-1] <= most:
        counts.append(2 * counts[-1])
    return [
        *(Point(silos=count, model=MODELS[-1], encoding="fp32") for count in counts),
        *(Point(silos=_USUAL, model=model, encoding="fp32") for model in MODELS[:-1]),
        *(
            Point(silos=_USUAL, model=MODELS[-1], encoding=encoding)
            for encoding in ENCODINGS
            if encoding != "fp32"
        ),
    ]


def measure_scaling(
    points: Sequence[Point],
    *,
    rounds: int,
    tell: Callable[[str], None],
    keep: Callable[[Scaling], None] = lambda so_far: None,
) -> Scaling:
    """Measure point after point; see :func:`benchmark.transport.measure_transport`.

    After each one ``keep`` gets what was measured so far.
    """
    measured = []
    for number, point in enumerate(points, start=1):
        tell(f"{number} of {len(points)}: {point.silos} silos, {point.model}, {point.encoding}")
        measured.append(
            measure_transport(
                silos=point.silos,
                model=point.model,
                encoding=point.encoding,
                rounds=rounds,
                tell=tell,
            )
        )
        keep(Scaling(points=measured))
    return Scaling(points=measured)


def write_figures(scaling: Scaling, folder: Path) -> None:
    """Write ``scaling.json`` and ``scaling.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = msgspec.json.format(msgspec.json.encode(scaling), indent=1)
    write_bytes(folder / "scaling.json", figures + b"\n")
    write_bytes(folder / "scaling.md", table(scaling).encode())


def write_scaling(scaling: Scaling, folder: Path) -> None:
    """Write figures, and pictures of them on light pages and on dark ones."""
    write_figures(scaling, folder)
    for theme in THEMES:
        for name, draw in (("time", _draw_time), ("memory", _draw_memory), ("bytes", _draw_bytes)):
            save(draw(scaling, theme), folder / f"scaling-{name}{theme.suffix}.png")


def table(scaling: Scaling) -> str:
    """Every point as a row of a Markdown table."""
    head = (
        "| silos | model | encoding | MB each way | round, s | bare limit, s | ratio | CPU, s "
        "| service, MiB | worker | agent |\n"
        "|---:|---|---|---:|---:|---:|---:|---:|---:|---:|---:|\n"
    )
    return head + "".join(f"| {' | '.join(_cells(point))} |\n" for point in scaling.points)


def _cells(point: Transported) -> tuple[str, ...]:
    return (
        f"{point.silos}",
        point.model,
        f"`{point.encoding}`",
        f"{point.bytes_up / 1e6:.1f}",
        f"{point.round_seconds.median:.2f} ({point.round_seconds.least:.2f} to "
        f"{point.round_seconds.most:.2f})",
        f"{point.limit_seconds.median:.2f}",
        f"{point.ratio_to_limit:.1f}",
        f"{point.cpu_seconds.median:.1f}",
        f"{point.service_peak_mb:.0f}",
        f"{point.worker_peak_mb:.0f}",
        f"{point.agent_peak_mb:.0f}",
    )


def _draw_time(scaling: Scaling, theme: Theme) -> Figure:
    points = scaling.by_silos()
    silos = [point.silos for point in points]
    with styled(theme):
        figure, axes = _panel("seconds a round, by silos", "silos", ticks=silos)
        _times(axes, silos, points, theme)
        legend_above(figure, [axes], 2)
    return figure


def _draw_memory(scaling: Scaling, theme: Theme) -> Figure:
    points = scaling.by_silos()
    silos = [point.silos for point in points]
    with styled(theme):
        figure, axes = _panel("largest resident memory, MiB, by silos", "silos", ticks=silos)
        for index, who in enumerate(("service", "worker", "agent")):
            peaks = [getattr(point, f"{who}_peak_mb") for point in points]
            axes.plot(silos, peaks, marker="o", label=who, **line_style(index, theme))
        axes.set_ylim(bottom=0.0)
        legend_above(figure, [axes], 3)
    return figure


def _draw_bytes(scaling: Scaling, theme: Theme) -> Figure:
    points = scaling.by_bytes()
    megabytes = [point.bytes_up / MIB for point in points]
    with styled(theme):
        title = f"seconds a round, by bytes, {points[0].silos} silos"
        figure, axes = _panel(title, "MiB each way, all silos together")
        _times(axes, megabytes, points, theme)
        legend_above(figure, [axes], 2)
    return figure


def _panel(title: str, across: str, *, ticks: Sequence[int] = ()) -> tuple[Figure, Axes]:
    """An empty picture; with ``ticks``, marks on its horizontal axis at these values alone."""
    figure = Figure(figsize=(WIDTH_INCHES / 2, _PICTURE_INCHES), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.set_xlabel(across)
    if ticks:
        axes.set_xticks(ticks)
    return figure, axes


def _times(
    axes: Axes, across: Sequence[float], points: Sequence[Transported], theme: Theme
) -> None:
    """Median round and bare limit, the round with its least and most."""
    middles = [point.round_seconds.median for point in points]
    ends = (
        [point.round_seconds.median - point.round_seconds.least for point in points],
        [point.round_seconds.most - point.round_seconds.median for point in points],
    )
    axes.errorbar(
        across, middles, yerr=ends, marker="o", capsize=3, label="fedreid", **line_style(0, theme)
    )
    limits = [point.limit_seconds.median for point in points]
    axes.plot(across, limits, marker="o", label="bare limit", **line_style(1, theme))
    axes.set_ylim(bottom=0.0)
