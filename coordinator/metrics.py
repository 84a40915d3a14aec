"""Which figures does the coordinator expose to Prometheus?

Names and labels follow one rule: a label's values are a closed set, or bounded by the registry
(``silo``); never a round, digest, address or person.
"""

from typing import get_args

from prometheus_client import Counter, Gauge, Histogram

from coordinator.learning.jobs import Flag
from coordinator.rounds.machine import Phase, RoundState
from fedreid.errors import Refusal

_PHASE_BUCKETS_S = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600, 6 * 3600, 24 * 3600)

ACCESS_DENIED = Counter("fedreid_access_denied_total", "Calls and messages refused by access.")
ENROLMENTS = Counter("fedreid_enrolments_total", "Redeemed and refused join tokens.", ["outcome"])
ROUND_CURRENT = Gauge("fedreid_round_current", "Number of the newest round.")
ROUNDS = Counter("fedreid_rounds_total", "Rounds that ended.", ["outcome"])
ROUND_LAST_SUCCESS = Gauge(
    "fedreid_round_last_success_timestamp_seconds", "When a round last published a model."
)
ROUND_PHASE = Histogram(
    "fedreid_round_phase_duration_seconds",
    "Time spent in each phase of a round.",
    ["phase"],
    buckets=_PHASE_BUCKETS_S,
)
UPDATES_REJECTED = Counter(
    "fedreid_updates_rejected_total", "Updates that did not count, by reason.", ["reason"]
)
UPDATES_FLAGGED = Counter(
    "fedreid_updates_flagged_total", "Updates that look wrong, by what is wrong.", ["flag"]
)
INTAKE_BYTES = Counter("fedreid_intake_bytes_total", "Payload bytes received in updates.")
SILO_UPDATES = Counter(
    "fedreid_silo_updates_total", "Updates by silo (bounded by the registry).", ["silo", "outcome"]
)
SILO_WEIGHT = Gauge(
    "fedreid_silo_aggregation_weight_ratio", "Share in the newest aggregate.", ["silo"]
)
SILO_DISTANCE = Gauge("fedreid_silo_cosine_distance", "Newest cosine distance.", ["silo"])
SILO_EPSILON = Gauge(
    "fedreid_silo_privacy_epsilon",
    "Privacy loss of all the silo's updates, as it told; no series without noise.",
    ["silo"],
)
SILO_LAST_SEEN = Gauge(
    "fedreid_silo_last_seen_timestamp_seconds", "When the silo was last heard of.", ["silo"]
)
MODEL_VERSION = Gauge("fedreid_model_version", "Version of the newest published model.")
DISTILLATION_LOSS = Gauge(
    "fedreid_distillation_loss", "Mean loss over the public images (before, after).", ["stage"]
)

for _reason in Refusal:
    UPDATES_REJECTED.labels(_reason.value)
for _flag in get_args(Flag):
    UPDATES_FLAGGED.labels(_flag)
for _outcome in ("published", "skipped", "failed"):
    ROUNDS.labels(_outcome)
for _outcome in ("issued", "refused"):
    ENROLMENTS.labels(_outcome)
for _stage in ("before", "after"):
    DISTILLATION_LOSS.labels(_stage)


def note_round(state: RoundState, now_s: float) -> None:
    """Take up the figures of a round that ended."""
    ROUNDS.labels(str(state.phase)).inc()
    for phase, seconds in state.phase_seconds.items():
        ROUND_PHASE.labels(phase).observe(seconds)
    for update in state.updates:
        privacy = update.report.privacy
        if privacy is None:
            SILO_DISTANCE.labels(update.silo).set(update.report.cosine_distance)
        else:
            SILO_EPSILON.labels(update.silo).set(privacy.epsilon)
    for flags in state.flags.values():
        for flag in flags:
            UPDATES_FLAGGED.labels(flag).inc()
    for silo, weight in state.weights.items():
        SILO_WEIGHT.labels(silo).set(weight)
    if state.phase is Phase.PUBLISHED:
        ROUND_LAST_SUCCESS.set(now_s)
    if state.loss_before is not None and state.loss_after is not None:
        DISTILLATION_LOSS.labels("before").set(state.loss_before)
        DISTILLATION_LOSS.labels("after").set(state.loss_after)
