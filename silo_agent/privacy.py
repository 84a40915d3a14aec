"""How is an update made private before it leaves? Its change is clipped, and noise is added.

The Gaussian mechanism, once for all that a silo contributes to a round (McMahan et al., ICLR 2018,
with a silo in the place of a user and the noise added by the silo itself)::

    noisy = base + min(1, C / ‖update − base‖) · (update − base) + N(0, (z · 2C)²)

Two data sets of a silo can give clipped changes that are 2C apart: that is the sensitivity where
a silo's images are replaced by others. The norm runs over all that leaves, statistics of
BatchNorm included. Noise is made of the operating system's secure random numbers; the
federation's seeds are known to the coordinator, which could take noise made of them away again.

Known limit: real numbers are the theory, floating point the practice (Mironov, CCS 2012). Sums
are made in float64 and leave rounded to float32, which hides the low bits that such attacks read,
but is no proof.
"""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedreid.contract import PrivacyReport
from fedreid.errors import JobFailed
from fedreid.files import make_folder, move_file, replacing
from fedreid.limits import MIB
from fedreid.plan import BatchNormPolicy
from fedreid.wire.tensors import Layout, TensorFile
from silo_agent.budget import PrivacyBudget
from silo_agent.config import Policy
from silo_agent.egress import shared_layout
from silo_agent.outbox import OWN_FILE, UPDATE_FILE

Entropy = Callable[[int], bytes]
"""That many random bytes that nobody else knows."""

_Values = npt.NDArray[np.float64]

_BLOCK_BYTES = MIB
_WORD_BYTES = 8
_SENSITIVITY = 2.0
"""Over the clip norm: two points of a ball are at most its diameter apart."""


def make_private(
    folder: Path, base: Path, *, bn: BatchNormPolicy, policy: Policy, budget: PrivacyBudget
) -> PrivacyReport | None:
    """Turn the update of a trained round into what may leave; None where the policy asks nothing.

    The backbone as it was trained is kept among what never leaves. The cost is counted, durably,
    before there is any noisy update: after a crash too much has been counted, never too little.

    Raises:
        PolicyRefused: the budget does not last for another update.
        JobFailed: the update's change is not finite.
    """
    if not policy.privacy.on:
        return None
    own, update = folder / OWN_FILE, folder / UPDATE_FILE
    make_folder(own.parent, mode=0o700)
    move_file(update, own)
    with TensorFile(own) as trained, TensorFile(base) as before:
        leaving = shared_layout(before.layout, bn=bn, policy=policy)
        spent = budget.spend()
        add_noise(
            trained,
            before,
            update,
            leaving,
            clip_norm=spent.clip_norm,
            noise_multiplier=spent.noise_multiplier,
        )
    return spent


def add_noise(
    trained: TensorFile,
    base: TensorFile,
    out: Path,
    leaving: Layout,
    *,
    clip_norm: float,
    noise_multiplier: float,
    entropy: Entropy = os.urandom,
) -> None:
    """Write the noisy update, with the tensors of ``leaving`` alone; nothing is held but a block.

    Variances below 0 are raised to it, which costs no privacy: it looks at noisy values only.

    Raises:
        JobFailed: the change is not finite.
    """
    scale = _scale(trained, base, leaving, clip_norm)
    deviation = noise_multiplier * _SENSITIVITY * clip_norm
    with replacing(out, mode=0o600) as stream:
        stream.write(leaving.header())
        for name, before, change in _blocks(trained, base, leaving):
            noisy = before + scale * change + deviation * gaussian(len(change), entropy)
            if name.endswith("running_var"):
                np.maximum(noisy, 0.0, out=noisy)
            stream.write(noisy.astype(np.float32).view(np.uint8).data)


def gaussian(count: int, entropy: Entropy) -> _Values:
    """Independent normal values of deviation 1: Box and Muller's, 53 random bits to a uniform."""
    pairs = (count + 1) // 2
    words = np.frombuffer(entropy(2 * pairs * _WORD_BYTES), dtype="<u8").reshape(2, pairs)
    uniform = ((words >> np.uint64(11)) + 1.0) * 2.0**-53  # in (0, 1], so that its log is finite
    radius = np.sqrt(-2.0 * np.log(uniform[0]))
    angle = (2.0 * math.pi) * uniform[1]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]


def _scale(trained: TensorFile, base: TensorFile, leaving: Layout, clip_norm: float) -> float:
    """What the change is multiplied by."""
    norm = math.sqrt(
        sum(float(change @ change) for _, _, change in _blocks(trained, base, leaving))
    )
    if not math.isfinite(norm):
        raise JobFailed("Training has left values that are not finite")
    return min(1.0, clip_norm / norm) if norm > 0.0 else 1.0


def _blocks(
    trained: TensorFile, base: TensorFile, leaving: Layout
) -> Iterator[tuple[str, _Values, _Values]]:
    """Each run of values that leaves: its tensor's name, the base model's values, their change."""
    own_at = {spec.name: at for spec, at in trained.layout.offsets()}
    base_at = {spec.name: at for spec, at in base.layout.offsets()}
    for spec in leaving.specs:
        for start in range(0, spec.size_bytes, _BLOCK_BYTES):
            size = min(_BLOCK_BYTES, spec.size_bytes - start)
            before = base.values(base_at[spec.name] + start, size).astype(np.float64)
            own = trained.values(own_at[spec.name] + start, size)
            yield spec.name, before, own - before
