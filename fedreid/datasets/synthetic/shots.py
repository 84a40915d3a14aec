"""Which images make up the federation, and under which names?"""

from dataclasses import dataclass
from enum import StrEnum

from fedreid.datasets.synthetic.camera import SEQUENCES
from fedreid.datasets.synthetic.climate import CLIMATES, silo_climate, silo_name
from fedreid.datasets.synthetic.draws import generator
from fedreid.datasets.synthetic.spec import SyntheticSpec

TRAIN, QUERY, GALLERY = "bounding_box_train", "query", "bounding_box_test"
PUBLIC = "public"
FRAMES_BETWEEN_IMAGES = 25
LATEST_START = 90_000


class Kind(StrEnum):
    """Whose image it is."""

    PERSON = "person"
    DISTRACTOR = "distractor"
    JUNK = "junk"
    PUBLIC = "public"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """One image to draw.

    `place` names the cameras' home, `climate` its row in CLIMATES; `person` is unique within place
    and kind; `index` counts the images of one pass.
    """

    path: str
    place: str
    climate: int
    kind: Kind
    person: int
    camera: int
    sequence: int
    index: int


def plan_shots(spec: SyntheticSpec) -> list[Shot]:
    """Every image of the spec, silo by silo, then the public ones."""
    shots = [shot for silo in range(spec.silos) for shot in _silo_shots(spec, silo)]
    return shots + [_public_shot(spec, number) for number in range(spec.public_images)]


def _silo_shots(spec: SyntheticSpec, silo: int) -> list[Shot]:
    train = spec.train_identities(silo)
    shots = []
    for person in range(1, train + spec.test_identities + 1):
        shots += _identity_shots(spec, silo, person, test=person > train)
    for number in range(spec.distractors):
        shots.append(_loose_shot(spec, silo, Kind.DISTRACTOR, number))
    for number in range(spec.junk):
        shots.append(_loose_shot(spec, silo, Kind.JUNK, number))
    return shots


def _identity_shots(spec: SyntheticSpec, silo: int, person: int, *, test: bool) -> list[Shot]:
    place = silo_name(silo)
    rng = generator(spec.seed, "itinerary", place, person)
    cameras = silo_climate(silo).cameras
    visited = sorted(int(c) + 1 for c in rng.permutation(cameras)[: spec.cameras_per_identity])
    shots = []
    for camera in visited:
        sequence, start = int(rng.integers(SEQUENCES)), int(rng.integers(1, LATEST_START))
        for index in range(spec.images_per_identity_and_camera):
            folder = (QUERY if index == 0 else GALLERY) if test else TRAIN
            frame = start + FRAMES_BETWEEN_IMAGES * index
            name = f"{person:04d}_c{camera}s{sequence + 1}_{frame:06d}_01.jpg"
            shots.append(
                Shot(
                    path=f"{place}/{folder}/{name}",
                    place=place,
                    climate=silo % len(CLIMATES),
                    kind=Kind.PERSON,
                    person=person,
                    camera=camera,
                    sequence=sequence,
                    index=index,
                )
            )
    return shots


def _loose_shot(spec: SyntheticSpec, silo: int, kind: Kind, number: int) -> Shot:
    """A gallery image of nobody: each one shows another person."""
    place = silo_name(silo)
    rng = generator(spec.seed, "itinerary", place, kind, number)
    camera = int(rng.integers(silo_climate(silo).cameras)) + 1
    sequence = int(rng.integers(SEQUENCES))
    label = "0000" if kind is Kind.DISTRACTOR else "-1"
    frame = 1 + FRAMES_BETWEEN_IMAGES * number
    return Shot(
        path=f"{place}/{GALLERY}/{label}_c{camera}s{sequence + 1}_{frame:06d}_01.jpg",
        place=place,
        climate=silo % len(CLIMATES),
        kind=kind,
        person=number,
        camera=camera,
        sequence=sequence,
        index=0,
    )


def _public_shot(spec: SyntheticSpec, number: int) -> Shot:
    """An image from places that are no silo, of somebody no silo knows."""
    rng = generator(spec.seed, "itinerary", PUBLIC, number)
    climate = int(rng.integers(len(CLIMATES)))
    return Shot(
        path=f"{PUBLIC}/{number + 1:06d}.jpg",
        place=f"{PUBLIC} {CLIMATES[climate].name}",
        climate=climate,
        kind=Kind.PUBLIC,
        person=number,
        camera=int(rng.integers(CLIMATES[climate].cameras)) + 1,
        sequence=int(rng.integers(SEQUENCES)),
        index=0,
    )
