"""How does one image come about, from its place in the plan to JPEG bytes?"""

from dataclasses import replace
from functools import lru_cache

import numpy as np

from fedreid.datasets.synthetic.body import body_parts
from fedreid.datasets.synthetic.camera import Camera, develop, draw_camera
from fedreid.datasets.synthetic.climate import CLIMATES, Climate
from fedreid.datasets.synthetic.cloth import Floats
from fedreid.datasets.synthetic.draws import generator
from fedreid.datasets.synthetic.identity import draw_identity
from fedreid.datasets.synthetic.pose import draw_pose
from fedreid.datasets.synthetic.raster import Light, View, draw_parts, extent
from fedreid.datasets.synthetic.scene import (
    backdrop,
    cast_shadow,
    draw_spot,
    lay_over,
    occlude,
    scene_light,
)
from fedreid.datasets.synthetic.shots import Kind, Shot
from fedreid.datasets.synthetic.spec import SyntheticSpec

BYSTANDER_SHARE = 0.14
OCCLUDER_SHARE = 0.14
STEP_PHASE = 2.1  # radians of gait between two images of a pass
JITTER = 0.05  # of the crop's height, for shift and size
JUNK_JITTER = 0.3  # boxes a detector should have thrown away


@lru_cache(maxsize=64)
def _camera(seed: int, place: str, climate: int, number: int, colour_shift: bool) -> Camera:
    rng = generator(seed, "camera", place, number)
    return draw_camera(rng, CLIMATES[climate], number, colour_shift=colour_shift)


def draw_image(spec: SyntheticSpec, shot: Shot) -> bytes:
    """JPEG bytes of a shot; a pure function of its arguments."""
    climate = CLIMATES[shot.climate]
    camera = _camera(spec.seed, shot.place, shot.climate, shot.camera, spec.colour_shift)
    who = draw_identity(generator(spec.seed, "looks", shot.place, shot.kind, shot.person), climate)
    walk = (shot.place, shot.kind, shot.person, shot.camera)
    of_pass = generator(spec.seed, "pass", *walk)
    rng = generator(spec.seed, "image", *walk, shot.index)
    away = np.pi if of_pass.random() < 0.5 else 0.0
    yaw = camera.heading + away + float(of_pass.normal(0.0, 0.25) + rng.normal(0.0, 0.15))
    phase = float(of_pass.uniform(0.0, 2 * np.pi)) + STEP_PHASE * shot.index
    spot = draw_spot(of_pass, camera).after(shot.index)
    parts = body_parts(who, draw_pose(rng, phase))
    view = _framed(
        parts_extent=extent(parts, _straight(camera, yaw)),
        view=_straight(camera, yaw),
        spec=spec,
        rng=rng,
        jitter=JUNK_JITTER if shot.kind is Kind.JUNK else JITTER,
    )
    light = scene_light(climate, camera)
    scene_HW3, floor_HW = backdrop(camera, view, spot, spec.height_px, spec.width_px)
    cast_shadow(scene_HW3, floor_HW, parts, view, light)
    person = draw_parts(parts, view, light, rng.uniform(0, 6, 4), spec.height_px, spec.width_px)
    if rng.random() < BYSTANDER_SHARE:
        scene_HW3 = _with_bystander(scene_HW3, climate, camera, view, light, rng)
    scene_HW3 = lay_over(scene_HW3, person)
    if rng.random() < OCCLUDER_SHARE:
        occlude(scene_HW3, camera, rng)
    return develop(scene_HW3, camera, shot.sequence, rng)


def _straight(camera: Camera, yaw: float) -> View:
    """The camera's view in metres, before the crop is known."""
    return View(
        yaw=yaw,
        pitch=camera.pitch,
        distance_m=camera.distance_m,
        px_per_m=1.0,
        foot_row=0.0,
        foot_column=0.0,
    )


def _framed(
    *,
    parts_extent: tuple[float, float, float, float],
    view: View,
    spec: SyntheticSpec,
    rng: np.random.Generator,
    jitter: float,
) -> View:
    """The view as a detector would cut it: the person fills the height, a little off."""
    left, right, bottom, top = parts_extent
    fill = 0.93 + float(rng.normal(0.0, jitter))
    px_per_m = fill * spec.height_px / (top - bottom)
    shift_x, shift_y = (float(s) * spec.height_px for s in rng.normal(0.0, 0.6 * jitter, 2))
    return replace(
        view,
        px_per_m=px_per_m,
        foot_row=0.5 * spec.height_px + 0.5 * (top + bottom) * px_per_m + shift_y,
        foot_column=0.5 * spec.width_px - 0.5 * (left + right) * px_per_m + shift_x,
    )


def _with_bystander(
    scene_HW3: Floats,
    climate: Climate,
    camera: Camera,
    view: View,
    light: Light,
    rng: np.random.Generator,
) -> Floats:
    """Somebody else who walks behind the person and is cut by the box."""
    other = draw_identity(rng, climate)
    height, width, _ = scene_HW3.shape
    farther = float(rng.uniform(0.8, 0.95))
    beside = float(rng.choice((-1.0, 1.0)) * rng.uniform(0.3, 0.65))
    moved = replace(
        view,
        yaw=view.yaw + float(rng.choice((0.0, np.pi)) + rng.normal(0.0, 0.3)),
        px_per_m=view.px_per_m * farther,
        foot_column=view.foot_column + beside * view.px_per_m,
        foot_row=view.foot_row - (1.0 - farther) * 6.0 * np.sin(camera.pitch) * view.px_per_m,
    )
    parts = body_parts(other, draw_pose(rng, float(rng.uniform(0.0, 2 * np.pi))))
    return lay_over(scene_HW3, draw_parts(parts, moved, light, rng.uniform(0, 6, 4), height, width))
