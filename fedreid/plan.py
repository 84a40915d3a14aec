"""What does a run do? The plan: TOML, validated strictly, passed down as one value."""

import difflib
import math
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from fedreid.errors import PlanRefused
from fedreid.limits import CONCURRENT_TRANSFERS, PLAN_BYTES
from fedreid.recipes import with_recipe

Positive = Annotated[float, Meta(gt=0)]
NonNegative = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=1)]

Weighting = Literal["cosine", "samples", "uniform", "blend"]
BatchNormPolicy = Literal["pooled", "local", "adaptive", "recalibrated", "reference"]
Combine = Literal["mean", "median", "trimmed_mean"]
Encoding = Literal["fp32", "bf16", "int8_delta", "int8_delta_zstd"]
MixedPrecision = Literal["off", "bf16", "fp16"]


class Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the plan: immutable, and an unknown key is an error."""


class BackbonePlan(Section, frozen=True, kw_only=True):
    """The network that all silos share (reid-spec §1)."""

    name: str = "resnet50"
    """A torchvision model's name."""
    neck: Literal["paper", "bnneck"] = "paper"
    """``paper``: Linear, BatchNorm, Dropout to 512; ``bnneck``: BatchNorm on the pooled feature."""
    last_stride: Literal[1, 2] = 2
    """Of the trunk's last downsampling; 1 doubles height and width of its last feature map."""
    start: str = "random"
    """``random``, ``imagenet``, or the coordinator's path of a .safetensors or .pth state file."""
    height_px: Annotated[int, Meta(ge=32, le=1024)] = 256
    """Of the images that the network sees."""
    width_px: Annotated[int, Meta(ge=16, le=1024)] = 128
    """Of the images that the network sees."""


class TrainingPlan(Section, frozen=True, kw_only=True):
    """What each silo does in a round (reid-spec §2, §6)."""

    recipe: Literal["paper", "bot"] = "paper"
    """Preset for keys left out: ``paper`` is the defaults, ``bot`` the bag of tricks."""
    epochs: Annotated[int, Meta(ge=1, le=100)] = 1
    """Passes over a silo's images in a round."""
    batch_size: Annotated[int, Meta(ge=2, le=4096)] = 32
    """Images in a step; a shorter last batch is used."""
    images_per_identity: Annotated[int, Meta(ge=0, le=64)] = 0
    """K of P×K batches, in which each of P identities has K images; 0 = a plain shuffle."""
    optimiser: Literal["sgd", "adam"] = "sgd"
    """SGD in Nesterov's form, or Adam."""
    learning_rate: Positive = 0.05
    """Of neck and classifier, before the schedule."""
    backbone_learning_rate: Positive = 0.005
    """Of the trunk, before the schedule; a random start wants about the neck's."""
    momentum: Fraction = 0.9
    """Of SGD; Adam has its usual 0.9 and 0.999."""
    weight_decay: NonNegative = 5e-4
    """L2 penalty on all weights."""
    dropout: Fraction = 0.5
    """Of the ``paper`` neck."""
    label_smoothing: Fraction = 0.0
    """Share of the target spread over the other identities."""
    triplet_margin: NonNegative = 0.0
    """Of a batch-hard triplet loss on the pooled feature, beside cross entropy; 0 = none."""
    padding_px: Annotated[int, Meta(ge=0, le=64)] = 10
    """Black border from which a training crop is cut; 10 suits 256×128."""
    random_erasing: Fraction = 0.0
    """Probability that a rectangle of a training image is erased."""
    proximal: NonNegative = 0.0
    """FedProx's mu: the loss gains (mu/2)·‖w − w_t‖²."""
    mixed_precision: MixedPrecision = "off"
    """Number format of training's forward pass; ``fp16`` needs a GPU."""
    schedule: Literal["constant", "step", "warmup_cosine"] = "constant"
    """The learning rate as a function of published models."""
    steps: tuple[int, ...] = ()
    """Published rounds after which ``step`` multiplies the rate by ``gamma``."""
    gamma: Fraction = 0.1
    """Factor of ``step``."""
    warmup_rounds: Annotated[int, Meta(ge=0)] = 0
    """Rounds over which the rate rises from nearly 0."""
    threads: Annotated[int, Meta(ge=0, le=256)] = 0
    """CPU threads of a training process; 0 = as many as the silo has (not bit-reproducible)."""
    probe: Literal["fixed", "reference"] = "fixed"
    """What the cosine distance is measured on (§3): the same images in every round without
    dropout, or one newly shuffled batch with dropout on, as the reference does."""
    probe_batches: Annotated[int, Meta(ge=1, le=64)] = 4
    """Batches in the fixed probe."""

    def __post_init__(self) -> None:
        if 2 * self.images_per_identity > self.batch_size:
            raise ValueError(
                f"images_per_identity {self.images_per_identity} needs a batch_size of "
                f"{2 * self.images_per_identity} or more, for two identities in a batch"
            )


class AggregationPlan(Section, frozen=True, kw_only=True):
    """How the silos' backbones become one (reid-spec §3, §4)."""

    weighting: Weighting = "cosine"
    """A silo's share is proportional to this."""
    images_power: NonNegative = 1.0
    """``blend``: p_k ∝ images^images_power · distance^distance_power."""
    distance_power: NonNegative = 1.0
    """See ``images_power``."""
    max_share: Annotated[float, Meta(gt=0, le=1)] = 0.5
    """Largest share of one silo where more than two take part."""
    combine: Combine = "mean"
    """``median`` and ``trimmed_mean`` of each value by itself bear silos that lie, and give all
    the same say: they need ``weighting = "uniform"``."""
    trim: Annotated[float, Meta(ge=0, lt=0.5)] = 0.2
    """``trimmed_mean``: share of the silos, rounded up, left out at either end."""
    clip_norm_ratio: NonNegative = 2.0
    """Where three or more silos take part, an update that moves more than so many times as far as
    the others', by what their steps may explain, is shortened to that; 0 = never."""
    screen: bool = True
    """Give no share to an update that is an outlier, and do not believe a cosine distance that
    does not fit the others; where three or more silos take part."""
    normalisation: Literal["none", "fednova"] = "none"
    """``fednova``: a silo that makes more steps moves the model no further for it."""
    server_learning_rate: Positive = 1.0
    """Step of the coordinator along the mean update; 1 = take the mean itself."""
    server_momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Of the published models' movement (FedAvgM, heavy-ball form)."""
    clustering: Literal["none", "finch"] = "none"
    """``finch``: silos whose models see the public images alike get a model of their own
    (TOMM'23 §5.1); needs ``distillation.images``."""
    bn: BatchNormPolicy = "pooled"
    """What becomes of running statistics; ``local`` keeps all of BatchNorm at the silos, and
    ``adaptive`` at those that see more than one camera: statistics of a single camera do not fit
    the others, among which people are looked for."""

    def __post_init__(self) -> None:
        """Refuse what does not go together; msgspec makes a ValidationError of it."""
        steps = (self.normalisation, self.server_learning_rate, self.server_momentum)
        if self.clustering != "none" and steps != ("none", 1.0, 0.0):
            raise ValueError(
                "clustering gives silos different base models, so it can't be combined with "
                "normalisation, server_learning_rate or server_momentum"
            )
        if self.clustering != "none" and (self.clip_norm_ratio or self.screen):
            raise ValueError(
                "clustering gives silos different base models, so their updates can't be compared: "
                "set clip_norm_ratio = 0 and screen = false with it"
            )
        if self.combine != "mean" and self.weighting != "uniform":
            raise ValueError(
                f"{self.combine} gives every silo the same say: set weighting = 'uniform' with it"
            )
        if self.combine != "mean" and self.normalisation != "none":
            raise ValueError(
                f"{self.combine} compares the silos' values themselves, and normalisation = "
                f"'{self.normalisation}' changes them by what the silos report: leave it out"
            )
        if self.combine != "mean" and self.bn == "reference":
            raise ValueError(
                f"bn = 'reference' takes the statistics of one silo, whatever {self.combine} is "
                "for: choose another bn"
            )


class DistillationPlan(Section, frozen=True, kw_only=True):
    """Knowledge distillation on public images at the coordinator (reid-spec §5)."""

    images: str = ""
    """The coordinator's folder of public images; empty = no distillation."""
    exclude_cuhk01: bool = True
    """Leave P1 of a CUHK02 folder out: it is CUHK01, on whose people silos may be measured."""
    every: Count = 1
    """Rounds between two distillations."""
    loss: Literal["normalised", "paper", "none"] = "normalised"
    """Cosine to the mean teacher, the paper's squared error, or ``none``: the images are only
    there for ``bn = recalibrated`` and for clustering."""
    similarity: NonNegative = 0.0
    """Weight of the batch's similarity-matrix term beside the ``normalised`` loss."""
    learning_rate: Positive = 5e-4
    """Of the student."""
    momentum: Fraction = 0.9
    """Of SGD, Nesterov's form."""
    weight_decay: NonNegative = 5e-4
    """L2 penalty on all weights."""
    batch_size: Annotated[int, Meta(ge=2, le=4096)] = 32
    """Public images in a step."""
    epochs: Annotated[int, Meta(ge=1, le=100)] = 1
    """Passes over the public images."""
    bn_statistics: Literal["keep", "update"] = "keep"
    """Whether distillation may move the running statistics."""
    weighted_teachers: bool = False
    """Weigh the teachers by their aggregation share instead of equally."""
    mixed_precision: Literal["off", "bf16"] = "off"
    """Number format in which teachers and student run."""
    threads: Annotated[int, Meta(ge=1, le=256)] = 1
    """CPU threads of the coordinator's worker."""


class QuorumPlan(Section, frozen=True, kw_only=True):
    """When a round may close, and by when each of its phases must end (design §3)."""

    min_silos: Count = 2
    """Updates that a round needs, and silos that must be there for it to begin."""
    min_fraction: Fraction = 0.5
    """Of the invited silos."""
    deadline_s: Positive = 6 * 3600.0
    """Of collecting updates."""
    phase_deadline_s: Positive = 3600.0
    """Of each phase at the coordinator."""


class WirePlan(Section, frozen=True, kw_only=True):
    """How tensors travel (design §4)."""

    upload: Encoding = "fp32"
    """Of updates; a silo that can't may send fp32. ``int8_delta`` sends the change in one byte a
    value, and what rounding left unsaid in the next round."""
    download: Encoding = "fp32"
    """Of published models. With ``int8_delta`` the model itself is rounded to what its payload
    can say, so that a silo that holds the round's base has it to the last bit; others take fp32."""
    transfers: Count = CONCURRENT_TRANSFERS
    """Silos that fetch a model at once, and that send an update; the others wait their turn."""


class ValidationPlan(Section, frozen=True, kw_only=True):
    """What an update must satisfy beside its form."""

    max_update_norm_ratio: Positive = 10.0
    """Largest ‖w_k − w_t‖ / ‖w_t‖ over all learned tensors."""
    max_absolute_value: Positive = 1e6
    """Largest magnitude of any value."""
    quarantine_rounds: Annotated[int, Meta(ge=0)] = 0
    """Updates in a row that are an outlier, a free rider's or of an odd cosine distance, after
    which their silo is kept out until an administrator lets it in; 0 = never."""


class EvaluationPlan(Section, frozen=True, kw_only=True):
    """What silos and coordinator measure (reid-spec §7, §8)."""

    every: Count = 1
    """Rounds between two evaluations at the silos; the last round is always measured."""
    standalone: bool = True
    """Train and measure the silo's own baseline beside the federation."""
    folder: str = ""
    """A labelled test set of the coordinator's own (layout market1501); empty = none."""
    gate_drop: Annotated[float, Meta(ge=0, le=100)] = 0.0
    """Points of mAP on ``folder`` by which a model may lie below the run's best; one that lies
    lower is not published and its round has failed. 0 = no gate."""

    def __post_init__(self) -> None:
        if self.gate_drop and not self.folder:
            raise ValueError("gate_drop needs a test set: set folder, or leave it out")


class Plan(Section, frozen=True, kw_only=True):
    """One run of a federation."""

    name: str
    """The run's name: a label such as ``spring-2027``."""
    rounds: Annotated[int, Meta(ge=1, le=100_000)]
    """Models to publish."""
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    """Of start weights, shuffles and distillation: the same seed gives the same models."""
    backbone: BackbonePlan = BackbonePlan()
    training: TrainingPlan = TrainingPlan()
    aggregation: AggregationPlan = AggregationPlan()
    distillation: DistillationPlan = DistillationPlan()
    quorum: QuorumPlan = QuorumPlan()
    wire: WirePlan = WirePlan()
    validation: ValidationPlan = ValidationPlan()
    evaluation: EvaluationPlan = EvaluationPlan()

    def __post_init__(self) -> None:
        if self.aggregation.clustering != "none" and is_difference(self.wire.download):
            raise ValueError(
                f"clustering gives silos models of their own, and wire.download = "
                f"'{self.wire.download}' is the difference from a model that all hold: choose "
                "fp32 or bf16"
            )


def is_difference(encoding: Encoding) -> bool:
    """Whether a payload says how a model differs from another one, its base."""
    return encoding in ("int8_delta", "int8_delta_zstd")


def keeps_batch_norm(bn: BatchNormPolicy) -> bool:
    """Whether BatchNorm may stay at a silo under this policy, and out of its updates."""
    return bn in ("local", "adaptive")


SectionT = TypeVar("SectionT", bound=Section)

_UNKNOWN_FIELD = re.compile(r"unknown field `(?P<key>[^`]+)`(?: - at `\$\.?(?P<where>[^`]*)`)?")


def parse_toml(text: str, kind: type[SectionT], *, what: str) -> SectionT:
    """Read strict TOML into ``kind``.

    Raises:
        PlanRefused: no TOML, an unknown key (with the nearest known one), or a value out of range.
    """
    return _converted(_read_tree(text, what), kind, what)


def parse_plan(text: str) -> Plan:
    """The plan in a TOML text, its recipe filled in; see :func:`parse_toml` for errors."""
    return _converted(with_recipe(_read_tree(text, "plan")), Plan, "plan")


def load_plan(path: Path) -> Plan:
    """The plan in a TOML file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanRefused(
            f"Can't read the plan {path}", why=str(error), next_step="Name an existing TOML file."
        ) from error
    return parse_plan(text)


def learning_rate_factor(training: TrainingPlan, *, published: int, rounds: int) -> float:
    """The factor on the base learning rates after ``published`` of ``rounds`` models.

    The reference code rebuilds its scheduler each round, so its rate never decays; here the rate
    is a function of the round alone (reid-spec §2).
    """
    if published < training.warmup_rounds:
        return (published + 1) / (training.warmup_rounds + 1)
    if training.schedule == "step":
        return training.gamma ** sum(published >= step for step in training.steps)
    if training.schedule == "warmup_cosine":
        span = max(1, rounds - training.warmup_rounds)
        progress = (published - training.warmup_rounds) / span
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0


def _read_tree(text: str, what: str) -> dict[str, Any]:
    if len(text.encode()) > PLAN_BYTES:
        raise PlanRefused(f"The {what} is larger than {PLAN_BYTES} bytes")
    try:
        tree = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise PlanRefused(f"The {what} is no TOML: {error}") from error
    _refuse_infinities(tree, what)
    return tree


def _converted(tree: dict[str, Any], kind: type[SectionT], what: str) -> SectionT:
    try:
        return msgspec.convert(tree, kind)
    except msgspec.ValidationError as error:
        raise _explained(error, kind, what) from error


def _refuse_infinities(tree: object, what: str) -> None:
    if isinstance(tree, dict):
        for value in tree.values():
            _refuse_infinities(value, what)
    elif isinstance(tree, float) and not math.isfinite(tree):
        raise PlanRefused(f"The {what} holds {tree}", next_step="Use a finite number.")


def _explained(error: msgspec.ValidationError, kind: type[Section], what: str) -> PlanRefused:
    found = _UNKNOWN_FIELD.search(str(error))
    if found is None:
        return PlanRefused(f"The {what} is not valid: {error}")
    section: type = kind
    for step in filter(None, (found["where"] or "").split(".")):
        section = section.__annotations__[step]
    known = list(section.__struct_fields__)  # type: ignore[attr-defined]
    place = f" in [{found['where']}]" if found["where"] else ""
    nearest = difflib.get_close_matches(found["key"], known, n=1, cutoff=0.0)
    return PlanRefused(
        f"The {what} has an unknown key {found['key']!r}{place}",
        next_step=f"Did you mean {nearest[0]!r}? Known keys: {', '.join(known)}.",
    )
