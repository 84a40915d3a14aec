"""What is the place of a silo like: its people's clothes, its cameras, its light?

Four places that differ as the paper's datasets do. Palettes are short on purpose: many identities
of a silo share their colours, so that colour alone does not tell them apart.
"""

from dataclasses import dataclass
from typing import TypeAlias

Rgb: TypeAlias = tuple[float, float, float]  # linear light, 0 to 1


def linear(srgb: str) -> Rgb:
    """Linear light of a colour written as six hexadecimal digits."""
    red, green, blue = ((int(srgb[i : i + 2], 16) / 255) ** 2.2 for i in (0, 2, 4))
    return red, green, blue


def _colours(srgb: str) -> tuple[Rgb, ...]:
    return tuple(linear(one) for one in srgb.split())


SKINS = _colours("f0cdb4 e2b394 c99371 a8734f 7d5236 543627")
HAIRS = _colours("17130f 2b1d14 4a3020 7a5530 b08a50 8d8a86 c9c4bb 6d2f1a")
SHOES = _colours("141414 f0f0ee 4a3222 8a8a88 7d1f1f 1f2c55")


@dataclass(frozen=True, slots=True, kw_only=True)
class Climate:
    """A place. Shares are probabilities; weights need not sum to one."""

    name: str
    cameras: int
    tops: tuple[Rgb, ...]
    bottoms: tuple[Rgb, ...]
    layers: tuple[Rgb, ...]
    layer_share: float  # coats, jackets, vests over the top
    long_layer_share: float  # of those, how many reach the knee
    bare_share: float  # short sleeves, shorts and bare legs
    skirt_share: float
    plain_share: float  # garments without a pattern
    hat_share: float
    scarf_share: float
    backpack: float
    shoulder_bag: float
    handbag: float
    no_bag: float
    vest_share: float  # of the layers, how many are reflective vests
    outdoor: bool
    light: Rgb  # colour of the place's light, white balance left to the camera
    floor: tuple[Rgb, ...]
    wall: tuple[Rgb, ...]


CLIMATES: tuple[Climate, ...] = (
    Climate(
        name="station",
        cameras=6,
        tops=_colours("20242c e4e2dc 7c2430 2f4a6d 5d6166 3d5a45"),
        bottoms=_colours("17191e 2a3348 55524e 3b2f28"),
        layers=_colours("1b1c20 3a3f48 6a5a45 2a3a5c 7a2f2f b49a74"),
        layer_share=0.62,
        long_layer_share=0.55,
        bare_share=0.05,
        skirt_share=0.15,
        plain_share=0.45,
        hat_share=0.25,
        scarf_share=0.3,
        backpack=0.3,
        shoulder_bag=0.25,
        handbag=0.2,
        no_bag=0.25,
        vest_share=0.05,
        outdoor=False,
        light=(0.93, 1.0, 1.08),
        floor=_colours("8d8f92 77736d a5a49d"),
        wall=_colours("b9bcc0 8f9aa3 6f7a80 c9c4b8"),
    ),
    Climate(
        name="mall",
        cameras=5,
        tops=_colours("ece6dc c23a4e 2b2b33 e0b14a 5a8a9c d99ab0 6b4f8a"),
        bottoms=_colours("22252e 3d5a8c b8ab94 6b6f75 e6e2da"),
        layers=_colours("d8cbb2 2c2f38 8a4a3a 54705c"),
        layer_share=0.28,
        long_layer_share=0.25,
        bare_share=0.4,
        skirt_share=0.32,
        plain_share=0.35,
        hat_share=0.08,
        scarf_share=0.1,
        backpack=0.12,
        shoulder_bag=0.33,
        handbag=0.35,
        no_bag=0.2,
        vest_share=0.0,
        outdoor=False,
        light=(1.1, 1.0, 0.84),
        floor=_colours("cfc3ae b39a7c d8d4cc"),
        wall=_colours("e0d6c4 b88f6a 9a5f5a d9d9d4"),
    ),
    Climate(
        name="campus",
        cameras=4,
        tops=_colours("f0f0ee 3a6fb0 c8412f 3f8a4f 2a2c33 f0c23a 8fb7d9"),
        bottoms=_colours("3a5280 b9a680 2a2d34 7d858c"),
        layers=_colours("6d7a8c 7c2430 2f4a3a"),
        layer_share=0.12,
        long_layer_share=0.0,
        bare_share=0.75,
        skirt_share=0.18,
        plain_share=0.3,
        hat_share=0.22,
        scarf_share=0.0,
        backpack=0.55,
        shoulder_bag=0.15,
        handbag=0.05,
        no_bag=0.25,
        vest_share=0.0,
        outdoor=True,
        light=(1.06, 1.0, 0.92),
        floor=_colours("9a968c 6f8a4f a89c86"),
        wall=_colours("8a5a44 5d7a4a b8b2a4 7fa0c0"),
    ),
    Climate(
        name="depot",
        cameras=3,
        tops=_colours("2f4a6d 5a5f57 26282c c9c7c0 8a3a2a 4f7a5a d0a030 7fa0c0"),
        bottoms=_colours("26304a 3d4038 9a8f78 1c1c1f 5a6f8f"),
        layers=_colours("d8e020 f07a20 2f4a6d 40453c b0342c"),
        layer_share=0.4,
        long_layer_share=0.1,
        bare_share=0.15,
        skirt_share=0.02,
        plain_share=0.25,
        hat_share=0.5,
        scarf_share=0.05,
        backpack=0.3,
        shoulder_bag=0.15,
        handbag=0.1,
        no_bag=0.35,
        vest_share=0.2,
        outdoor=True,
        light=(1.1, 1.0, 0.84),
        floor=_colours("75767a 8b867c 6a6f75"),
        wall=_colours("9faab0 b08a70 7f95aa a5a59f"),
    ),
)


def silo_name(silo: int) -> str:
    """Name of a silo (0-based): the place, numbered from its second use on."""
    lap, place = divmod(silo, len(CLIMATES))
    return CLIMATES[place].name + (f"-{lap + 1}" if lap else "")


def silo_climate(silo: int) -> Climate:
    """Climate of a silo (0-based)."""
    return CLIMATES[silo % len(CLIMATES)]
