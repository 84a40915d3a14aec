"""Which figures does an agent expose to Prometheus? Those of its own state, and nothing of images.

A registry of their own, so that no other program's figures come along. Every label has a closed
set of values: never a round, digest, address or person.
"""

from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector

from fedreid.clock import Clock
from fedreid.exposition import declare_build
from fedreid.jobs import Progress

Phase = Literal["fetching", "training", "evaluating", "uploading", "waiting"]
Awaited = Literal["task", "coordinator", "approval", "policy", "retry", "disk"]

REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
declare_build(REGISTRY)

CONNECTED = Gauge(
    "fedreid_agent_connected", "Whether the coordinator has answered and is there.",
    registry=REGISTRY,
)  # fmt: skip
LAST_CONTACT = Gauge(
    "fedreid_agent_last_contact_timestamp_seconds", "When the coordinator last answered a call.",
    registry=REGISTRY,
)  # fmt: skip
RECONNECTS = Counter(
    "fedreid_agent_reconnects_total", "Connections that were made anew after one was lost.",
    registry=REGISTRY,
)  # fmt: skip
PHASE = Gauge(
    "fedreid_agent_phase", "1 for what the agent does now, 0 for the rest.", ["phase"],
    registry=REGISTRY,
)  # fmt: skip
AWAITED = Gauge(
    "fedreid_agent_awaited",
    "1 for what the agent waits for: a task, the coordinator, to be let in again, its own policy's "
    "next day, another attempt at a failed job, or its disk.",
    ["reason"],
    registry=REGISTRY,
)
EPOCH_LOSS = Gauge(
    "fedreid_agent_epoch_loss", "Training loss as it was told last.", registry=REGISTRY
)
IMAGES_PER_SECOND = Gauge(
    "fedreid_agent_images_per_second", "Images trained on per second, in the newest training.",
    registry=REGISTRY,
)  # fmt: skip
OUTBOX_DEPTH = Gauge(
    "fedreid_agent_outbox_depth", "Trained rounds that the coordinator has not answered for.",
    registry=REGISTRY,
)  # fmt: skip
ROUNDS_TRAINED = Counter(
    "fedreid_agent_rounds_trained_total", "Rounds whose training is complete.", registry=REGISTRY
)
EGRESS_BYTES = Counter(
    "fedreid_agent_egress_bytes_total", "Bytes of tensors sent, those sent again included.",
    registry=REGISTRY,
)  # fmt: skip

for _phase in get_args(Phase):
    PHASE.labels(_phase)
for _awaited in get_args(Awaited):
    AWAITED.labels(_awaited)


class TrainingPace:
    """How fast one training goes, from what its process tells."""

    def __init__(self, batch_size: int, clock: Clock) -> None:
        self._batch_size, self._clock = batch_size, clock
        self._of = ""
        self._first = 0
        self._since_s = 0.0

    def note(self, progress: Progress) -> None:
        """Take up how far the training is."""
        if progress.loss is not None:
            EPOCH_LOSS.set(progress.loss)
        if progress.phase == "evaluating":
            return
        now_s = self._clock.monotonic_s()
        if progress.phase != self._of:
            self._of, self._first, self._since_s = progress.phase, progress.done, now_s
        elif now_s > self._since_s:
            images = (progress.done - self._first) * self._batch_size
            IMAGES_PER_SECOND.set(images / (now_s - self._since_s))


def note_phase(phase: Phase) -> None:
    """The agent does something; while it waits for a task, that is what it waits for."""
    for known in get_args(Phase):
        PHASE.labels(known).set(known == phase)
    _note_awaited("task" if phase == "waiting" else None)


def note_waiting(awaited: Awaited) -> None:
    """The agent can do nothing until something has happened elsewhere."""
    for known in get_args(Phase):
        PHASE.labels(known).set(known == "waiting")
    _note_awaited(awaited)


def _note_awaited(awaited: Awaited | None) -> None:
    for known in get_args(Awaited):
        AWAITED.labels(known).set(known == awaited)
