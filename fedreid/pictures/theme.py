"""Which colours do pictures have, on a light page and on a dark one?

Series colours keep their order and stay apart for colour-blind readers.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Theme:
    """Colours of one mode."""

    suffix: str
    """Goes into file names: ``accuracy.png``, ``accuracy-dark.png``."""
    surface: str
    ink: str
    muted: str
    grid: str
    good: str
    bad: str
    series: tuple[str, ...]


LIGHT = Theme(
    suffix="",
    surface="#ffffff",
    ink="#1c1c1a",
    muted="#6a6963",
    grid="#e7e6e1",
    good="#0b7a3b",
    bad="#c62f2f",
    series=(
        "#2a78d6",
        "#e0602a",
        "#149c6c",
        "#c98a00",
        "#c0569a",
        "#4a3aa7",
        "#5d8a00",
        "#8a5a44",
    ),
)
DARK = Theme(
    suffix="-dark",
    surface="#1e1f22",
    ink="#f1f0ec",
    muted="#a3a29b",
    grid="#3a3b3f",
    good="#3ecf7f",
    bad="#ff6b62",
    series=(
        "#5aa2f2",
        "#f2834f",
        "#2fc18c",
        "#e0ac2f",
        "#e283bd",
        "#9c8ff0",
        "#9bc53d",
        "#c39a83",
    ),
)
THEMES = (LIGHT, DARK)
