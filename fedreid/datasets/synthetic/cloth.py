"""What colour is a point of a garment?

Letters: N surface points. Coordinates belong to the body, not to the image, so that a pattern bends
with the limb: `around_N` is the angle about the limb in radians (0 in front, positive towards the
person's left), `along_N` metres from the top of the part, `arc_N` metres about the limb from the
front.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fedreid.datasets.synthetic.climate import Rgb

Floats: TypeAlias = npt.NDArray[np.floating[Any]]
Mask: TypeAlias = npt.NDArray[np.bool_]


class Pattern(StrEnum):
    """How a garment's colours are laid out."""

    PLAIN = "plain"
    HOOPS = "hoops"
    BARS = "bars"
    CHECKS = "checks"
    DOTS = "dots"
    BLOCK = "block"
    CHEST_BAND = "chest band"
    FRONT_PRINT = "front print"
    BACK_PRINT = "back print"
    PATCHES = "patches"
    SIDE_STRIPE = "side stripe"
    OPEN = "open"
    VEST = "vest"
    FACE = "face"


class Strap(StrEnum):
    """Straps of a bag that cross a garment."""

    NONE = "none"
    BOTH = "both"
    CROSS = "cross"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cloth:
    """A garment's surface. `pitch_m` is the period of the pattern."""

    pattern: Pattern
    colours: tuple[Rgb, Rgb, Rgb]
    pitch_m: float = 0.12
    strap: Strap = Strap.NONE
    strap_colour: Rgb = (0.0, 0.0, 0.0)

    @classmethod
    def plain(cls, colour: Rgb) -> Cloth:
        """One colour all over: skin, hair, shoes, simple cloth."""
        return cls(pattern=Pattern.PLAIN, colours=(colour, colour, colour))


def paint(cloth: Cloth, around_N: Floats, along_N: Floats, arc_N: Floats) -> Floats:
    """Linear colour of the points, shape N3."""
    colour_N3 = np.empty((len(around_N), 3), np.float32)
    colour_N3[:] = cloth.colours[0]
    second_N, third_N = _regions(cloth, around_N, along_N, arc_N)
    if second_N is not None:
        colour_N3[second_N] = cloth.colours[1]
    if third_N is not None:
        colour_N3[third_N] = cloth.colours[2]
    if cloth.strap is not Strap.NONE:
        colour_N3[_under_strap(cloth.strap, around_N, along_N, arc_N)] = cloth.strap_colour
    return colour_N3


def _regions(
    cloth: Cloth, around_N: Floats, along_N: Floats, arc_N: Floats
) -> tuple[Mask | None, Mask | None]:
    """Where the second and the third colour go; the third lies on top."""
    pitch_m = cloth.pitch_m
    across = np.mod(along_N, pitch_m) < 0.5 * pitch_m
    beside = np.mod(arc_N + 0.25 * pitch_m, pitch_m) < 0.5 * pitch_m
    front = np.abs(around_N) < 1.2
    match cloth.pattern:
        case Pattern.HOOPS:
            return across, None
        case Pattern.BARS:
            return beside, None
        case Pattern.CHECKS:
            return across ^ beside, across & beside
        case Pattern.DOTS:
            row = np.mod(along_N, pitch_m) / pitch_m - 0.5
            shift = 0.5 * pitch_m * np.mod(np.floor(along_N / pitch_m), 2)
            column = np.mod(arc_N + shift, pitch_m) / pitch_m - 0.5
            return row * row + column * column < 0.09, None
        case Pattern.BLOCK:
            return along_N > 2.4 * pitch_m, None
        case Pattern.CHEST_BAND:
            return np.abs(along_N - 0.27) < 0.6 * pitch_m, None
        case Pattern.FRONT_PRINT:
            inside = front & (np.abs(arc_N) < 0.09) & (np.abs(along_N - 0.3) < 0.6 * pitch_m)
            return inside, inside & (np.abs(arc_N) < 0.04)
        case Pattern.BACK_PRINT:
            back = np.abs(around_N) > 2.2
            return back & (along_N > 0.14) & (along_N < 0.14 + 1.6 * pitch_m), None
        case Pattern.PATCHES:
            wave = np.sin(17.0 * along_N / pitch_m * 0.13 + 1.7 * np.sin(9.0 * arc_N))
            wave = wave + np.sin(31.0 * arc_N * 0.7 - 11.0 * along_N)
            return wave > 0.55, wave < -0.95
        case Pattern.SIDE_STRIPE:
            return np.abs(np.abs(around_N) - 0.5 * np.pi) < 0.45, None
        case Pattern.OPEN:
            return np.abs(around_N) < 0.42, np.abs(around_N) < 0.08
        case Pattern.VEST:
            bands = np.abs(np.mod(along_N + 0.02, 0.2) - 0.1) < 0.025
            uprights = np.abs(np.abs(around_N) - 0.6) < 0.1
            return None, bands | uprights
        case Pattern.FACE:  # the pitch is the height of the head
            eyes = np.abs(np.abs(arc_N) - 0.14 * pitch_m) < 0.05 * pitch_m
            eyes &= np.abs(along_N - 0.5 * pitch_m) < 0.04 * pitch_m
            return eyes, (along_N > 0.68 * pitch_m) & (np.abs(around_N) < 1.3)
        case _:
            return None, None


def _under_strap(strap: Strap, around_N: Floats, along_N: Floats, arc_N: Floats) -> Mask:
    if strap is Strap.BOTH:
        return (np.abs(np.abs(arc_N) - 0.105) < 0.022) & (along_N < 0.4) & (np.abs(around_N) < 1.5)
    # From the left shoulder to the right hip; seen from behind it falls the other way.
    across = np.where(
        np.abs(around_N) < 0.5 * np.pi, around_N, np.sign(around_N) * np.pi - around_N
    )
    return np.abs(across - 0.9 + 3.2 * (along_N - 0.05)) < 0.16
