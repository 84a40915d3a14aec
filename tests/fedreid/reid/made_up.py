"""Features whose dot products are exact in float32, so that ties are ties, and labels for them."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

WIDTH = 16


def corners(numbers: list[int]) -> Floats:
    """Corners of a cube by number: length 1, and all distances are multiples of 1/8."""
    bits = (np.array(numbers, dtype=np.int64).reshape(-1, 1) >> np.arange(WIDTH)) & 1
    return np.asarray(np.where(bits, 0.25, -0.25), dtype=np.float32)


def around(people: Ints, random: np.random.Generator, *, width: int = 24) -> Floats:
    """Rows of length 1 near their person's direction, without ties."""
    directions = np.random.default_rng(99).standard_normal((40, width))
    feats = directions[people] + 0.8 * random.standard_normal((len(people), width))
    feats /= np.linalg.norm(feats, axis=1, keepdims=True)
    return np.asarray(feats, dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What evaluate() takes."""

    feats_QD: Floats
    feats_GD: Floats
    q_pids: Ints
    g_pids: Ints
    q_camids: Ints
    g_camids: Ints

    @classmethod
    def random(cls, queries: int, gallery: int, *, seed: int = 0, people: int = 8) -> Self:
        """Without ties, with junk and distractors."""
        random = np.random.default_rng(seed)
        q_pids = random.integers(1, people, size=queries)
        g_pids = random.integers(-1, people, size=gallery)
        return cls(
            feats_QD=around(q_pids, random),
            feats_GD=around(np.abs(g_pids), random),
            q_pids=q_pids,
            g_pids=g_pids,
            q_camids=random.integers(1, 4, size=queries),
            g_camids=random.integers(1, 4, size=gallery),
        )

    def arrays(self) -> tuple[Floats, Floats, Ints, Ints, Ints, Ints]:
        """In the order of evaluate()'s arguments."""
        labels = (self.q_pids, self.g_pids, self.q_camids, self.g_camids)
        return (self.feats_QD, self.feats_GD, *labels)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Few corners, people and cameras: ties, duplicates, junk, distractors, nothing left."""
    queries, gallery = draw(st.integers(0, 5)), draw(st.integers(0, 24))
    corner = st.sampled_from(draw(st.lists(st.integers(0, 2**WIDTH - 1), min_size=1, max_size=6)))
    cameras = st.integers(1, draw(st.integers(1, 3)))

    def row(values: st.SearchStrategy[int], count: int) -> list[int]:
        return draw(st.lists(values, min_size=count, max_size=count))

    def ints(values: st.SearchStrategy[int], count: int) -> Ints:
        return np.array(row(values, count), dtype=np.int64)

    return Case(
        feats_QD=corners(row(corner, queries)),
        feats_GD=corners(row(corner, gallery)),
        q_pids=ints(st.integers(-1, 3), queries),
        g_pids=ints(st.integers(-1, 3), gallery),
        q_camids=ints(cameras, queries),
        g_camids=ints(cameras, gallery),
    )
