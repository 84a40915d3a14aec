"""What do all report pages share? Templates, embedded pictures, and figures with their units."""

import base64
from dataclasses import dataclass
from pathlib import Path

import jinja2

from benchmark.theme import DARK, LIGHT
from fedreid.limits import KIB, MIB

PAGE_NAME = "report.html"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One figure of the page, embedded for both modes."""

    name: str
    """Of its file, without suffix and ending."""
    title: str
    caption: str
    light: str
    dark: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One headline number."""

    label: str
    value: str
    note: str


def template(name: str) -> jinja2.Template:
    """A page's or document's template by its file name; only HTML is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("benchmark"),
        autoescape=jinja2.select_autoescape(("html.j2",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, size=size_text, duration=duration_text, ratio=ratio)
    return environment.get_template(name)


def picture(out: Path, name: str, *, title: str, caption: str) -> Picture:
    """The drawn figure ``name`` of the folder ``out``, ready to stand in a page."""
    return Picture(
        name=name,
        title=title,
        caption=caption,
        light=_embedded(out / f"{name}{LIGHT.suffix}.png"),
        dark=_embedded(out / f"{name}{DARK.suffix}.png"),
    )


def _embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def percent(ratio: float | None) -> str:
    """``54.3 %``, or a dash."""
    return "–" if ratio is None else f"{100 * ratio:.1f} %"


def ratio(value: float | None) -> str:
    """``0.33``, or a dash."""
    return "–" if value is None else f"{value:.2f}"


def size_text(size_bytes: float) -> str:
    """Bytes in the unit that leaves one to four digits before the point."""
    for unit, name in ((1024 * MIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes:.0f} B"


def duration_text(seconds: float) -> str:
    """Seconds up to two minutes, then minutes and hours."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
