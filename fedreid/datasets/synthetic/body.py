"""Where are a person's limbs, clothes and bag in space?

A body is a list of parts: tubes along a row of elliptic rings. Metres, in the person's own frame:
x to their left, y up from the ground, z forward. Letters: K control rings, 3 space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedreid.datasets.synthetic.cloth import Cloth, Floats, Pattern, Strap
from fedreid.datasets.synthetic.identity import Bag, Hair, Identity

Cover = tuple[float, Cloth]  # down to this share of the part, this cloth
AVERAGE_HEIGHT_M = 1.75
EYES = (0.02, 0.015, 0.012)
CAP = (
    (-0.99, 0.1),
    (-0.92, 0.4),
    (-0.7, 0.71),
    (-0.35, 0.94),
)  # rings of a half sphere: offset, radius


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A tube. Rings run from its top; `front_3` is the direction of angle 0. `boxy` makes
    the cross-section squarer."""

    centre_K3: Floats
    side_K: Floats
    depth_K: Floats
    front_3: Floats
    covers: tuple[Cover, ...]
    boxy: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """A moment of a walk; angles in radians, positive forward. `phase` 0 to 2 pi."""

    phase: float
    swing: float  # share of the person's own stride, 0 when standing
    lean: float
    elbow: float
    spread: float  # arms away from the trunk
    head_turn: float


def draw_pose(rng: np.random.Generator, phase: float) -> Pose:
    """A pose at a walking phase; one person in eight stands."""
    standing = rng.random() < 0.12
    return Pose(
        phase=phase,
        swing=0.15 if standing else float(rng.uniform(0.75, 1.15)),
        lean=float(rng.normal(0.04, 0.03)),
        elbow=float(rng.choice((0.2, 0.35, 1.5), p=(0.5, 0.35, 0.15))),
        spread=float(rng.uniform(0.06, 0.2)),
        head_turn=float(rng.normal(0.0, 0.3)),
    )


class _Frame:
    """Joint positions shared by the builders of parts."""

    def __init__(self, who: Identity, pose: Pose) -> None:
        self.unit = who.height_m / AVERAGE_HEIGHT_M
        self.bulk = self.unit * who.girth
        self.limb = self.unit * who.girth**0.6
        self.leg = who.leg_share * who.height_m
        self.head = 0.137 * who.height_m * who.head
        self.lean = pose.lean
        swing = who.stride * pose.swing
        self.legs = [self._leg(side, swing, pose.phase) for side in (1.0, -1.0)]
        # The lower ankle stands on the ground, the pelvis follows.
        drop = min(float(leg[2][1]) for leg in self.legs) - 0.075 * self.unit
        for leg in self.legs:
            for joint in leg[:3]:
                joint[1] -= drop
        self.hip = self.leg - drop
        self.neck = self.hip + who.height_m - self.leg - self.head - 0.035 * who.height_m
        self.arms = [self._arm(who, pose, side, swing) for side in (1.0, -1.0)]

    def spine(self, height: float, x: float = 0.0, z: float = 0.0) -> Floats:
        """A point of the leaning trunk."""
        return np.array((x, height, z + self.lean * (height - self.hip)))

    def _leg(self, side: float, swing: float, phase: float) -> list[Floats]:
        forward = side * np.sin(phase)
        lifted = max(0.0, side * np.cos(phase))  # the leg that travels forward bends its knee
        thigh = swing * forward
        shin = thigh - (0.08 + 1.5 * swing * lifted)
        half = 0.5 * self.leg - 0.02 * self.unit
        hip = np.array((side * 0.09 * self.unit, self.leg, 0.0))
        knee = hip + half * np.array((-0.02 * side, -np.cos(thigh), np.sin(thigh)))
        ankle = knee + half * np.array((-0.03 * side, -np.cos(shin), np.sin(shin)))
        return [hip, knee, ankle, np.array((0.12 * side, 0.4 * np.sin(shin), np.cos(shin)))]

    def _arm(self, who: Identity, pose: Pose, side: float, swing: float) -> list[Floats]:
        angle = -0.75 * swing * side * np.sin(pose.phase)
        length = 0.165 * who.height_m
        reach = side * (pose.spread + 0.1 * (who.girth - 1.0))
        shoulder = self.spine(
            self.neck - 0.115 * self.unit, side * 0.175 * self.unit * who.shoulders * who.girth**0.5
        )
        elbow = shoulder + length * np.array((reach, -np.cos(angle), np.sin(angle)))
        bend = angle + pose.elbow * (1.0 if pose.elbow < 1.0 or side > 0 else 0.15)
        inward = reach if pose.elbow < 1.0 else -0.5 * side
        wrist = elbow + length * np.array((0.6 * inward, -np.cos(bend), np.sin(bend)))
        return [shoulder, elbow, wrist]


def body_parts(who: Identity, pose: Pose) -> list[Part]:
    """All parts of a dressed person, standing on y = 0."""
    frame = _Frame(who, pose)
    return [
        *_trunk(who, frame),
        *_head(who, frame, pose),
        *(part for arm in frame.arms for part in _arm_parts(who, frame, arm)),
        *(part for leg in frame.legs for part in _leg_parts(who, frame, leg)),
        *_bag_parts(who, frame),
    ]


def _limb(
    start_3: Floats,
    end_3: Floats,
    radii: tuple[float, float],
    covers: Sequence[Cover],
    *,
    front_3: Sequence[float] = (0.0, 0.0, 1.0),
    flat: float = 1.0,
    boxy: bool = False,
) -> Part:
    """A tapered limb with round ends; `flat` scales its depth against its width."""
    length = max(float(np.linalg.norm(end_3 - start_3)), 1e-6)
    first, last = radii
    rings = [(first * offset, first * size) for offset, size in CAP]
    rings += [(0.0, first), (0.5 * length, 0.52 * first + 0.5 * last), (length, last)]
    rings += [(length - last * offset, last * size) for offset, size in reversed(CAP)]
    at_K, radius_K = np.array(rings).T
    return Part(
        centre_K3=start_3 + at_K[:, None] * ((end_3 - start_3) / length),
        side_K=radius_K,
        depth_K=radius_K * flat,
        front_3=np.asarray(front_3, np.float64),
        covers=tuple(covers),
        boxy=boxy,
    )


def _column(
    frame: _Frame, rings: Sequence[tuple[float, float, float]], covers: Sequence[Cover]
) -> Part:
    """An upright tube along the spine from rings of (height, half width, half depth)."""
    height_K, side_K, depth_K = np.array(rings).T
    return Part(
        centre_K3=np.stack([frame.spine(float(height)) for height in height_K]),
        side_K=side_K,
        depth_K=depth_K,
        front_3=np.array((0.0, 0.0, 1.0)),
        covers=tuple(covers),
    )


def _trunk(who: Identity, frame: _Frame) -> list[Part]:
    """Torso, and over it the layer and the skirt."""
    unit, bulk, neck, hip = frame.unit, frame.bulk, frame.neck, frame.hip
    wide = unit * who.girth**0.5 * who.shoulders
    loose = 0.02 * unit if who.layer is not None else 0.0
    shoulders = [
        (neck, 0.055 * unit + loose, 0.055 * unit + loose),
        (neck - 0.03 * unit, 0.12 * wide, 0.07 * unit + loose),
        (neck - 0.06 * unit, 0.185 * wide, 0.09 * unit + loose),
        (neck - 0.1 * unit, 0.2 * wide, 0.1 * unit + loose),
        (neck - 0.2 * unit, 0.168 * wide + loose, 0.115 * bulk + loose),
    ]
    waist = (hip + 0.2 * unit, 0.142 * bulk + loose, 0.108 * bulk + loose)
    seat = (hip + 0.03 * unit, 0.168 * bulk * who.hips + loose, 0.122 * bulk + loose)
    crotch = (hip - 0.06 * unit, 0.13 * bulk * who.hips, 0.1 * bulk)
    strap = {Bag.BACKPACK: Strap.BOTH, Bag.SHOULDER: Strap.CROSS}.get(who.bag, Strap.NONE)
    outer = who.top if who.layer is None else who.layer
    outer = replace(outer, strap=strap, strap_colour=who.bag_cloth.colours[0])
    torso = [*shoulders, waist, seat, crotch]
    belt = (neck - hip - 0.02 * unit) / (neck - crotch[0])
    parts = [_column(frame, torso, [(belt, outer), (1.0, who.bottom)])]
    if who.layer is not None:
        hem = hip - who.layer_reach * frame.leg
        depth = 0.12 * bulk + _hem_depth(frame, hem)
        skirt = [_wider(waist), _wider(seat), (hem, 0.175 * bulk * who.hips + loose, depth)]
        parts.append(_column(frame, skirt, [(1.0, replace(outer, strap=Strap.NONE))]))
    if who.skirt_reach > 0:
        hem = hip - who.skirt_reach * frame.leg
        flare = (0.15 + 0.09 * who.skirt_reach) * bulk * who.hips
        rings = [_wider(waist), _wider(seat), (hem, flare, 0.12 * bulk + _hem_depth(frame, hem))]
        parts.append(_column(frame, rings, [(1.0, who.bottom)]))
    return parts


def _wider(ring: tuple[float, float, float]) -> tuple[float, float, float]:
    """The ring of a garment that hangs over another; flush surfaces would show through."""
    height, side, depth = ring
    return height, side + 0.012, depth + 0.012


def _hem_depth(frame: _Frame, height: float) -> float:
    """How far striding legs push a hem at this height."""
    offsets = []
    for hip, knee, ankle, _ in frame.legs:
        upper, lower = (hip, knee) if height > knee[1] else (knee, ankle)
        share = (upper[1] - height) / max(upper[1] - lower[1], 1e-6)
        offsets.append(abs(upper[2] + share * (lower[2] - upper[2])))
    return 0.75 * max(offsets)


def _head(who: Identity, frame: _Frame, pose: Pose) -> list[Part]:
    """Neck or scarf, head, hair, hat."""
    tall = frame.head
    skin, hair = Cloth.plain(who.skin), Cloth.plain(who.hair)
    chin = who.hair if who.beard else who.skin
    face = Cloth(pattern=Pattern.FACE, colours=(who.skin, EYES, chin), pitch_m=tall)
    centre = frame.spine(frame.neck + 0.045 * frame.unit + 0.5 * tall)
    front = (float(np.sin(pose.head_turn)), 0.0, float(np.cos(pose.head_turn)))
    back = -np.array(front)
    up = np.array((0.0, 1.0, 0.0))

    def ball(at_3: Floats, radius: float, high: float, cloth: Cloth, flat: float = 1.0) -> Part:
        reach = max(high - radius, 1e-3) * up
        covers = [(1.0, cloth)]
        return _limb(at_3 + reach, at_3 - reach, (radius, radius), covers, front_3=front, flat=flat)

    throat = 0.055 if who.scarf is None else 0.1
    collar = skin if who.scarf is None else Cloth.plain(who.scarf)
    parts = [
        _limb(
            frame.spine(frame.neck + 0.06 * frame.unit),
            frame.spine(frame.neck - 0.01 * frame.unit),
            (throat * frame.unit, 1.1 * throat * frame.unit),
            [(1.0, collar)],
        ),
        ball(centre, 0.35 * tall, 0.5 * tall, face, 1.15),
    ]
    if who.hair_style is not Hair.BALD:
        crown = centre + 0.09 * tall * up + 0.1 * tall * back
        parts.append(ball(crown, 0.385 * tall, 0.46 * tall, hair, 1.1))
    if who.hair_style is Hair.LONG:
        lock = centre + 0.17 * tall * back
        parts.append(
            _limb(
                lock,
                lock - 0.95 * tall * up,
                (0.36 * tall, 0.4 * tall),
                [(1.0, hair)],
                front_3=front,
                flat=0.55,
            )
        )
    elif who.hair_style is Hair.BUN:
        parts.append(ball(centre + 0.45 * tall * (up + 0.7 * back), 0.19 * tall, 0.19 * tall, hair))
    elif who.hair_style is Hair.PONYTAIL:
        knot = centre + 0.2 * tall * up + 0.5 * tall * back
        tip = knot - 1.0 * tall * up + 0.1 * tall * back
        parts.append(_limb(knot, tip, (0.15 * tall, 0.07 * tall), [(1.0, hair)]))
    if who.hat is not None:
        top = centre + 0.2 * tall * up + 0.03 * tall * back
        parts.append(ball(top, 0.42 * tall, 0.42 * tall, Cloth.plain(who.hat), 1.15))
    return parts


def _arm_parts(who: Identity, frame: _Frame, arm: list[Floats]) -> list[Part]:
    shoulder, elbow, wrist = arm
    puffy = 1.25 if who.layer is not None and who.sleeve_share > 0.9 else 1.05
    thick = tuple(radius * frame.limb * puffy for radius in (0.056, 0.046, 0.036))
    skin = Cloth.plain(who.skin)
    share = 2.0 * who.sleeve_share
    hand = wrist + 0.085 * frame.unit * (wrist - elbow) / np.linalg.norm(wrist - elbow)
    return [
        _limb(shoulder, elbow, thick[:2], [(min(share, 1.0), who.sleeve_cloth), (1.0, skin)]),
        _limb(elbow, wrist, thick[1:], [(max(share - 1.0, 0.0), who.sleeve_cloth), (1.0, skin)]),
        _limb(wrist, hand, (0.034 * frame.unit, 0.036 * frame.unit), [(1.0, skin)], flat=0.8),
    ]


def _leg_parts(who: Identity, frame: _Frame, leg: list[Floats]) -> list[Part]:
    hip, knee, ankle, foot = leg
    loose = 1.0 if who.bottom_share < 0.2 else 1.13
    thick = tuple(radius * frame.limb * loose for radius in (0.088, 0.062, 0.045))
    skin, shoes = Cloth.plain(who.skin), Cloth.plain(who.shoes)
    share = 2.0 * who.bottom_share
    shin: list[Cover] = [(max(share - 1.0, 0.0), who.bottom), (1.0, skin)]
    if who.boot_share > 0:
        shin = [(min(cover[0], 1.0 - who.boot_share), cover[1]) for cover in shin] + [(1.0, shoes)]
    heel = ankle + frame.unit * (np.array((0.0, -0.03, 0.0)) - 0.04 * foot)
    toe = heel + 0.19 * frame.unit * foot
    return [
        _limb(hip, knee, thick[:2], [(min(share, 1.0), who.bottom), (1.0, skin)]),
        _limb(knee, ankle, thick[1:], shin),
        _limb(
            heel,
            toe,
            (0.047 * frame.unit, 0.04 * frame.unit),
            [(1.0, shoes)],
            front_3=(0.0, 1.0, 0.0),
        ),
    ]


def _bag_parts(who: Identity, frame: _Frame) -> list[Part]:
    """The bag itself; its straps are painted on the garment below."""
    size = who.bag_size * frame.unit
    covers = [(1.0, who.bag_cloth)]
    if who.bag is Bag.BACKPACK:
        away = -0.115 * frame.bulk - 0.085 * size
        top = frame.spine(frame.neck - 0.17 * frame.unit, z=away)
        bottom = frame.spine(frame.neck - 0.14 * frame.unit - 0.3 * size, z=away)
        return [_limb(top, bottom, (0.125 * size, 0.15 * size), covers, flat=0.7, boxy=True)]
    if who.bag is Bag.SHOULDER:
        beside = -0.185 * frame.bulk * who.hips - 0.05 * size
        top = frame.spine(frame.hip + 0.1 * frame.unit, beside)
        bottom = frame.spine(frame.hip + 0.1 * frame.unit - 0.14 * size, beside)
        return [
            _limb(
                top,
                bottom,
                (0.13 * size, 0.14 * size),
                covers,
                front_3=(1.0, 0.0, 0.0),
                flat=0.45,
                boxy=True,
            )
        ]
    if who.bag is Bag.HAND:
        wrist = frame.arms[1][2]
        top = wrist - np.array((0.0, 0.24 * frame.unit, 0.0))
        bottom = top - np.array((0.0, 0.12 * size, 0.0))
        return [
            _limb(
                top,
                bottom,
                (0.11 * size, 0.15 * size),
                covers,
                front_3=(1.0, 0.0, 0.0),
                flat=0.4,
                boxy=True,
            )
        ]
    return []
