"""What do the boards look like? A page each, as Grafana lays it out, drawn from real answers.

No Grafana runs where this is tested. Grid, titles, series and legends are those of the board's
file; the drawing is ours. Chromium makes a picture of it.
"""

import html
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.tools import tool

Asking = Callable[[str], Sequence[Any]]
"""Gives the series of a panel's query."""

_ROW_PX, _WIDTH_PX, _GAP_PX = 34, 1440, 8
_COLOURS = (
    "#7eb26d", "#eab839", "#6ed0e0", "#ef843c", "#e24d42", "#1f78c1", "#ba43a9", "#705da0",
    "#508642", "#cca300",
)  # fmt: skip
_STYLE = """
body{margin:0;background:#111217;color:#ccccdc;font:12px sans-serif}
h1{font-size:18px;margin:12px} .board{position:relative} .at{position:absolute;overflow:hidden}
.panel{background:#181b1f;border:1px solid #2c3235;box-sizing:border-box;padding:6px}
.title{font-weight:bold;margin-bottom:2px} .row{font-size:15px;padding-top:8px}
.number{font-size:34px;text-align:center;padding-top:18px;color:#73bf69}
.why{text-align:center;padding-top:40px;color:#8e8e9a} .legend{font-size:10px;line-height:13px}
"""


def draw(board: dict[str, Any], ask: Asking, out: Path) -> None:
    """Make a picture of a board."""
    column = _WIDTH_PX / 24
    parts, bottom = [], 0
    for panel in board["panels"]:
        at = panel["gridPos"]
        bottom = max(bottom, at["y"] + at["h"])
        place = (
            f"left:{at['x'] * column:.0f}px;top:{at['y'] * _ROW_PX}px;"
            f"width:{at['w'] * column - _GAP_PX:.0f}px;height:{at['h'] * _ROW_PX - _GAP_PX}px"
        )
        kind = "row" if panel["type"] == "row" else "panel"
        body = "" if kind == "row" else _body(panel, ask)
        title = html.escape(panel["title"])
        parts.append(
            f'<div class="at {kind}" style="{place}"><div class="title">{title}</div>{body}</div>'
        )
    page = out.with_suffix(".html")
    page.write_text(
        f"<meta charset=utf-8><style>{_STYLE}</style><h1>{html.escape(board['title'])}</h1>"
        f'<div class="board">{"".join(parts)}</div>',
        "utf-8",
    )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        subprocess.run(
            [
                tool("chromium"), "--headless", "--no-sandbox", "--disable-gpu",
                "--hide-scrollbars", f"--user-data-dir={profile}",
                f"--window-size={_WIDTH_PX},{bottom * _ROW_PX + 60}",
                f"--screenshot={out}", page.as_uri(),
            ],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip


def _body(panel: dict[str, Any], ask: Asking) -> str:
    named = []
    for target in panel["targets"]:
        for series in ask(target["expr"]):
            name = target.get("legendFormat", "")
            for label, text in series["metric"].items():
                name = name.replace(f"{{{{{label}}}}}", text)
            points = [(float(at), float(value)) for at, value in series["values"]]
            named.append((name, [(at, v) for at, v in points if v == v and abs(v) < 1e300]))
    defaults = panel["fieldConfig"]["defaults"]
    if not named:
        return f'<div class="why">{html.escape(defaults.get("noValue", ""))}</div>'
    if panel["type"] == "stat":
        return f'<div class="number">{_shown(named[-1][1][-1][1], defaults["unit"])}</div>'
    if panel["type"] == "state-timeline":
        return _bars(named, panel["gridPos"])
    stacked = defaults["custom"].get("stacking", {}).get("mode") == "normal"
    return _graph(named, defaults["unit"], panel["gridPos"], stacked=stacked)


def _graph(
    named: list[tuple[str, list[tuple[float, float]]]],
    unit: str,
    at: dict[str, int],
    *,
    stacked: bool,
) -> str:
    if stacked:
        named = _stacked(named)
    width, height = at["w"] * _WIDTH_PX // 24 - 90, at["h"] * _ROW_PX - 90
    values = [value for _, points in named for _, value in points]
    times = [when for _, points in named for when, _ in points]
    low = min(0.0, *values)
    high = max(values) if max(values) > low else low + 1.0
    first, span = min(times), max(max(times) - min(times), 1.0)
    lines = [
        f'<text x="0" y="{height * (1 - share) + 12:.0f}" fill="#8e8e9a" font-size="10">'
        f"{_shown(low + share * (high - low), unit)}</text>"
        f'<line x1="60" x2="{width + 60}" y1="{height * (1 - share) + 8:.0f}" '
        f'y2="{height * (1 - share) + 8:.0f}" stroke="#2c3235"/>'
        for share in (0.0, 0.5, 1.0)
    ]
    for number, (_, points) in enumerate(named):
        path = " ".join(
            f"{60 + (when - first) / span * width:.1f},"
            f"{8 + height * (1 - (value - low) / (high - low)):.1f}"
            for when, value in points
        )
        colour = _COLOURS[number % len(_COLOURS)]
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}"/>')
    legend = " ".join(
        f'<span style="color:{_COLOURS[number % len(_COLOURS)]}">▬</span> {html.escape(name)}'
        for number, (name, _) in enumerate(named)
    )
    return (
        f'<svg width="{width + 64}" height="{height + 16}">{"".join(lines)}</svg>'
        f'<div class="legend">{legend}</div>'
    )


def _bars(named: list[tuple[str, list[tuple[float, float]]]], at: dict[str, int]) -> str:
    """A line for each state, with a mark for each moment at which it was."""
    width = at["w"] * _WIDTH_PX // 24 - 220
    times = [when for _, points in named for when, _ in points]
    first, span = min(times), max(max(times) - min(times), 1.0)
    marks = []
    for number, (name, points) in enumerate(named):
        marks.append(
            f'<text x="0" y="{number * 15 + 12}" fill="#ccccdc" font-size="10">'
            f"{html.escape(name)}</text>"
        )
        marks.extend(
            f'<rect x="{180 + (when - first) / span * width:.1f}" y="{number * 15 + 3}" '
            f'width="{width / span + 1:.1f}" height="11" '
            f'fill="{_COLOURS[number % len(_COLOURS)]}"/>'
            for when, _ in points
        )
    return f'<svg width="{width + 200}" height="{len(named) * 15 + 4}">{"".join(marks)}</svg>'


def _stacked(
    named: list[tuple[str, list[tuple[float, float]]]],
) -> list[tuple[str, list[tuple[float, float]]]]:
    """Each series on top of those before it."""
    below: dict[float, float] = {}
    made = []
    for name, points in named:
        for when, value in points:
            below[when] = below.get(when, 0.0) + value
        made.append((name, [(when, below[when]) for when, _ in points]))
    return made


def _shown(value: float, unit: str) -> str:
    """A value as Grafana writes it, roughly."""
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "s" and abs(value) >= 365 * 86_400:
        return f"{value / (365 * 86_400):.3g} years"
    if unit == "s" and abs(value) >= 172_800:
        return f"{value / 86_400:.3g} days"
    if unit in ("bytes", "Bps"):
        for prefix in ("", "Ki", "Mi"):
            if abs(value) < 1024:
                return f"{value:.3g} {prefix}B" + ("/s" if unit == "Bps" else "")
            value /= 1024
        return f"{value:.3g} GiB" + ("/s" if unit == "Bps" else "")
    return f"{value:.3g}" + (" s" if unit == "s" else "")
