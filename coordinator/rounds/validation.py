"""May an update count? Everything is checked here before anything of it is used.

Form first (manifest and report against the base model, before a byte is taken), then values,
block by block from the spool, so that memory does not grow with the model.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedreid.errors import Refusal, UpdateRefused
from fedreid.limits import MIB
from fedreid.plan import BatchNormPolicy, ValidationPlan, keeps_batch_norm
from fedreid.wire.manifest import Manifest
from fedreid.wire.tensors import Layout, TensorFile, batch_norm_names, is_statistic

_BLOCK_BYTES = MIB


def check_manifest(manifest: Manifest, base: Layout, bn: BatchNormPolicy) -> None:
    """Check names and shapes against the base model.

    With ``bn = local`` or ``adaptive`` an update may leave out what belongs to BatchNorm, all of
    it or nothing.

    Raises:
        UpdateRefused: a tensor is missing, unknown or of another shape.
    """
    if manifest.layout == base:
        return
    expected = {spec.name: spec for spec in base.specs}
    if keeps_batch_norm(bn):
        norms = batch_norm_names(base.names)
        if not norms & set(manifest.layout.names):
            expected = {name: spec for name, spec in expected.items() if name not in norms}
    named = set(manifest.layout.names)
    if unknown := sorted(named - set(expected)):
        raise UpdateRefused(
            Refusal.TENSOR_NAMES,
            f"The update holds {len(unknown)} tensors that the model does not have, "
            f"the first is {unknown[0]!r}",
        )
    if missing := sorted(set(expected) - named):
        raise UpdateRefused(
            Refusal.TENSOR_NAMES,
            f"The update lacks {len(missing)} tensors of the model, the first is {missing[0]!r}",
        )
    for spec in manifest.layout.specs:
        if spec.shape != expected[spec.name].shape:
            raise UpdateRefused(
                Refusal.TENSOR_SHAPE,
                f"The tensor {spec.name!r} has the shape {spec.shape}, not "
                f"{expected[spec.name].shape}",
            )


@dataclass(slots=True)
class _Norms:
    """Squared norms over the learned tensors, in float64."""

    base: float = 0.0
    change: float = 0.0


def check_values(update: TensorFile, base: TensorFile, plan: ValidationPlan) -> None:
    """Check every value of an update whose form was checked.

    Raises:
        UpdateRefused: NaN or infinity, too large a value, a negative variance, or a change whose
            norm is out of proportion to the base model's.
    """
    norms = _Norms()
    base_offsets = {spec.name: at for spec, at in base.layout.offsets()}
    for spec, offset in update.layout.offsets():
        for start in range(0, spec.size_bytes, _BLOCK_BYTES):
            size = min(_BLOCK_BYTES, spec.size_bytes - start)
            values = update.values(offset + start, size)
            _check_block(spec.name, values, plan.max_absolute_value)
            if not is_statistic(spec.name):
                before = base.values(base_offsets[spec.name] + start, size)
                norms.base += _squared_norm(before)
                norms.change += _squared_norm(values - before)
    limit = plan.max_update_norm_ratio * math.sqrt(norms.base)
    if math.sqrt(norms.change) > limit:
        raise UpdateRefused(
            Refusal.NORM,
            f"The update moves the model by a norm of {math.sqrt(norms.change):.4g}",
            why=f"the plan allows {limit:.4g}",
        )


def _squared_norm(values: npt.NDArray[np.float32]) -> float:
    wide = values.astype(np.float64)
    return float(wide @ wide)


def _check_block(name: str, values: npt.NDArray[np.float32], largest: float) -> None:
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):  # a NaN anywhere makes both NaN
        raise UpdateRefused(Refusal.NOT_FINITE, f"The tensor {name!r} holds NaN or infinity")
    if max(-low, high) > largest:
        raise UpdateRefused(Refusal.NORM, f"The tensor {name!r} holds a value beyond {largest:g}")
    if name.endswith("running_var") and low < 0:
        raise UpdateRefused(Refusal.NEGATIVE_VARIANCE, f"The running variance {name!r} is negative")
