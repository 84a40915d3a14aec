"""What does one person look like, in every camera and on every day?"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from fedreid.datasets.synthetic.climate import HAIRS, SHOES, SKINS, Climate, Rgb
from fedreid.datasets.synthetic.cloth import Cloth, Pattern

TOP_PATTERNS = (
    Pattern.HOOPS,
    Pattern.BARS,
    Pattern.CHECKS,
    Pattern.DOTS,
    Pattern.BLOCK,
    Pattern.CHEST_BAND,
    Pattern.FRONT_PRINT,
    Pattern.BACK_PRINT,
    Pattern.PATCHES,
)
BOTTOM_PATTERNS = (Pattern.SIDE_STRIPE, Pattern.CHECKS, Pattern.BLOCK, Pattern.PATCHES)
SKIRT_PATTERNS = (Pattern.HOOPS, Pattern.CHECKS, Pattern.DOTS, Pattern.BLOCK, Pattern.BARS)
LAYER_PATTERNS = (Pattern.OPEN, Pattern.OPEN, Pattern.BLOCK, Pattern.CHECKS, Pattern.BACK_PRINT)


class Hair(StrEnum):
    """Hair styles that still differ at sixteen pixels."""

    BALD = "bald"
    SHORT = "short"
    LONG = "long"
    BUN = "bun"
    PONYTAIL = "ponytail"


class Bag(StrEnum):
    """What a person carries; where it hangs decides the views that show it."""

    NONE = "none"
    BACKPACK = "backpack"
    SHOULDER = "shoulder"
    HAND = "hand"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Everything that stays with a person. Factors are relative to an average body."""

    height_m: float
    girth: float
    shoulders: float
    hips: float
    leg_share: float  # of the height
    head: float
    stride: float  # amplitude of the gait, radians at the hip
    skin: Rgb
    hair: Rgb
    hair_style: Hair
    beard: bool
    top: Cloth
    sleeve_cloth: Cloth
    sleeve_share: float  # covered share of the arm, from the shoulder
    layer: Cloth | None
    layer_reach: float  # how far below the hip the layer hangs, in leg lengths
    bottom: Cloth
    bottom_share: float  # covered share of the leg, from the hip
    skirt_reach: float  # length of the skirt in leg lengths; 0 without
    shoes: Rgb
    boot_share: float  # covered share of the shin, from the ankle
    scarf: Rgb | None
    hat: Rgb | None
    bag: Bag
    bag_cloth: Cloth
    bag_size: float


def draw_identity(rng: np.random.Generator, climate: Climate) -> Identity:
    """A person as the climate dresses them."""
    bare = rng.random() < climate.bare_share
    top = _garment(rng, climate.tops, TOP_PATTERNS, climate.plain_share)
    sleeve_cloth = Cloth.plain(_pick(rng, climate.tops)) if rng.random() < 0.22 else top
    sleeve_share = float(rng.choice((0.0, 0.42, 0.42, 0.5) if bare else (0.95, 0.95, 0.72)))
    layer, layer_reach = _layer(rng, climate, top)
    if layer is not None and layer.pattern is not Pattern.VEST:
        sleeve_cloth, sleeve_share = Cloth.plain(layer.colours[0]), 0.95
    skirt = rng.random() < climate.skirt_share
    bottom = _garment(
        rng, climate.bottoms, SKIRT_PATTERNS if skirt else BOTTOM_PATTERNS, 0.5 if skirt else 0.66
    )
    return Identity(
        height_m=float(rng.uniform(1.52, 1.95)),
        girth=float(np.exp(rng.normal(0.0, 0.17))),
        shoulders=float(rng.uniform(0.88, 1.14)),
        hips=float(rng.uniform(0.88, 1.16)),
        leg_share=float(rng.uniform(0.44, 0.505)),
        head=float(rng.uniform(0.93, 1.1)),
        stride=float(rng.uniform(0.3, 0.55)),
        skin=_pick(rng, SKINS),
        hair=_pick(rng, HAIRS),
        hair_style=Hair(rng.choice([str(style) for style in Hair], p=(0.1, 0.4, 0.25, 0.1, 0.15))),
        beard=bool(rng.random() < 0.2),
        top=top,
        sleeve_cloth=sleeve_cloth,
        sleeve_share=sleeve_share,
        layer=layer,
        layer_reach=layer_reach,
        bottom=bottom,
        bottom_share=_bottom_share(rng, bare, skirt),
        skirt_reach=float(rng.choice((0.38, 0.5, 0.8))) if skirt else 0.0,
        shoes=_pick(rng, SHOES),
        boot_share=float(rng.choice((0.0, 0.0, 0.35, 0.75))) if skirt or not bare else 0.0,
        scarf=_pick(rng, climate.tops) if rng.random() < climate.scarf_share else None,
        hat=_pick(rng, climate.layers) if rng.random() < climate.hat_share else None,
        bag=_bag(rng, climate),
        bag_cloth=_garment(rng, climate.layers, (Pattern.BLOCK, Pattern.HOOPS), 0.55),
        bag_size=float(rng.uniform(0.8, 1.3)),
    )


def _pick(rng: np.random.Generator, colours: tuple[Rgb, ...]) -> Rgb:
    return colours[int(rng.integers(len(colours)))]


def _garment(
    rng: np.random.Generator,
    palette: tuple[Rgb, ...],
    patterns: tuple[Pattern, ...],
    plain_share: float,
) -> Cloth:
    """A garment of three different palette colours; most patterns show two of them."""
    first, second, third = (palette[int(i)] for i in rng.permutation(len(palette))[:3])
    pattern = patterns[int(rng.integers(len(patterns)))]
    pitch_m = float(rng.choice((0.09, 0.13, 0.19)))
    if rng.random() < plain_share:
        pattern = Pattern.PLAIN
    return Cloth(pattern=pattern, colours=(first, second, third), pitch_m=pitch_m)


def _layer(rng: np.random.Generator, climate: Climate, top: Cloth) -> tuple[Cloth | None, float]:
    """The garment over the top and its reach below the hip. Where it stands open, the top shows."""
    cloth = _garment(rng, climate.layers, LAYER_PATTERNS, climate.plain_share)
    reach = 0.62 if rng.random() < climate.long_layer_share else 0.12
    if rng.random() < climate.vest_share:
        cloth, reach = Cloth(pattern=Pattern.VEST, colours=cloth.colours, pitch_m=0.2), 0.05
    elif cloth.pattern is Pattern.OPEN:
        cloth = Cloth(
            pattern=Pattern.OPEN,
            colours=(cloth.colours[0], top.colours[0], top.colours[1]),
            pitch_m=cloth.pitch_m,
        )
    return (cloth, reach) if rng.random() < climate.layer_share else (None, 0.0)


def _bottom_share(rng: np.random.Generator, bare: bool, skirt: bool) -> float:
    """How much of the leg is covered; under a skirt, all by leggings of its cloth or nothing."""
    if skirt:
        return 0.0 if bare or rng.random() < 0.5 else 0.97
    return float(rng.choice((0.42, 0.56, 0.97))) if bare else 0.97


def _bag(rng: np.random.Generator, climate: Climate) -> Bag:
    weights = np.array(
        (climate.no_bag, climate.backpack, climate.shoulder_bag, climate.handbag), np.float64
    )
    kinds = (Bag.NONE, Bag.BACKPACK, Bag.SHOULDER, Bag.HAND)
    return kinds[int(rng.choice(len(kinds), p=weights / weights.sum()))]
