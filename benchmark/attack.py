"""What does a silo send that wants to do harm? The direction of its update, turned round.

It is the strongest simple attack that passes the door: every tensor has its form, every value is
finite and no variance negative. To be heard it also claims the largest possible cosine distance.
"""

from pathlib import Path

import msgspec
import numpy as np

from benchmark.local import Tamper
from fedreid.contract import UpdateReport
from fedreid.limits import DISTANCE_RANGE
from fedreid.plan import Section
from fedreid.wire.tensors import load_tensors, save_tensors


class Attack(Section, frozen=True, kw_only=True):
    """Who attacks, and how."""

    silo: str
    factor: float = -10.0
    """What its change of the model is multiplied by."""
    lies: bool = True
    """It claims the largest cosine distance there can be."""


def tampering(attack: Attack) -> Tamper:
    """What an attack does to the updates of a run."""

    def tamper(silo: str, update: Path, base: Path, report: UpdateReport) -> UpdateReport:
        if silo != attack.silo:
            return report
        honest, before = load_tensors(update), load_tensors(base)
        turned = {
            name: before[name] + np.float32(attack.factor) * (values - before[name])
            for name, values in honest.items()
        }
        for name in turned:
            if name.endswith("running_var"):
                turned[name] = np.maximum(turned[name], np.float32(0.0))
        save_tensors(update, turned)
        if not attack.lies:
            return report
        return msgspec.structs.replace(report, cosine_distance=DISTANCE_RANGE[1])

    return tamper
