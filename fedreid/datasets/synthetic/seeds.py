"""Where does every random draw of the synthetic silos come from?

Each thing that is drawn (a camera, a person, a pass through a camera, a single image) owns a
generator keyed by what it is, never by when it is drawn. So the bytes of an image do not depend on
the number of workers, nor on which other images were asked for.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Draw(IntEnum):
    """What a generator is for; part of its key, so that no two purposes share a stream."""

    CAMERA = 1
    LOOKS = 2
    ITINERARY = 3
    PASS = 4
    IMAGE = 5
    BYSTANDER = 6
    PUBLIC = 7


def generator(
    draw: Draw,
    *,
    seed: int,
    silo: int = 0,
    split: int = 0,
    person: int = 0,
    camera: int = 0,
    index: int = 0,
) -> np.random.Generator:
    """Generator of one thing. The key always has seven words: SeedSequence pads with zeros, so
    keys of different lengths could otherwise mean the same stream."""
    key = (seed, int(draw), silo, split, person, camera, index)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))
