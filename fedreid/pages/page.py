"""What do all report pages share? Their frame, headline numbers, and figures with their units."""

from dataclasses import dataclass

import jinja2

from fedreid.limits import KIB, MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One headline number."""

    label: str
    value: str
    note: str


def template(name: str, *, package: str) -> jinja2.Template:
    """A page's or document's template in a package's folder ``templates``; only HTML is escaped.

    The frame and the pieces that all pages share lie beside this module.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(package), jinja2.PackageLoader("fedreid.pages")]
        ),
        autoescape=jinja2.select_autoescape(("html.j2",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, size=size_text, duration=duration_text, ratio=ratio)
    return environment.get_template(name)


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
