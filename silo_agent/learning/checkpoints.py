"""From where does a training go on whose process was killed? From its last checkpoint, to the bit.

A checkpoint is everything that the next step depends on: weights, optimiser, scaler, and for each
training process its random numbers and running statistics. It lies beside the round's working
folder, can be read by its owner alone, never leaves, and is removed with the round. One that is
damaged, or of another round, plan, dataset or software, is told of and not used.
"""

import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import blake3
import numpy as np
import torch
from torch import nn

from fedreid import faults
from fedreid.clock import Clock, SystemClock
from fedreid.errors import StorageError, storage_errors
from fedreid.files import make_folder, remove_file, replacing
from fedreid.limits import CHECKPOINT_S, CHECKPOINT_SHARE
from silo_agent.learning.group import ALONE, Group

_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often a checkpoint is written, and by which clock."""

    pause_s: float = CHECKPOINT_S
    """Least pause between two."""
    share: float = CHECKPOINT_SHARE
    """Of the time that writing them may take."""
    clock: Clock = field(default_factory=SystemClock)


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """How far a training has come."""

    step: int = 0
    """Steps taken."""
    loss_sum: float = 0.0
    seen: int = 0
    """Images in those steps."""
    random: Mapping[str, Any]
    """State of the generator that makes this process's next batch."""

    def after(self, loss: float, images: int, random: Mapping[str, Any]) -> "Position":
        """The position after one more step."""
        return Position(
            step=self.step + 1,
            loss_sum=self.loss_sum + loss * images,
            seen=self.seen + images,
            random=random,
        )

    @property
    def loss(self) -> float:
        """Mean over the images seen."""
        return self.loss_sum / max(self.seen, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainee:
    """Everything that a step changes."""

    modules: tuple[nn.Module, ...]
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    device: torch.device

    def state(self) -> dict[str, Any]:
        """What all training processes have in common."""
        return {
            "modules": [module.state_dict() for module in self.modules],
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def own_state(self, random: Mapping[str, Any]) -> dict[str, Any]:
        """What is this process's alone, on the CPU; ``random`` makes its images."""
        cuda = self.device.type == "cuda"
        return {
            "random": dict(random),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if cuda else None,
            "buffers": [[buffer.cpu() for buffer in module.buffers()] for module in self.modules],
        }

    def restore(self, state: dict[str, Any], own: dict[str, Any]) -> None:
        """Take both up again, in place."""
        for module, values in zip(self.modules, state["modules"], strict=True):
            module.load_state_dict(values)
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        for module, buffers in zip(self.modules, own["buffers"], strict=True):
            for buffer, value in zip(module.buffers(), buffers, strict=True):
                buffer.copy_(value)
        torch.set_rng_state(own["torch"])
        if own["cuda"] is not None:
            torch.cuda.set_rng_state(own["cuda"], self.device)


class Checkpoints:
    """The checkpoint of one training. The leader of a group writes it for all."""

    def __init__(
        self, path: Path | None, key: str, *, pace: Pace | None = None, group: Group = ALONE
    ) -> None:
        """``path``: the file, None for none; ``key``: what else must be equal to go on from it."""
        self._kept = path is not None
        self._path = path if group.leads else None
        self._key = key
        self._pace = pace or Pace()
        self._group = group
        self._due_s = self._pace.clock.monotonic_s() + self._pace.pause_s
        self.notes: tuple[str, ...] = ()
        """What the operator should be told, as predicates."""

    def resume(self, trainee: Trainee, start: Position) -> Position:
        """Where to go on, with everything as it was there; ``start`` where there is no checkpoint.

        Raises:
            StorageError: a checkpoint is there and can't be read for now.
        """
        if not self._kept:
            return start
        stored = self._group.handed(None if self._path is None else self._read(self._path))
        if stored is None:
            return start
        own = stored["processes"][self._group.rank]
        trainee.restore(stored["state"], own)
        self.notes = (f"went on from step {stored['step']}, where it was interrupted",)
        return Position(
            step=stored["step"],
            loss_sum=stored["loss_sum"],
            seen=stored["seen"],
            random=own["random"],
        )

    def keep(self, trainee: Trainee, position: Position) -> None:
        """Write a checkpoint, if one is due."""
        if not self._kept or not self._group.agreed(self._due()):
            return
        processes = self._group.gathered(trainee.own_state(position.random))
        if self._path is None:
            return
        began_s = self._pace.clock.monotonic_s()
        try:
            self._write(
                self._path,
                {
                    "key": self._key,
                    "step": position.step,
                    "loss_sum": position.loss_sum,
                    "seen": position.seen,
                    "state": trainee.state(),
                    "processes": processes,
                },
            )
        except StorageError as error:  # the round itself may still fit
            self._due_s = float("inf")
            self.notes += (f"trains on without checkpoints: {error.why}",)
            return
        now_s = self._pace.clock.monotonic_s()
        self._due_s = now_s + max(self._pace.pause_s, (now_s - began_s) / self._pace.share)

    def _due(self) -> bool:
        return self._pace.clock.monotonic_s() >= self._due_s

    def _write(self, path: Path, values: dict[str, Any]) -> None:
        stream = io.BytesIO()
        torch.save(values, stream)
        make_folder(path.parent, mode=0o700)
        with faults.step("train.checkpoint"), replacing(path, mode=0o600) as file:
            file.write(blake3.blake3(stream.getbuffer()).digest())
            file.write(stream.getbuffer())

    def _read(self, path: Path) -> dict[str, Any] | None:
        """The checkpoint, if there is one to go on from; leftovers of cut-off writes go."""
        for left in path.parent.glob(f".{path.name}.*.tmp"):
            remove_file(left)
        if not path.exists():
            return None
        with storage_errors("read", path):
            data = path.read_bytes()
        payload = memoryview(data)[_DIGEST_BYTES:]
        if blake3.blake3(payload).digest() != data[:_DIGEST_BYTES]:
            return self._unused("is damaged")
        try:
            values: dict[str, Any] = torch.load(
                io.BytesIO(payload), weights_only=True, map_location="cpu"
            )
        except (pickle.UnpicklingError, RuntimeError):  # written by another version of torch
            return self._unused("can't be read by this software")
        if values["key"] != self._key:
            return self._unused("is of another round, plan, dataset or software")
        return values

    def _unused(self, why: str) -> None:
        self.notes = (f"began the training anew: its checkpoint {why}",)


def numpy_state(random: np.random.Generator) -> dict[str, Any]:
    """Where a generator stands."""
    return dict(random.bit_generator.state)
