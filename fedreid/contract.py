"""What do coordinator and agent tell each other, in our own types?

The protobuf side of each is in ``fedreid.wire.messages``; nothing else sees both.
"""

import math
from dataclasses import dataclass
from typing import Literal

import msgspec

from fedreid.errors import Refusal, UpdateRefused
from fedreid.limits import DISTANCE_RANGE, UPDATE_IMAGES, UPDATE_STEPS
from fedreid.names import Digest, RoundNumber, RunName
from fedreid.plan import BackbonePlan, BatchNormPolicy, Encoding, TrainingPlan

ModelKind = Literal["global", "local", "standalone"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitTask:
    """Nothing to do yet."""

    reason: str
    run_finished: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainTask:
    """Take part in a round."""

    run: RunName
    round: RoundNumber
    base_digest: Digest
    seed: int
    backbone: BackbonePlan
    training: TrainingPlan
    learning_rate_factor: float
    bn: BatchNormPolicy
    upload_encoding: Encoding
    download_encoding: Encoding
    evaluate: bool
    standalone: bool
    remaining_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateTask:
    """Measure a published model on the silo's own test set."""

    run: RunName
    round: RoundNumber
    model_digest: Digest
    backbone: BackbonePlan
    bn: BatchNormPolicy
    download_encoding: Encoding
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewTask:
    """Renew the identity now, and come back with the new one."""

    reason: str


Task = WaitTask | TrainTask | EvaluateTask | RenewTask


class PrivacyReport(msgspec.Struct, frozen=True, kw_only=True):
    """How an update was made private at its silo, and what it has cost."""

    clip_norm: float
    """Largest L2 norm of the change, before the noise."""
    noise_multiplier: float
    """Standard deviation of the noise over the sensitivity, which is twice ``clip_norm``."""
    epsilon: float
    """Privacy loss of all the silo's updates with noise so far, this one included."""
    delta: float

    def checked(self) -> "PrivacyReport":
        """The report, if its numbers can be what they claim to be.

        Raises:
            UpdateRefused: a number out of range.
        """
        positive = (self.clip_norm, self.noise_multiplier, self.epsilon)
        if not (all(0 < value < math.inf for value in positive) and 0 < self.delta < 1):
            raise UpdateRefused(Refusal.REPORT, "The report's privacy holds a number out of range")
        return self


class UpdateReport(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers that go with an update."""

    num_images: int
    cosine_distance: float
    train_loss: float
    num_steps: int
    """Optimiser steps of the round: by how many the update is divided where silos are compared."""
    privacy: PrivacyReport | None = None
    """Set where noise was added; distance and loss are then withheld: see :meth:`withheld`."""

    def withheld(self, privacy: PrivacyReport) -> "UpdateReport":
        """The numbers that may go with an update that is private.

        Distance and loss say something of the images that no noise covers, so both become 0.
        Counts of images and steps stay: the guarantee takes them for known.
        """
        return msgspec.structs.replace(self, cosine_distance=0.0, train_loss=0.0, privacy=privacy)

    def checked(self) -> "UpdateReport":
        """The report, if its numbers can be what they claim to be.

        Raises:
            UpdateRefused: a distance or a count out of range, or a loss that is no number.
        """
        low, high = DISTANCE_RANGE
        if not low <= self.cosine_distance <= high:  # NaN fails too
            raise UpdateRefused(
                Refusal.WEIGHT,
                f"The cosine distance {self.cosine_distance} is not within {low:g} to {high:g}",
            )
        if not 1 <= self.num_images <= UPDATE_IMAGES:
            raise UpdateRefused(
                Refusal.WEIGHT, f"The image count {self.num_images} is not within its range"
            )
        if not 1 <= self.num_steps <= UPDATE_STEPS:
            raise UpdateRefused(
                Refusal.WEIGHT, f"The step count {self.num_steps} is not within its range"
            )
        if not math.isfinite(self.train_loss):
            raise UpdateRefused(Refusal.REPORT, f"The training loss is {self.train_loss}")
        if self.privacy is not None:
            self.privacy.checked()
        return self


class EvaluationResult(msgspec.Struct, frozen=True, kw_only=True):
    """One model measured on a query and gallery set; ratios in 0..1."""

    model: ModelKind
    rank1: float
    rank5: float
    rank10: float
    map: float
    minp: float
    queries: int
    """Valid queries: those with a match in another camera."""

    def checked(self) -> "EvaluationResult":
        """The result, if its ratios are ratios.

        Raises:
            UpdateRefused: a value that no measurement gives.
        """
        ratios = (self.rank1, self.rank5, self.rank10, self.map, self.minp)
        if not all(0.0 <= ratio <= 1.0 for ratio in ratios):
            raise UpdateRefused(Refusal.REPORT, "An evaluation holds a ratio outside 0 to 1")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasePayload:
    """One encoding in which a released model can be fetched."""

    encoding: Encoding
    payload_digest: Digest
    byte_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What the coordinator states of a published model."""

    federation: str
    run: RunName
    round: RoundNumber
    version: int
    model_digest: Digest
    base_digest: Digest
    layout_digest: Digest
    """BLAKE3 of the canonical file's header: names and shapes, whatever the encoding."""
    payloads: tuple[ReleasePayload, ...]

    def payload(self, encoding: Encoding) -> ReleasePayload | None:
        """The payload in ``encoding``, if there is one."""
        return next((p for p in self.payloads if p.encoding == encoding), None)
