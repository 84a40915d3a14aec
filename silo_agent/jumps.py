"""Has the published model moved out of all proportion since this silo last trained on one?

A coordinator that was taken over could send a model that is made to learn images by heart. This is
a coarse bound against that, held before anything is trained: every value is finite, and the model
is about where the last one was. Two models are read side by side in blocks, so neither is ever in
memory as a whole.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedreid.errors import PolicyRefused
from fedreid.limits import MIB, POLICY_RETRY_S
from fedreid.wire.tensors import TensorFile, is_statistic, squared_norm
from silo_agent.config import Policy
from silo_agent.held import Held

_BLOCK_BYTES = MIB


def check_model(model: Held, before: Held | None, policy: Policy, now_s: float) -> float | None:
    """Check a model against the one before it; None if there is none to compare with.

    Returns:
        ‖w − w_before‖ / ‖w_before‖ over learned tensors, both norms in float64.

    Raises:
        PolicyRefused: NaN or infinity, other tensors, or a change beyond the policy's limit. A
            later round may be fine, so it names a time to ask again.
    """
    with TensorFile(Path(model.path)) as file:
        if before is None:
            for name, values in _blocks(file):
                _check_finite(name, values, now_s)
            return None
        with TensorFile(Path(before.path)) as earlier:
            if earlier.layout != file.layout:
                raise _refused(
                    "The model has other tensors than the one before it in the run",
                    "a run has one network from its first round to its last",
                    now_s,
                )
            change = _change(file, earlier, now_s)
    if policy.largest_model_change and change > policy.largest_model_change:
        raise _refused(
            f"The model has changed by {change:.4g} times the norm of the one before it",
            f"policy.largest_model_change = {policy.largest_model_change:g}",
            now_s,
        )
    return change


def _change(file: TensorFile, earlier: TensorFile, now_s: float) -> float:
    moved = norm = 0.0
    for (name, values), (_, before) in zip(_blocks(file), _blocks(earlier), strict=True):
        _check_finite(name, values, now_s)
        if not is_statistic(name):
            norm += squared_norm(before)
            moved += squared_norm(np.subtract(values, before, out=values))
    if norm == 0.0:
        return math.inf if moved else 0.0
    return math.sqrt(moved / norm)


def _blocks(file: TensorFile) -> Iterator[tuple[str, npt.NDArray[np.float32]]]:
    for spec, offset in file.layout.offsets():
        for start in range(0, spec.size_bytes, _BLOCK_BYTES):
            size = min(_BLOCK_BYTES, spec.size_bytes - start)
            yield spec.name, file.values(offset + start, size)


def _check_finite(name: str, values: npt.NDArray[np.float32], now_s: float) -> None:
    if not (math.isfinite(values.min()) and math.isfinite(values.max())):  # NaN makes both NaN
        raise _refused(
            f"The model's tensor {name!r} holds NaN or infinity",
            "training on it would spoil this silo's model as well",
            now_s,
        )


def _refused(what: str, why: str, now_s: float) -> PolicyRefused:
    return PolicyRefused(
        what,
        key="largest_model_change",
        why=why,
        next_step="The silo asks for a task again in some minutes; tell the coordinator's "
        "operators, who can roll the model back.",
        again_at_s=now_s + POLICY_RETRY_S,
    )
