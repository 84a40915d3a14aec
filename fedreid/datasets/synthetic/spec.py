"""What synthetic data is asked for, and what was made?"""

from dataclasses import dataclass
from pathlib import Path

from fedreid.errors import UsageError

MAX_PERSONS = 9_999  # the Market-1501 name has four digits for the person
MAX_IMAGES_PER_CAMERA = 50  # keeps passes of one camera apart in the frame number


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticSpec:
    """A federation of procedural camera operators.

    Silo k has `unit_identities * ratio[k]` training identities (the ratio is cycled where there are
    more silos than entries) and `test_identities` others for query and gallery. Each identity is
    seen by `cameras_per_identity` of its silo's cameras (all, where the silo has fewer), in one
    pass of `images_per_identity_and_camera` images each; the first image of a test pass is a query,
    the others are gallery.

    Args:
        silos: number of silos, at least 1.
        ratio: unbalanced sizes, largest first by habit; every entry at least 1.
        unit_identities: training identities per unit of the ratio.
        test_identities: query and gallery identities of every silo.
        cameras_per_identity: at least 2, for queries are cross-camera.
        images_per_identity_and_camera: at least 2, so that query and gallery both get one.
        distractors: gallery images of persons nobody looks for (pid 0000), per silo.
        junk: badly cut gallery images (pid -1), per silo.
        public_images: unlabelled images of further persons for distillation.
        height_px, width_px: size of every image.
        seed: 0 or more; the same spec gives the same bytes.
        colour_shift: whether cameras differ in colour response and exposure. Off only to measure
            what the shift costs.

    Raises:
        UsageError: a value is outside its range.
    """

    silos: int = 4
    ratio: tuple[int, ...] = (12, 6, 3, 1)
    unit_identities: int = 15
    test_identities: int = 48
    cameras_per_identity: int = 3
    images_per_identity_and_camera: int = 2
    distractors: int = 40
    junk: int = 8
    public_images: int = 400
    height_px: int = 128
    width_px: int = 64
    seed: int = 0
    colour_shift: bool = True

    def __post_init__(self) -> None:
        at_least = {
            "silos": 1,
            "unit_identities": 1,
            "test_identities": 1,
            "cameras_per_identity": 2,
            "images_per_identity_and_camera": 2,
            "distractors": 0,
            "junk": 0,
            "public_images": 0,
            "height_px": 32,
            "width_px": 16,
            "seed": 0,
        }
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not self.ratio or min(self.ratio) < 1:
            raise UsageError(f"ratio is {self.ratio}; it needs entries of 1 or more")
        if self.images_per_identity_and_camera > MAX_IMAGES_PER_CAMERA:
            raise UsageError(
                f"images_per_identity_and_camera is {self.images_per_identity_and_camera}; "
                f"it must be at most {MAX_IMAGES_PER_CAMERA}"
            )
        most = max(self.train_identities(silo) for silo in range(self.silos))
        if most + self.test_identities > MAX_PERSONS:
            raise UsageError(
                f"a silo would have {most + self.test_identities} identities; "
                f"a Market-1501 name holds {MAX_PERSONS}: lower unit_identities or the ratio"
            )

    def train_identities(self, silo: int) -> int:
        """Number of training identities of a silo (0-based)."""
        return self.unit_identities * self.ratio[silo % len(self.ratio)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiloCounts:
    """What one rendered silo holds; all but identities and cameras count images."""

    name: str
    cameras: int
    train_identities: int
    test_identities: int
    train: int
    query: int
    gallery: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticSummary:
    """What `render` made, and how fast. `images` counts silos and public images together."""

    out: Path
    silos: tuple[SiloCounts, ...]
    public_images: int
    images: int
    seconds: float
