"""What does a camera do to the light that reaches it?

Letters: H W pixels, 3 colour. Colours are linear light until `develop`.
"""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, ImageFilter

from fedreid.datasets.synthetic.climate import Climate
from fedreid.datasets.synthetic.cloth import Floats

SEQUENCES = 3  # times of day at which a camera recorded
LUMA_3 = np.array((0.30, 0.59, 0.11))
GROUND_SATURATION = 0.5  # vivid walls would tell cameras apart better than clothes tell people

# How far cameras stray. Chosen so that raw colour misleads across cameras while a net that has seen
# them can undo it; `tests/fedreid/datasets/test_synthetic.py` holds the effect in place.
MOST_WARMTH = 0.22  # of the log of red against blue
MOST_TINT = 0.08  # of the log of green against the others
MOST_EXPOSURE = 0.25  # of the log
MOST_HUE = 0.12  # radians about the grey axis
SATURATIONS = (0.6, 1.15)
SEQUENCE_SHARE = 0.85  # of warmth, tint and exposure, again for each time of day
IMAGE_EXPOSURE_SPREAD = 0.12


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """Colour response at one time of day: a 3x3 mixture, then gamma, contrast and lifted blacks."""

    mixture_33: Floats
    gamma: float
    contrast: float
    lift: float
    exposure_spread: float  # of single images, log


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """A mounted camera: what it looks at, from where, and how well. Angles in radians."""

    number: int
    pitch: float
    distance_m: float
    heading: float  # yaw of people who walk towards it
    sun_azimuth: float
    sun_height: float
    wall_m: float  # distance of the wall behind the path
    floor_tile_m: float
    floor_angle: float
    wall_cell_m: tuple[float, float]
    floor_3: Floats
    walls_C3: Floats
    texture_HW: Floats  # smooth periodic noise, mean 0
    responses: tuple[Response, ...]  # one per sequence
    sharpness: float  # share of the full resolution that it resolves
    noise: float
    quality: int


def draw_camera(
    rng: np.random.Generator, climate: Climate, number: int, *, colour_shift: bool
) -> Camera:
    """A camera of a place. Without the shift the draws are the same and the response neutral."""
    walls, floors = _paled(np.array(climate.wall)), _paled(np.array(climate.floor))
    responses = _draw_responses(rng)
    if not colour_shift:
        neutral = Response(
            mixture_33=np.eye(3), gamma=2.2, contrast=0.0, lift=0.0, exposure_spread=0.0
        )
        responses = (neutral,) * SEQUENCES
    return Camera(
        number=number,
        pitch=float(rng.uniform(0.08, 0.42)),
        distance_m=float(rng.uniform(5.0, 12.0)),
        heading=float(rng.uniform(-np.pi, np.pi)),
        sun_azimuth=float(rng.uniform(-np.pi, np.pi)),
        sun_height=float(rng.uniform(0.6, 1.2) if climate.outdoor else rng.uniform(1.1, 1.4)),
        wall_m=float(rng.uniform(1.2, 6.0)),
        floor_tile_m=float(rng.choice((0.0, 0.3, 0.45, 0.8, 1.6))),
        floor_angle=float(rng.uniform(0.0, 0.5 * np.pi)),
        wall_cell_m=(float(rng.uniform(0.35, 2.2)), float(rng.uniform(0.3, 2.4))),
        floor_3=floors[int(rng.integers(len(floors)))],
        walls_C3=walls[rng.permutation(len(walls))[:3]] * rng.uniform(0.7, 1.1, (3, 1)),
        texture_HW=_smooth_noise(rng),
        responses=responses,
        sharpness=float(rng.uniform(0.42, 1.0)),
        noise=float(rng.uniform(0.004, 0.022)),
        quality=int(rng.integers(55, 93)),
    )


def develop(linear_HW3: Floats, camera: Camera, sequence: int, rng: np.random.Generator) -> bytes:
    """JPEG bytes of the light that reaches the camera."""
    height, width, _ = linear_HW3.shape
    response = camera.responses[sequence]
    exposure = np.exp(response.exposure_spread * rng.normal())
    mixed_HW3 = np.maximum(linear_HW3 @ (exposure * response.mixture_33.T), 0.0)
    # A shoulder instead of a hard clip, as sensors' tone curves have.
    tone_HW3 = (1.0 - np.exp(-1.9 * mixed_HW3)) ** (1.0 / response.gamma)
    tone_HW3 += response.contrast * tone_HW3 * (1.0 - tone_HW3) * (2.0 * tone_HW3 - 1.0)
    tone_HW3 = response.lift + (1.0 - response.lift) * tone_HW3
    tone_HW3 += camera.noise * rng.standard_normal((height, width, 1), np.float32)
    tone_HW3 += 0.5 * camera.noise * rng.standard_normal((height, width, 3), np.float32)
    image = Image.fromarray((np.clip(tone_HW3, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8))
    sharpness = camera.sharpness * rng.uniform(0.8, 1.0)
    small = (max(int(width * sharpness), 8), max(int(height * sharpness), 16))
    image = image.resize(small, Image.Resampling.BOX).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    if rng.random() < 0.15:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.5, 1.1))))
    stream = BytesIO()
    image.save(stream, "JPEG", quality=camera.quality)
    return stream.getvalue()


def _paled(colours_C3: Floats) -> Floats:
    grey_C1 = (colours_C3 @ LUMA_3)[:, None]
    paled: Floats = GROUND_SATURATION * colours_C3 + (1.0 - GROUND_SATURATION) * grey_C1
    return paled


def _draw_responses(rng: np.random.Generator) -> tuple[Response, ...]:
    hue = _about_grey(MOST_HUE * float(rng.uniform(-1.0, 1.0)))
    saturation = float(rng.uniform(*SATURATIONS))
    grey = np.broadcast_to(LUMA_3, (3, 3))
    cast_3 = rng.uniform(-1.0, 1.0, 3)
    gamma, contrast = float(rng.uniform(1.9, 2.5)), float(rng.uniform(-0.1, 0.6))
    lift = float(rng.uniform(0.0, 0.06))
    responses = []
    for _ in range(SEQUENCES):
        gains_3 = _gains(cast_3 + SEQUENCE_SHARE * rng.uniform(-1.0, 1.0, 3))
        colour = grey + saturation * (np.eye(3) - grey)
        responses.append(
            Response(
                mixture_33=(hue @ colour) * gains_3,
                gamma=gamma,
                contrast=contrast,
                lift=lift,
                exposure_spread=IMAGE_EXPOSURE_SPREAD,
            )
        )
    return tuple(responses)


def _gains(cast_3: Floats) -> Floats:
    """Gains of the channels from warmth, tint and exposure, each -1 to 1 and more.

    Light varies far more from warm to cold than from green to magenta.
    """
    warmth, tint = MOST_WARMTH * cast_3[0], MOST_TINT * cast_3[1]
    logs_3 = np.array((warmth - 0.5 * tint, tint, -warmth - 0.5 * tint))
    gains_3: Floats = np.exp(logs_3 + MOST_EXPOSURE * cast_3[2])
    return gains_3


def _about_grey(angle: float) -> Floats:
    """Rotation of colours about the grey axis (Rodrigues)."""
    axis_33 = np.array(((0.0, -1.0, 1.0), (1.0, 0.0, -1.0), (-1.0, 1.0, 0.0))) / np.sqrt(3.0)
    rotation: Floats = (
        np.cos(angle) * np.eye(3) + np.sin(angle) * axis_33 + (1.0 - np.cos(angle)) / 3.0
    )
    return rotation


def _smooth_noise(rng: np.random.Generator) -> Floats:
    """Periodic noise of three octaves, 128 x 128, mean 0, spread about 1."""
    total_HW = np.zeros((128, 128), np.float32)
    for size, weight in ((8, 0.6), (32, 0.5), (128, 0.6)):
        cells = rng.standard_normal((size, size), np.float32)
        padded = np.pad(cells, ((0, 1), (0, 1)), mode="wrap")
        at = np.arange(128) * (size / 128)
        low, part = at.astype(np.intp), (at % 1.0).astype(np.float32)
        rows = padded[low] * (1 - part)[:, None] + padded[low + 1] * part[:, None]
        total_HW += weight * (rows[:, low] * (1 - part) + rows[:, low + 1] * part)
    return total_HW
