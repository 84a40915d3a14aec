"""Which solid parts make a dressed person?

A body is a list of parts: tubes along a row of elliptic rings. Metres, in the person's own frame:
x to their left, y up from the ground, z forward. Letters: K control rings, 3 space.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from fedreid.datasets.synthetic.cloth import Cloth, Floats, Pattern, Strap
from fedreid.datasets.synthetic.identity import Bag, Hair, Identity
from fedreid.datasets.synthetic.pose import Arm, Leg, Pose, Skeleton, stand

Cover: TypeAlias = tuple[float, Cloth]  # down to this share of the part, this cloth
Ring: TypeAlias = tuple[float, float, float]  # height, half width, half depth

CAP = ((-0.99, 0.1), (-0.92, 0.4), (-0.7, 0.71), (-0.35, 0.94))  # half sphere: offset, radius
EYES = (0.05, 0.035, 0.03)
UP_3 = np.array((0.0, 1.0, 0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A tube, its rings from the top down.

    `front_3` is the direction of angle 0; `boxy` makes the cross-section squarer.
    """

    centre_K3: Floats
    side_K: Floats
    depth_K: Floats
    front_3: Floats
    covers: tuple[Cover, ...]
    boxy: bool = False


def body_parts(who: Identity, pose: Pose) -> list[Part]:
    """All parts of a dressed person, standing on y = 0."""
    bones = stand(who, pose)
    turn = pose.head_turn
    face_3 = np.array((np.sin(turn), 0.0, np.cos(turn)))
    return [
        *_trunk(who, bones),
        *_head(who, bones, face_3),
        *(part for arm in bones.arms for part in _arm_parts(who, bones.unit, arm)),
        *(part for leg in bones.legs for part in _leg_parts(who, bones.unit, leg)),
        *_bag_parts(who, bones),
    ]


def _limb(
    start_3: Floats,
    end_3: Floats,
    radii: tuple[float, float],
    covers: Sequence[Cover],
    *,
    front_3: Sequence[float] | Floats = (0.0, 0.0, 1.0),
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


def _column(bones: Skeleton, rings: Sequence[Ring], covers: Sequence[Cover]) -> Part:
    """An upright tube along the spine."""
    height_K, side_K, depth_K = np.array(rings).T
    return Part(
        centre_K3=np.stack([bones.spine(float(height)) for height in height_K]),
        side_K=side_K,
        depth_K=depth_K,
        front_3=np.array((0.0, 0.0, 1.0)),
        covers=tuple(covers),
    )


def _trunk(who: Identity, bones: Skeleton) -> list[Part]:
    """Torso, and over it what hangs below the waist: the layer's skirts, the skirt."""
    unit, neck, hip = bones.unit, bones.neck_m, bones.hip_m
    bulk, wide = unit * who.girth, unit * who.girth**0.5 * who.shoulders
    loose = 0.02 * unit if who.layer is not None else 0.0
    torso = [
        (neck, 0.055 * unit + loose, 0.055 * unit + loose),
        (neck - 0.03 * unit, 0.12 * wide, 0.07 * unit + loose),
        (neck - 0.06 * unit, 0.185 * wide, 0.09 * unit + loose),
        (neck - 0.1 * unit, 0.2 * wide, 0.1 * unit + loose),
        (neck - 0.2 * unit, 0.168 * wide + loose, 0.115 * bulk + loose),
        (hip + 0.2 * unit, 0.142 * bulk + loose, 0.108 * bulk + loose),
        (hip + 0.03 * unit, 0.168 * bulk * who.hips + loose, 0.122 * bulk + loose),
        (hip - 0.06 * unit, 0.13 * bulk * who.hips, 0.1 * bulk),
    ]
    waist, seat = torso[5:7]
    strap = {Bag.BACKPACK: Strap.BOTH, Bag.SHOULDER: Strap.CROSS}.get(who.bag, Strap.NONE)
    outer = who.top if who.layer is None else who.layer
    strapped = replace(outer, strap=strap, strap_colour=who.bag_cloth.colours[0])
    belt = (neck - hip - 0.02 * unit) / (neck - hip + 0.06 * unit)
    parts = [_column(bones, torso, [(belt, strapped), (1.0, who.bottom)])]
    if who.layer is not None:
        width = 0.175 * bulk * who.hips + loose
        parts.append(_hanging(who, bones, (waist, seat), who.layer_reach, width, outer))
    if who.skirt_reach > 0:
        width = (0.15 + 0.09 * who.skirt_reach) * bulk * who.hips
        parts.append(_hanging(who, bones, (waist, seat), who.skirt_reach, width, who.bottom))
    return parts


def _hanging(
    who: Identity,
    bones: Skeleton,
    trunk: tuple[Ring, Ring],
    reach: float,
    width: float,
    cloth: Cloth,
) -> Part:
    """What hangs from the waist to `reach` leg lengths below the hip, pushed out by the legs."""
    hem = bones.hip_m - reach * bones.leg_m
    depth = 0.12 * bones.unit * who.girth + 0.75 * max(_offset(leg, hem) for leg in bones.legs)
    # Wider than the torso: flush surfaces would show through each other.
    rings = [(height, side + 0.012, deep + 0.012) for height, side, deep in trunk]
    return _column(bones, [*rings, (hem, width, depth)], [(1.0, cloth)])


def _offset(leg: Leg, height: float) -> float:
    """How far before or behind the hip a leg is at this height."""
    above_knee = height > leg.knee_3[1]
    upper_3, lower_3 = (leg.hip_3, leg.knee_3) if above_knee else (leg.knee_3, leg.ankle_3)
    share = (upper_3[1] - height) / max(float(upper_3[1] - lower_3[1]), 1e-6)
    return abs(float(upper_3[2] + share * (lower_3[2] - upper_3[2])))


def _ball(
    at_3: Floats,
    radius: float,
    cloth: Cloth,
    front_3: Floats,
    *,
    tall: float = 1.0,
    flat: float = 1,
) -> Part:
    """A ball; `tall` and `flat` scale its height and depth against its width."""
    reach_3 = max(radius * (tall - 1.0), 1e-3) * UP_3
    covers = [(1.0, cloth)]
    radii = (radius, radius)
    return _limb(at_3 + reach_3, at_3 - reach_3, radii, covers, front_3=front_3, flat=flat)


def _head(who: Identity, bones: Skeleton, face_3: Floats) -> list[Part]:
    """Neck or scarf, head, hair, hat."""
    tall = bones.head_m
    centre_3 = bones.spine(bones.neck_m + 0.045 * bones.unit + 0.5 * tall)
    throat = (0.055 if who.scarf is None else 0.1) * bones.unit
    collar = Cloth.plain(who.skin if who.scarf is None else who.scarf)
    chin = who.hair if who.beard else who.skin
    face = Cloth(pattern=Pattern.FACE, colours=(who.skin, EYES, chin), pitch_m=tall)
    under_chin_3 = bones.spine(bones.neck_m + 0.06 * bones.unit)
    throat_3 = bones.spine(bones.neck_m - 0.01 * bones.unit)
    parts = [
        _limb(under_chin_3, throat_3, (throat, 1.1 * throat), [(1.0, collar)]),
        _ball(centre_3, 0.35 * tall, face, face_3, tall=1.43, flat=1.15),
        *_hair(who, tall, centre_3, face_3),
    ]
    if who.hat is not None:
        crown_3 = centre_3 + tall * (0.2 * UP_3 - 0.03 * face_3)
        parts.append(_ball(crown_3, 0.42 * tall, Cloth.plain(who.hat), face_3, flat=1.15))
    return parts


def _hair(who: Identity, tall: float, centre_3: Floats, face_3: Floats) -> list[Part]:
    """Hair about a head of this height; a bald head has none."""
    if who.hair_style is Hair.BALD:
        return []
    cloth = Cloth.plain(who.hair)
    crown_3 = centre_3 + tall * (0.09 * UP_3 - 0.1 * face_3)
    parts = [_ball(crown_3, 0.385 * tall, cloth, face_3, tall=1.2, flat=1.1)]
    if who.hair_style is Hair.LONG:
        top_3 = centre_3 - 0.17 * tall * face_3
        radii = (0.36 * tall, 0.4 * tall)
        covers = [(1.0, cloth)]
        lock = _limb(top_3, top_3 - 0.95 * tall * UP_3, radii, covers, front_3=face_3, flat=0.55)
        parts.append(lock)
    elif who.hair_style is Hair.BUN:
        bun_3 = centre_3 + tall * (0.45 * UP_3 - 0.3 * face_3)
        parts.append(_ball(bun_3, 0.19 * tall, cloth, face_3))
    elif who.hair_style is Hair.PONYTAIL:
        knot_3 = centre_3 + tall * (0.2 * UP_3 - 0.5 * face_3)
        tip_3 = knot_3 - tall * (UP_3 + 0.1 * face_3)
        parts.append(_limb(knot_3, tip_3, (0.15 * tall, 0.07 * tall), [(1.0, cloth)]))
    return parts


def _arm_parts(who: Identity, unit: float, arm: Arm) -> list[Part]:
    puffy = 1.25 if who.layer is not None and who.sleeve_share > 0.9 else 1.05
    upper, middle, lower = (r * unit * who.girth**0.6 * puffy for r in (0.056, 0.046, 0.036))
    skin, sleeve, share = Cloth.plain(who.skin), who.sleeve_cloth, 2.0 * who.sleeve_share
    forearm_3 = arm.wrist_3 - arm.elbow_3
    hand_3 = arm.wrist_3 + forearm_3 * (0.085 * unit / float(np.linalg.norm(forearm_3)))
    above, below = [(min(share, 1.0), sleeve), (1.0, skin)], [(share - 1.0, sleeve), (1.0, skin)]
    return [
        _limb(arm.shoulder_3, arm.elbow_3, (upper, middle), above),
        _limb(arm.elbow_3, arm.wrist_3, (middle, lower), below),
        _limb(arm.wrist_3, hand_3, (0.034 * unit, 0.036 * unit), [(1.0, skin)], flat=0.8),
    ]


def _leg_parts(who: Identity, unit: float, leg: Leg) -> list[Part]:
    loose = 1.0 if who.bottom_share < 0.2 else 1.13
    upper, middle, lower = (r * unit * who.girth**0.6 * loose for r in (0.088, 0.062, 0.045))
    skin, shoes, share = Cloth.plain(who.skin), Cloth.plain(who.shoes), 2.0 * who.bottom_share
    boot = 1.0 - who.boot_share
    below = [(min(share - 1.0, boot), who.bottom), (boot, skin), (1.0, shoes)]
    heel_3 = leg.ankle_3 - unit * (0.03 * UP_3 + 0.04 * leg.foot_3)
    toe_3 = heel_3 + 0.19 * unit * leg.foot_3
    sole = (0.047 * unit, 0.04 * unit)
    return [
        _limb(leg.hip_3, leg.knee_3, (upper, middle), [(min(share, 1.0), who.bottom), (1.0, skin)]),
        _limb(leg.knee_3, leg.ankle_3, (middle, lower), below),
        _limb(heel_3, toe_3, sole, [(1.0, shoes)], front_3=UP_3),
    ]


def _bag_parts(who: Identity, bones: Skeleton) -> list[Part]:
    """The bag itself; its straps are painted on the garment below."""
    unit, size = bones.unit, who.bag_size * bones.unit
    covers = [(1.0, who.bag_cloth)]
    sideways = (1.0, 0.0, 0.0)
    if who.bag is Bag.BACKPACK:
        away = -0.115 * unit * who.girth - 0.085 * size
        top_3 = bones.spine(bones.neck_m - 0.17 * unit, z=away)
        low_3 = bones.spine(bones.neck_m - 0.14 * unit - 0.3 * size, z=away)
        return [_limb(top_3, low_3, (0.125 * size, 0.15 * size), covers, flat=0.7, boxy=True)]
    if who.bag is Bag.SHOULDER:
        beside = -0.185 * unit * who.girth * who.hips - 0.05 * size
        top_3 = bones.spine(bones.hip_m + 0.1 * unit, beside)
        low_3, radii, flat = top_3 - 0.14 * size * UP_3, (0.13 * size, 0.14 * size), 0.45
    elif who.bag is Bag.HAND:
        top_3 = bones.arms[1].wrist_3 - 0.24 * unit * UP_3
        low_3, radii, flat = top_3 - 0.12 * size * UP_3, (0.11 * size, 0.15 * size), 0.4
    else:
        return []
    return [_limb(top_3, low_3, radii, covers, front_3=sideways, flat=flat, boxy=True)]
