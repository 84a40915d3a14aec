"""Which point of which part does each pixel see?

Parts are sampled on grids finer than the pixels, the samples splatted into a depth buffer, and only
the samples that survive are painted and lit. Everything is a broadcast of a part's rings against
its angles: there is no matrix product large enough for BLAS to start threads.

Letters: H W pixels, T rings along a part, A angles about it, N visible samples, 3 space or colour.
Camera frame: x right, y up, z towards the camera, metres, origin on the ground below the person.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fedreid.datasets.synthetic.body import Part
from fedreid.datasets.synthetic.cloth import Floats, paint

Indices: TypeAlias = npt.NDArray[np.int64]

SUPERSAMPLING = 2  # samples per pixel and axis; 1 leaves ragged edges, 3 doubles the time
DENSITY = 1.2  # samples per subpixel and axis; below 1.1 holes open in steep surfaces
DEPTH_RANGE_M = 8.0
DEPTH_STEPS = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Where the camera stands: `yaw` 0 sees the person's front, `pitch` is how far it looks down.

    The person's feet are at `foot_row` and `foot_column`, in pixels of the image.
    """

    yaw: float
    pitch: float
    distance_m: float
    px_per_m: float
    foot_row: float
    foot_column: float

    def turned(self, vectors_x3: Floats) -> Floats:
        """Vectors of the person's frame in the camera frame."""
        turned_x3: Floats = vectors_x3 @ _axes(self.yaw, self.pitch)
        return turned_x3


@lru_cache(maxsize=8)
def _axes(yaw: float, pitch: float) -> Floats:
    """The person's axes, row by row, in the camera frame."""
    cos_yaw, sin_yaw, cos_pitch, sin_pitch = np.cos(yaw), np.sin(yaw), np.cos(pitch), np.sin(pitch)
    return np.array(
        (
            (cos_yaw, sin_yaw * sin_pitch, -sin_yaw * cos_pitch),
            (0.0, cos_pitch, sin_pitch),
            (sin_yaw, -cos_yaw * sin_pitch, cos_yaw * cos_pitch),
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Light:
    """Sun (direction towards it, in the camera frame) and ambient light from above and below."""

    sun_3: Floats
    sun: Floats
    sky: Floats
    ground: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A drawn person: colour premultiplied by coverage."""

    colour_HW3: Floats
    cover_HW: Floats


@dataclass(frozen=True, slots=True)
class _Grid:
    """The samples of one part."""

    part: Part
    at_T: Floats  # metres from the first ring
    centre_T3: Floats
    side_T: Floats
    depth_T: Floats
    angle_A: Floats
    side_3: Floats  # cross-section axes and tube axis, camera frame
    front_3: Floats
    axis_3: Floats


def extent(parts: Sequence[Part], view: View) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of the parts in metres of the camera frame."""
    centre_K3 = view.turned(np.concatenate([part.centre_K3 for part in parts]))
    radius_K = np.concatenate([np.maximum(part.side_K, part.depth_K) for part in parts])
    zoom_K = 1.0 / (1.0 - centre_K3[:, 2] / view.distance_m)
    x_K, y_K, radius_K = centre_K3[:, 0] * zoom_K, centre_K3[:, 1] * zoom_K, radius_K * zoom_K
    return (
        float((x_K - radius_K).min()),
        float((x_K + radius_K).max()),
        float((y_K - radius_K).min()),
        float((y_K + radius_K).max()),
    )


def draw_parts(
    parts: Sequence[Part], view: View, light: Light, folds: Floats, height: int, width: int
) -> Layer:
    """Paint, light and average the parts. `folds` are four phases of the creases in the cloth."""
    rows, columns = height * SUPERSAMPLING, width * SUPERSAMPLING
    grids = [_sample(part, view) for part in parts]
    nearest = np.full(rows * columns, np.iinfo(np.int64).max, np.int64)
    start, starts = 0, []
    for grid in grids:
        starts.append(start)
        start += _splat(grid, view, nearest, start, rows, columns)
    pixel_N = np.flatnonzero(nearest != np.iinfo(np.int64).max)
    sample_N = nearest[pixel_N] & (2**32 - 1)
    owner_N = np.searchsorted(np.array(starts), sample_N, side="right") - 1
    colour_N3 = np.empty((len(pixel_N), 3), np.float32)
    for index, grid in enumerate(grids):
        mine = np.flatnonzero(owner_N == index)
        if len(mine):
            colour_N3[mine] = _shade(grid, sample_N[mine] - starts[index], light, folds)
    return _average(colour_N3, pixel_N, rows, columns)


def _sample(part: Part, view: View) -> _Grid:
    steps_K = np.linalg.norm(np.diff(part.centre_K3, axis=0), axis=1)
    along_K = np.concatenate(((0.0,), np.cumsum(steps_K)))
    subpixel_m = 1.0 / (view.px_per_m * SUPERSAMPLING * DENSITY)
    # A flare widens faster than the tube is long: count the longer way.
    longest = along_K[-1] + float(np.abs(np.diff(part.side_K)).sum())
    at_T = np.linspace(0.0, along_K[-1], max(int(longest / subpixel_m), 6))
    axis = part.centre_K3[-1] - part.centre_K3[0]
    axis = axis / np.linalg.norm(axis)
    front = part.front_3 - axis * (part.front_3 * axis).sum()
    front = front / max(float(np.linalg.norm(front)), 1e-6)
    side = np.cross(front, axis)
    widest = max(float(part.side_K.max()), float(part.depth_K.max()))
    angles = max(int(2 * np.pi * widest / subpixel_m), 12)
    centre_K3 = view.turned(part.centre_K3)
    return _Grid(
        part=part,
        at_T=at_T,
        centre_T3=np.stack([np.interp(at_T, along_K, centre_K3[:, i]) for i in range(3)], axis=-1),
        side_T=np.interp(at_T, along_K, part.side_K),
        depth_T=np.interp(at_T, along_K, part.depth_K),
        angle_A=np.linspace(-np.pi, np.pi, angles, endpoint=False),
        side_3=view.turned(side),
        front_3=view.turned(front),
        axis_3=view.turned(axis),
    )


def _round(grid: _Grid) -> tuple[Floats, Floats]:
    """Sine and cosine about the part; a boxy part's are pushed towards a square (|x|^4 + |y|^4)."""
    sine_A, cosine_A = np.sin(grid.angle_A), np.cos(grid.angle_A)
    if not grid.part.boxy:
        return sine_A, cosine_A
    radius_A = (sine_A**4 + cosine_A**4) ** -0.25
    return sine_A * radius_A, cosine_A * radius_A


def _splat(grid: _Grid, view: View, nearest: Indices, start: int, rows: int, columns: int) -> int:
    """Enter a part's samples into the depth buffer; a key is depth, then number of the sample."""
    sine_A, cosine_A = (values.astype(np.float32) for values in _round(grid))
    side_T, depth_T = grid.side_T.astype(np.float32), grid.depth_T.astype(np.float32)
    centre_T3 = grid.centre_T3.astype(np.float32)

    def coordinate(i: int) -> Floats:
        at_TA = centre_T3[:, i, None] + (side_T * np.float32(grid.side_3[i]))[:, None] * sine_A
        at_TA += (depth_T * np.float32(grid.front_3[i]))[:, None] * cosine_A
        return at_TA.ravel()

    towards_N = coordinate(2)
    zoom_N = np.float32(view.px_per_m * SUPERSAMPLING) / (
        np.float32(1.0) - towards_N * np.float32(1.0 / view.distance_m)
    )
    column_N = (view.foot_column * SUPERSAMPLING + coordinate(0) * zoom_N).astype(np.int32)
    row_N = (view.foot_row * SUPERSAMPLING - coordinate(1) * zoom_N).astype(np.int32)
    inside_N = np.flatnonzero(
        (column_N >= 0) & (column_N < columns) & (row_N >= 0) & (row_N < rows)
    )
    depth_N = (DEPTH_RANGE_M - towards_N[inside_N]) * np.float32(DEPTH_STEPS / DEPTH_RANGE_M / 2)
    key_N = (depth_N.astype(np.int64) << 32) | (inside_N + start)
    np.minimum.at(nearest, row_N[inside_N] * columns + column_N[inside_N], key_N)
    return len(towards_N)


def _shade(grid: _Grid, sample_N: Indices, light: Light, folds: Floats) -> Floats:
    """Painted and lit colour of a part's visible samples, shape N3."""
    ring_N, turn_N = np.divmod(sample_N, len(grid.angle_A))
    angle_N = grid.angle_A[turn_N]
    at_N, side_N, depth_N = grid.at_T[ring_N], grid.side_T[ring_N], grid.depth_T[ring_N]
    arc_N = angle_N * 0.5 * (side_N + depth_N)
    colour_N3 = np.empty((len(sample_N), 3), np.float32)
    begin = 0.0
    for share, cloth in grid.part.covers:
        end = share * float(grid.at_T[-1]) + (1e-9 if share == 1.0 else 0.0)
        mine = np.flatnonzero((at_N >= begin) & (at_N <= end))
        colour_N3[mine] = paint(cloth, angle_N[mine], at_N[mine], arc_N[mine])
        begin = max(begin, end)
    normal_N3 = _normals(grid, ring_N, turn_N, side_N, depth_N)
    crease_N = np.sin(19.0 * at_N + 2.0 * angle_N + folds[0]) * np.sin(3.0 * angle_N + folds[1])
    crease_N += 0.6 * np.sin(43.0 * at_N - 3.0 * angle_N + folds[2])
    up_N = 0.5 + 0.5 * normal_N3[:, 1]
    sun_N = np.maximum((normal_N3 * light.sun_3).sum(axis=1), 0.0)
    bright_N3 = up_N[:, None] * light.sky + (1.0 - up_N)[:, None] * light.ground
    bright_N3 += sun_N[:, None] * light.sun
    lit_N3: Floats = colour_N3 * bright_N3 * (1.0 + 0.07 * crease_N)[:, None]
    return lit_N3


def _normals(
    grid: _Grid, ring_N: Indices, turn_N: Indices, side_N: Floats, depth_N: Floats
) -> Floats:
    sine_A, cosine_A = np.sin(grid.angle_A), np.cos(grid.angle_A)
    slope_T = np.gradient(0.5 * (grid.side_T + grid.depth_T), grid.at_T)
    across_N = sine_A[turn_N] / np.maximum(side_N, 1e-4)
    ahead_N = cosine_A[turn_N] / np.maximum(depth_N, 1e-4)
    length_N = np.sqrt(across_N**2 + ahead_N**2)
    tilt_N = slope_T[ring_N]
    normal_N3 = (
        (across_N / length_N)[:, None] * grid.side_3
        + (ahead_N / length_N)[:, None] * grid.front_3
        - tilt_N[:, None] * grid.axis_3
    )
    unit_N3: Floats = normal_N3 / np.sqrt(1.0 + tilt_N**2)[:, None]
    return unit_N3


def _average(colour_N3: Floats, pixel_N: Indices, rows: int, columns: int) -> Layer:
    fine_P4 = np.zeros((rows * columns, 4), np.float32)
    fine_P4[pixel_N, :3] = colour_N3
    fine_P4[pixel_N, 3] = 1.0
    step = SUPERSAMPLING
    shape = (rows // step, step, columns // step, step, 4)
    coarse_HW4 = fine_P4.reshape(shape).mean(axis=(1, 3))
    return Layer(colour_HW3=coarse_HW4[..., :3], cover_HW=coarse_HW4[..., 3])
