"""How does a drawn figure come into a page? Embedded, for light and dark."""

import base64
from dataclasses import dataclass
from pathlib import Path

import jinja2

from benchmark.theme import DARK, LIGHT
from fedreid.pages import page

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


def template(name: str) -> jinja2.Template:
    """A template of the benchmark's by its file name."""
    return page.template(name, package="benchmark")


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
