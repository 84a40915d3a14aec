"""Where do lines, bars and ticks of a small chart stand? Geometry only; the page draws it as SVG.

Colours are the page's, so that a chart follows it into the dark. Nothing is needed for it but
this module: the coordinator has no plotting library.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

WIDTH, HEIGHT = 920.0, 260.0
LEFT, RIGHT, TOP, BOTTOM = 68.0, 12.0, 12.0, 34.0
COLOURS = 8
"""Series colours of the page; a ninth series begins again."""

_TICKS = 4
_ROUND_TICKS = 8
_BAR_SHARE = 0.7
_WIDEST_BAR = 48.0

Points = Sequence[tuple[int, float]]
"""Round and value, by round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A labelled place on an axis."""

    at: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One series."""

    name: str
    colour: int
    """Index of the page's colour."""
    path: str
    """As SVG wants it: ``x,y x,y``."""
    dots: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One piece of a round's stacked bar."""

    colour: int
    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One chart, ready to be drawn."""

    title: str
    caption: str
    names: tuple[str, ...]
    """Of the series, in the order of their colours."""
    lines: tuple[Line, ...] = ()
    bars: tuple[Bar, ...] = ()
    across: tuple[Tick, ...]
    up: tuple[Tick, ...]
    width: float = field(default=WIDTH, init=False)
    height: float = field(default=HEIGHT, init=False)
    left: float = field(default=LEFT, init=False)
    right: float = field(default=WIDTH - RIGHT, init=False)
    bottom: float = field(default=HEIGHT - BOTTOM, init=False)


def line_chart(
    title: str, caption: str, series: Mapping[str, Points], *, text: Callable[[float], str]
) -> Chart | None:
    """A line for each series over the rounds; ``text`` names a value. None without any point."""
    points = [point for found in series.values() for point in found]
    if not points:
        return None
    scale = _Scale.of([number for number, _ in points], max(value for _, value in points))
    return Chart(
        title=title,
        caption=caption,
        names=tuple(series),
        lines=tuple(
            _line(name, index, found, scale) for index, (name, found) in enumerate(series.items())
        ),
        across=scale.across(),
        up=scale.up(text),
    )


def bar_chart(
    title: str, caption: str, layers: Mapping[str, Points], *, text: Callable[[float], str]
) -> Chart | None:
    """A bar for each round, made of its layers' values; None without any."""
    totals: dict[int, float] = {}
    for found in layers.values():
        for number, value in found:
            totals[number] = totals.get(number, 0.0) + value
    if not totals:
        return None
    scale = _Scale.of(list(totals), max(totals.values()))
    below = dict.fromkeys(totals, 0.0)
    bars = []
    for index, (name, found) in enumerate(layers.items()):
        for number, value in found:
            title_of_bar = f"round {number}, {name}: {text(value)}"
            bars.append(scale.bar(index, number, below[number], value, title_of_bar))
            below[number] += value
    return Chart(
        title=title,
        caption=caption,
        names=tuple(layers),
        bars=tuple(bars),
        across=scale.across(),
        up=scale.up(text),
    )


def _line(name: str, index: int, points: Points, scale: "_Scale") -> Line:
    dots = tuple((scale.x(number), scale.y(value)) for number, value in points)
    return Line(
        name=name,
        colour=index % COLOURS,
        path=" ".join(f"{x:.1f},{y:.1f}" for x, y in dots),
        dots=dots if len(dots) <= 2 * _ROUND_TICKS else (),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scale:
    """From rounds and values to places; values begin at 0."""

    first: int
    last: int
    top: float
    step: float

    @classmethod
    def of(cls, numbers: Sequence[int], highest: float) -> "_Scale":
        step = _pleasant((highest if highest > 0 else 1.0) / _TICKS)
        top = step * max(1, math.ceil(highest / step - 1e-9))
        return cls(first=min(numbers), last=max(numbers), top=top, step=step)

    def _slot(self) -> float:
        return (WIDTH - RIGHT - LEFT) / (self.last - self.first + 1)

    def x(self, number: int) -> float:
        return LEFT + (number - self.first + 0.5) * self._slot()

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - value / self.top * (HEIGHT - BOTTOM - TOP)

    def bar(self, index: int, number: int, below: float, value: float, title: str) -> Bar:
        width = min(_WIDEST_BAR, _BAR_SHARE * self._slot())
        return Bar(
            colour=index % COLOURS,
            x=self.x(number) - width / 2,
            y=self.y(below + value),
            width=width,
            height=self.y(below) - self.y(below + value),
            title=title,
        )

    def across(self) -> tuple[Tick, ...]:
        step = max(1, math.ceil(_pleasant((self.last - self.first + 1) / _ROUND_TICKS)))
        numbers = [n for n in range(self.first, self.last + 1) if n % step == 0]
        return tuple(Tick(at=self.x(n), label=str(n)) for n in numbers or [self.first])

    def up(self, text: Callable[[float], str]) -> tuple[Tick, ...]:
        count = round(self.top / self.step)
        values = [self.step * index for index in range(count + 1)]
        return tuple(Tick(at=self.y(value), label=text(value)) for value in values)


def _pleasant(value: float) -> float:
    """The next larger of 1, 2, 5, 10, … times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value * (1 - 1e-9))
