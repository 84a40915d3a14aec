"""What stands behind, below and in front of a person?

The backdrop is found by casting each pixel onto the floor or the wall behind it, so tiles and
shadows lie in the perspective of the person. Letters: H W pixels, P points, 3 space or colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedreid.datasets.synthetic.body import Part
from fedreid.datasets.synthetic.camera import Camera
from fedreid.datasets.synthetic.climate import Climate
from fedreid.datasets.synthetic.cloth import Floats
from fedreid.datasets.synthetic.raster import Layer, Light, View


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """Where a person is: on the floor, before the wall, and how bright both are just there."""

    across_m: float
    along_m: float
    wall_m: float
    floor_bright: float
    wall_bright: float

    def after(self, steps: int) -> Spot:
        """The spot some steps later."""
        return replace(self, across_m=self.across_m + 0.8 * steps)


def draw_spot(rng: np.random.Generator, camera: Camera) -> Spot:
    """A spot that a person passes. Spots of one camera differ, lest the ground alone name it."""
    return Spot(
        across_m=float(rng.uniform(-20.0, 20.0)),
        along_m=float(rng.uniform(0.0, 20.0)),
        wall_m=camera.wall_m * float(rng.uniform(0.6, 1.6)),
        floor_bright=float(rng.uniform(0.7, 1.3)),
        wall_bright=float(rng.uniform(0.7, 1.3)),
    )


def scene_light(climate: Climate, camera: Camera) -> Light:
    """Sun or lamps of the place as this camera sees them."""
    across, up = np.cos(camera.sun_height), np.sin(camera.sun_height)
    world_3 = np.array(
        (across * np.sin(camera.sun_azimuth), up, across * np.cos(camera.sun_azimuth))
    )
    colour_3 = np.array(climate.light)
    straight = View(
        yaw=0.0, pitch=camera.pitch, distance_m=1.0, px_per_m=1.0, foot_row=0.0, foot_column=0.0
    )
    sun, sky = (0.75, 0.5) if climate.outdoor else (0.35, 0.75)
    blue_3 = np.array((0.9, 1.0, 1.15)) if climate.outdoor else np.ones(3)
    return Light(
        sun_3=straight.turned(world_3),
        sun=sun * colour_3,
        sky=sky * colour_3 * blue_3,
        ground=0.28 * colour_3,
    )


def backdrop(
    camera: Camera, view: View, spot: Spot, height: int, width: int
) -> tuple[Floats, Floats]:
    """Colour behind the person, HW3, and the share of each pixel that is floor, HW."""
    x = (np.arange(width, dtype=np.float32) - view.foot_column) / view.px_per_m
    y = (view.foot_row - np.arange(height, dtype=np.float32)) / view.px_per_m
    behind_H = y / np.float32(np.sin(view.pitch))
    high_H = (y - spot.wall_m * np.sin(view.pitch)) / np.cos(view.pitch)
    # Things farther away are seen smaller, so a pixel spans more of them.
    spread_H = 1.0 + np.clip(behind_H, -2.0, spot.wall_m) / view.distance_m
    x_HW = x * spread_H[:, None] + spot.across_m
    floor_HW3 = _floor(camera, x_HW, np.broadcast_to(behind_H[:, None] + spot.along_m, x_HW.shape))
    wall_HW3 = _wall(camera, x_HW, np.broadcast_to(high_H[:, None], x_HW.shape))
    is_floor_HW = np.broadcast_to((high_H < 0.0)[:, None], x_HW.shape).astype(np.float32)
    scene_HW3 = np.where(
        is_floor_HW[..., None] > 0.5, spot.floor_bright * floor_HW3, spot.wall_bright * wall_HW3
    )
    return scene_HW3, is_floor_HW


def _texture(camera: Camera, x_HW: Floats, y_HW: Floats, cells_per_m: float) -> Floats:
    size = len(camera.texture_HW)
    column = (x_HW * cells_per_m).astype(np.intp) % size
    row = (y_HW * cells_per_m).astype(np.intp) % size
    picked: Floats = camera.texture_HW[row, column]
    return picked


def _floor(camera: Camera, x_HW: Floats, z_HW: Floats) -> Floats:
    cos_angle, sin_angle = np.cos(camera.floor_angle), np.sin(camera.floor_angle)
    along_HW, across_HW = x_HW * cos_angle + z_HW * sin_angle, z_HW * cos_angle - x_HW * sin_angle
    bright_HW = 0.85 + 0.1 * _texture(camera, x_HW, z_HW, 35.0)
    bright_HW += 0.08 * _texture(camera, x_HW, z_HW, 6.0)
    tile = camera.floor_tile_m
    if tile > 0:
        joint_HW = np.minimum(np.mod(along_HW, tile), np.mod(across_HW, tile)) < 0.035
        checker_HW = np.mod(np.floor(along_HW / tile) + np.floor(across_HW / tile), 2)
        bright_HW = bright_HW * np.where(joint_HW, 0.7, 0.94 + 0.08 * checker_HW)
    floor_HW3: Floats = np.maximum(bright_HW, 0.15)[..., None] * camera.floor_3
    return floor_HW3


def _wall(camera: Camera, x_HW: Floats, y_HW: Floats) -> Floats:
    wide, tall = camera.wall_cell_m
    column_HW, row_HW = np.floor(x_HW / wide), np.floor(y_HW / tall)
    choice_HW = np.mod(column_HW * 5 + row_HW * 3 + np.floor(column_HW / 3), 3).astype(np.intp)
    edge_HW = np.minimum(np.mod(x_HW, wide) / wide, np.mod(y_HW, tall) / tall) < 0.07
    bright_HW = 0.8 + 0.07 * _texture(camera, x_HW, y_HW, 25.0)
    bright_HW += 0.1 * _texture(camera, x_HW, y_HW, 4.0)
    bright_HW *= np.where(edge_HW, 0.65, 1.0) * np.where(y_HW < 0.12, 0.55, 1.0)
    wall_HW3: Floats = np.maximum(bright_HW, 0.1)[..., None] * camera.walls_C3[choice_HW]
    return wall_HW3


def cast_shadow(
    ground_HW3: Floats, floor_HW: Floats, parts: Sequence[Part], view: View, light: Light
) -> None:
    """Darken the floor, in place, where the parts keep the sun and the sky from it."""
    height, width, _ = ground_HW3.shape
    points_P3 = view.turned(np.concatenate([_points(part) for part in parts]))
    up_3 = view.turned(np.array((0.0, 1.0, 0.0)))
    above_P = (points_P3 * up_3).sum(axis=1)
    falls_P3 = points_P3 - (above_P / (light.sun_3 * up_3).sum())[:, None] * light.sun_3
    column_P = (view.foot_column + view.px_per_m * falls_P3[:, 0]).astype(np.intp)
    row_P = (view.foot_row - view.px_per_m * falls_P3[:, 1]).astype(np.intp)
    inside_P = (column_P >= 0) & (column_P < width) & (row_P >= 0) & (row_P < height)
    at_P = (row_P * width + column_P)[inside_P]
    hits_HW = np.bincount(at_P, minlength=height * width).reshape(height, width) * 1.0
    for axis, reach in ((0, 1), (1, 3), (0, 1), (1, 2)):
        rolled = [np.roll(hits_HW, shift, axis) for shift in range(-reach, reach + 1)]
        hits_HW = np.sum(rolled, axis=0)
    dark_HW = (0.3 + 0.35 * float(light.sun.mean())) * np.minimum(hits_HW / 12.0, 1.0) * floor_HW
    ground_HW3 *= (1.0 - dark_HW)[..., None]


def _points(part: Part) -> Floats:
    """Points along the tube's axis and sides, dense enough to smear into a shadow."""
    middle_K3 = 0.5 * (part.centre_K3[1:] + part.centre_K3[:-1])
    side_K3 = np.zeros_like(part.centre_K3)
    side_K3[:, 0] = 0.7 * part.side_K
    return np.concatenate(
        (part.centre_K3, middle_K3, part.centre_K3 + side_K3, part.centre_K3 - side_K3)
    )


def lay_over(ground_HW3: Floats, layer: Layer) -> Floats:
    """The layer in front of what is there."""
    return ground_HW3 * (1.0 - layer.cover_HW[..., None]) + layer.colour_HW3


def occlude(image_HW3: Floats, camera: Camera, rng: np.random.Generator) -> None:
    """Put a post, a rail or a box between camera and person, in place."""
    height, width, _ = image_HW3.shape
    colour_3 = camera.walls_C3[int(rng.integers(3))] * rng.uniform(0.3, 1.0)
    kind = int(rng.integers(3))
    if kind == 0:  # post
        thick = int(rng.integers(width // 12, width // 5))
        left = int(rng.choice((rng.integers(0, width // 4), rng.integers(width * 5 // 8, width))))
        area = (slice(0, height), slice(left, left + thick))
    elif kind == 1:  # rail or hedge across the legs
        top = int(rng.integers(height * 5 // 8, height * 7 // 8))
        area = (slice(top, min(top + height // 5, height)), slice(0, width))
    else:  # box or bin at one side
        top, reach = (
            int(rng.integers(height // 2, height)),
            int(rng.integers(width // 6, width // 2)),
        )
        columns = slice(0, reach) if rng.random() < 0.5 else slice(width - reach, width)
        area = (slice(top, height), columns)
    down, across = image_HW3[area].shape[:2]
    grain = camera.texture_HW.take(range(down), axis=0, mode="wrap")
    grain = grain.take(range(across), axis=1, mode="wrap")  # the texture is periodic
    shade = np.linspace(1.1, 0.75, image_HW3[area].shape[1])
    image_HW3[area] = (colour_3 * shade[:, None]) * (1.0 + 0.12 * grain[:, :, None])
