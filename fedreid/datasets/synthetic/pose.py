"""Where are a person's joints at one moment of a walk?

Metres, in the person's own frame: x to their left, y up from the ground, z forward. Letter: 3
space.
"""

from dataclasses import dataclass, replace

import numpy as np

from fedreid.datasets.synthetic.cloth import Floats
from fedreid.datasets.synthetic.identity import Identity

AVERAGE_HEIGHT_M = 1.75
ANKLE_M = 0.075  # above the sole, of an average person
STANDING_SHARE = 0.12
BENT_ELBOW = 1.0  # radians from which an arm counts as held, with a telephone say


@dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """A moment of a walk; angles in radians, positive forward. `phase` 0 to 2 pi."""

    phase: float
    swing: float  # share of the person's own stride
    lean: float
    elbow: float
    spread: float  # arms away from the trunk
    head_turn: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """Joints of a leg, and the direction in which its foot points."""

    hip_3: Floats
    knee_3: Floats
    ankle_3: Floats
    foot_3: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """Joints of an arm."""

    shoulder_3: Floats
    elbow_3: Floats
    wrist_3: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class Skeleton:
    """Joints and measures. `unit` is the height against an average one; left side first."""

    unit: float
    leg_m: float
    head_m: float
    hip_m: float  # height of the hip above the ground
    neck_m: float
    lean: float
    legs: tuple[Leg, Leg]
    arms: tuple[Arm, Arm]

    def spine(self, height: float, x: float = 0.0, z: float = 0.0) -> Floats:
        """A point of the leaning trunk."""
        return np.array((x, height, z + self.lean * (height - self.hip_m)))


def draw_pose(rng: np.random.Generator, phase: float) -> Pose:
    """A pose at a walking phase; some persons stand."""
    standing = rng.random() < STANDING_SHARE
    return Pose(
        phase=phase,
        swing=0.15 if standing else float(rng.uniform(0.75, 1.15)),
        lean=float(rng.normal(0.04, 0.03)),
        elbow=float(rng.choice((0.2, 0.35, 1.5), p=(0.5, 0.35, 0.15))),
        spread=float(rng.uniform(0.06, 0.2)),
        head_turn=float(rng.normal(0.0, 0.3)),
    )


def stand(who: Identity, pose: Pose) -> Skeleton:
    """The person's joints in the pose, with the lower ankle on the ground."""
    unit = who.height_m / AVERAGE_HEIGHT_M
    leg_m, head_m = who.leg_share * who.height_m, 0.137 * who.height_m * who.head
    hanging = [_leg(who, pose, side, leg_m) for side in (1.0, -1.0)]
    lowest = min(float(leg.ankle_3[1]) for leg in hanging)
    hip_m = ANKLE_M * unit - lowest
    neck_m = hip_m + 0.965 * who.height_m - leg_m - head_m
    shoulder_m = neck_m - 0.115 * unit
    chest_3 = np.array((0.0, shoulder_m, pose.lean * (shoulder_m - hip_m)))
    left, right = (_raised(leg, hip_m) for leg in hanging)
    return Skeleton(
        unit=unit,
        leg_m=leg_m,
        head_m=head_m,
        hip_m=hip_m,
        neck_m=neck_m,
        lean=pose.lean,
        legs=(left, right),
        arms=(_arm(who, pose, 1.0, chest_3), _arm(who, pose, -1.0, chest_3)),
    )


def _raised(leg: Leg, height: float) -> Leg:
    up_3 = np.array((0.0, height, 0.0))
    return replace(
        leg, hip_3=leg.hip_3 + up_3, knee_3=leg.knee_3 + up_3, ankle_3=leg.ankle_3 + up_3
    )


def _leg(who: Identity, pose: Pose, side: float, leg_m: float) -> Leg:
    """A leg that hangs from a hip at height 0."""
    swing = who.stride * pose.swing
    lifted = max(0.0, side * float(np.cos(pose.phase)))  # the leg that travels bends its knee
    thigh = swing * side * float(np.sin(pose.phase))
    shin = thigh - (0.08 + 1.5 * swing * lifted)
    half_m = 0.5 * leg_m - 0.02
    hip_3 = np.array((side * 0.09 * who.height_m / AVERAGE_HEIGHT_M, 0.0, 0.0))
    knee_3 = hip_3 + half_m * np.array((-0.02 * side, -np.cos(thigh), np.sin(thigh)))
    ankle_3 = knee_3 + half_m * np.array((-0.03 * side, -np.cos(shin), np.sin(shin)))
    foot_3 = np.array((0.12 * side, 0.4 * np.sin(shin), np.cos(shin)))
    return Leg(hip_3=hip_3, knee_3=knee_3, ankle_3=ankle_3, foot_3=foot_3)


def _arm(who: Identity, pose: Pose, side: float, chest_3: Floats) -> Arm:
    """An arm that swings against the leg of its side, or is held bent (the left one only)."""
    half_m = 0.165 * who.height_m
    wide_m = 0.1 * who.height_m * who.shoulders * who.girth**0.5
    swing = -0.75 * who.stride * pose.swing * side * float(np.sin(pose.phase))
    held = pose.elbow >= BENT_ELBOW
    reach = side * (pose.spread + 0.1 * (who.girth - 1.0))
    bend = swing + pose.elbow * (0.15 if held and side < 0 else 1.0)
    inward = -0.5 * side if held else reach
    shoulder_3 = chest_3 + np.array((side * wide_m, 0.0, 0.0))
    elbow_3 = shoulder_3 + half_m * np.array((reach, -np.cos(swing), np.sin(swing)))
    wrist_3 = elbow_3 + half_m * np.array((0.6 * inward, -np.cos(bend), np.sin(bend)))
    return Arm(shoulder_3=shoulder_3, elbow_3=elbow_3, wrist_3=wrist_3)
