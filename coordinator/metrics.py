"""Which figures does the coordinator expose to Prometheus?

Names and labels follow one rule: a label's values are a closed set, or bounded by the registry
(``silo``; more than :data:`SILOS_LABELLED` names are counted together as ``other``); never a
round, digest, address or person. Closed sets are there from the start, at 0. Figures that show a
state are set at each scrape, by ``coordinator/readings.py``; the others where it happens.
"""

from collections.abc import Iterable, Sequence
from typing import get_args

from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from coordinator.learning.jobs import Flag
from coordinator.rounds.machine import ENDED, Accepted, Phase, RoundState
from fedreid.contract import EvaluationResult, ModelKind
from fedreid.errors import Denial, Refusal
from fedreid.exposition import declare_build
from fedreid.limits import SILOS_LABELLED

_PHASE_BUCKETS_S = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600, 6 * 3600, 24 * 3600)
_COMMIT_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
_CALL_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_CALL = ["grpc_type", "grpc_service", "grpc_method"]

SILO_STATES = ("pending", "active", "quarantined", "suspended", "left", "revoked")
PART_STATES = ("invited", "accepted", "refused", "declined", "awaited")
ENROLMENT_OUTCOMES = ("issued", "awaiting_approval", "refused", "reused")
DATASETS = ("coordinator", "silos")
OTHER = "other"

declare_build(REGISTRY)

ROUND_CURRENT = Gauge("fedreid_round_current", "Number of the newest round; 0 before the first.")
ROUND_STARTED = Gauge("fedreid_round_started_timestamp_seconds", "When the newest round began.")
ROUND_LAST_SUCCESS = Gauge(
    "fedreid_round_last_success_timestamp_seconds",
    "When a round last published a model; 0 = none is known.",
)
RUN_UNDER_WAY = Gauge("fedreid_run_under_way", "1 while a run is running; 0 paused, ended or none.")
RUN_STARTED = Gauge(
    "fedreid_run_started_timestamp_seconds", "When the newest run was started; 0 = never."
)
ROUNDS = Counter("fedreid_rounds_total", "Rounds that ended.", ["outcome"])
ROUND_PHASE = Histogram(
    "fedreid_round_phase_duration_seconds",
    "Time spent in each phase of a round.",
    ["phase"],
    buckets=_PHASE_BUCKETS_S,
)
ROUND_LAST_PHASE = Gauge(
    "fedreid_round_last_phase_seconds",
    "Time that the newest round that ended spent in each phase.",
    ["phase"],
)
ROUND_PARTICIPANTS = Gauge(
    "fedreid_round_participants", "Silos of the newest round, by what became of their update.",
    ["state"],
)  # fmt: skip
ROUND_QUORUM = Gauge(
    "fedreid_round_quorum_silos", "Accepted updates that the newest round needs at least."
)
SILOS = Gauge("fedreid_silos", "Registered silos by their state in the registry.", ["state"])
SILOS_PRESENT = Gauge("fedreid_silos_present", "Silos that were heard of lately.")
SILO_LAST_SEEN = Gauge(
    "fedreid_silo_last_seen_timestamp_seconds",
    "When the silo was last heard of, or since when the coordinator has been waiting for it.",
    ["silo"],
)
SILO_UPDATES = Counter("fedreid_silo_updates_total", "Updates by silo.", ["silo", "outcome"])
SILO_UPLOAD_BYTES = Counter(
    "fedreid_silo_upload_bytes_total", "Payload bytes received in updates, by silo.", ["silo"]
)
SILO_WEIGHT = Gauge(
    "fedreid_silo_aggregation_weight_ratio",
    "Share in the newest aggregate; 0 without a part in it.",
    ["silo"],
)
SILO_DISTANCE = Gauge(
    "fedreid_silo_cosine_distance",
    "Newest cosine distance; no series where the silo withholds it.",
    ["silo"],
)
SILO_LOSS = Gauge(
    "fedreid_silo_train_loss", "Newest training loss; no series where the silo withholds it.",
    ["silo"],
)  # fmt: skip
SILO_IMAGES = Gauge("fedreid_silo_images", "Images that the newest update comes from.", ["silo"])
SILO_EPSILON = Gauge(
    "fedreid_silo_privacy_epsilon",
    "Privacy loss of all the silo's updates, as it told; no series without noise.",
    ["silo"],
)
SILO_RANK1 = Gauge(
    "fedreid_silo_rank1_ratio", "Newest rank-1 on the silo's own test set.", ["silo", "model"]
)
SILO_MAP = Gauge(
    "fedreid_silo_map_ratio", "Newest mAP on the silo's own test set.", ["silo", "model"]
)
SILO_CERTIFICATE = Gauge(
    "fedreid_silo_certificate_not_after_timestamp_seconds",
    "When the silo's certificate ends; no series where an outside PKI issues them.",
    ["silo"],
)
UPDATES_REJECTED = Counter(
    "fedreid_updates_rejected_total", "Updates that did not count, by reason.", ["reason"]
)
UPDATES_FLAGGED = Counter(
    "fedreid_updates_flagged_total", "Updates that look wrong, by what is wrong.", ["flag"]
)
INTAKE_BYTES = Counter("fedreid_intake_bytes_total", "Payload bytes received in updates.")
SPOOL_BYTES = Gauge("fedreid_spool_bytes", "Bytes of the newest round's updates on the disk.")
MODEL_VERSION = Gauge("fedreid_model_version", "Version of the newest published model; 0 = none.")
MODEL_UPDATE_NORM = Gauge(
    "fedreid_model_update_norm", "Norm of the change that the newest aggregate made."
)
MODEL_RANK1 = Gauge(
    "fedreid_model_rank1_ratio",
    "Newest rank-1 of the global model: on the coordinator's own images, and mean of the silos'.",
    ["dataset"],
)
MODEL_MAP = Gauge(
    "fedreid_model_map_ratio",
    "Newest mAP of the global model: on the coordinator's own images, and mean of the silos'.",
    ["dataset"],
)
DISTILLATION_LOSS = Gauge(
    "fedreid_distillation_loss", "Mean loss over the public images (before, after).", ["stage"]
)
ENROLMENTS = Counter(
    "fedreid_enrolments_total",
    "Join tokens that were redeemed, refused, or used again by another key.",
    ["outcome"],
)
TLS_RELOAD_FAILURES = Counter(
    "fedreid_tls_reload_failures_total",
    "Looks at the port's identity that failed; what was in force stays.",
)
CA_NOT_AFTER = Gauge(
    "fedreid_ca_not_after_timestamp_seconds", "When the certificate authority that issues ends."
)
TRUST_PENDING = Gauge(
    "fedreid_trust_bundle_pending_silos",
    "Silos that the next step of a roll-over of authorities would lock out.",
)
ACCESS_DENIED = Counter(
    "fedreid_access_denied_total", "Calls and messages refused by access.", ["reason"]
)
STORE_FREE = Gauge("fedreid_store_free_bytes", "Free space on the data folder's disk.")
STORE_SIZE = Gauge("fedreid_store_size_bytes", "Size of the data folder's disk.")
JOURNAL_COMMIT = Histogram(
    "fedreid_journal_commit_seconds", "Time of a commit of the journal.",
    buckets=_COMMIT_BUCKETS_S,
)  # fmt: skip
CALLS_STARTED = Counter("grpc_server_started_total", "Calls that began.", _CALL)
CALLS_HANDLED = Counter(
    "grpc_server_handled_total", "Calls that ended, by status.", [*_CALL, "grpc_code"]
)
MESSAGES_RECEIVED = Counter("grpc_server_msg_received_total", "Messages received.", _CALL)
MESSAGES_SENT = Counter("grpc_server_msg_sent_total", "Messages sent.", _CALL)
CALL_SECONDS = Histogram(
    "grpc_server_handling_seconds",
    "Time of a call; a long poll of NextTask lasts as long as there is nothing to do.",
    _CALL,
    buckets=_CALL_BUCKETS_S,
)

_SILO_GAUGES = (
    SILO_LAST_SEEN, SILO_WEIGHT, SILO_DISTANCE, SILO_LOSS, SILO_IMAGES, SILO_EPSILON,
    SILO_CERTIFICATE,
)  # fmt: skip
_labelled: set[str] = set()


def _start_at_zero() -> None:
    for counter, values in (
        (UPDATES_REJECTED, [reason.value for reason in Refusal]),
        (UPDATES_FLAGGED, get_args(Flag)),
        (ROUNDS, sorted(map(str, ENDED))),
        (ENROLMENTS, ENROLMENT_OUTCOMES),
        (ACCESS_DENIED, [reason.value for reason in Denial]),
    ):
        for text in values:
            counter.labels(text)
    for phase in Phase:
        if phase not in ENDED:
            ROUND_PHASE.labels(str(phase))
            ROUND_LAST_PHASE.labels(str(phase))
    for gauge, states in ((ROUND_PARTICIPANTS, PART_STATES), (SILOS, SILO_STATES)):
        for state in states:
            gauge.labels(state)


_start_at_zero()


def silo_label(silo: str) -> str:
    """The silo's name as a label, while there are not too many of them."""
    if silo in _labelled:
        return silo
    if len(_labelled) >= SILOS_LABELLED:
        return OTHER
    _labelled.add(silo)
    for outcome in ("accepted", "rejected"):
        SILO_UPDATES.labels(silo, outcome)
    SILO_UPLOAD_BYTES.labels(silo)
    return silo


def forget_silos(gone: Iterable[str]) -> None:
    """Expose nothing of these any more, and give their places to others."""
    for silo in _labelled.intersection(gone):
        for gauge in _SILO_GAUGES:
            gauge.remove(silo)
        for model in get_args(ModelKind):
            SILO_RANK1.remove(silo, model)
            SILO_MAP.remove(silo, model)
        for outcome in ("accepted", "rejected"):
            SILO_UPDATES.remove(silo, outcome)
        SILO_UPLOAD_BYTES.remove(silo)
        _labelled.discard(silo)


def labelled_silos() -> frozenset[str]:
    """The silos that have series of their own."""
    return frozenset(_labelled)


def note_round(state: RoundState, now_s: float) -> None:
    """Count a round that ended, and take up its figures."""
    ROUNDS.labels(str(state.phase)).inc()
    for phase, seconds in state.phase_seconds.items():
        ROUND_PHASE.labels(phase).observe(seconds)
    for flags in state.flags.values():
        for flag in flags:
            UPDATES_FLAGGED.labels(flag).inc()
    if state.phase is Phase.PUBLISHED:
        ROUND_LAST_SUCCESS.set(now_s)
    show_round(state)


def show_round(state: RoundState) -> None:
    """Expose the figures of a round that ended."""
    for phase in Phase:
        if phase not in ENDED:
            ROUND_LAST_PHASE.labels(str(phase)).set(state.phase_seconds.get(str(phase), 0.0))
    for update in state.updates:
        _show_update(update)
    if state.weights:
        MODEL_UPDATE_NORM.set(state.update_norm)
        for silo in sorted({*_labelled, *state.weights}):  # who had no part has no weight
            _set(SILO_WEIGHT, silo, state.weights.get(silo, 0.0))
    if state.loss_before is not None and state.loss_after is not None:
        DISTILLATION_LOSS.labels("before").set(state.loss_before)
        DISTILLATION_LOSS.labels("after").set(state.loss_after)


def show_evaluations(silo: str, results: Sequence[EvaluationResult]) -> None:
    """Expose what a silo measured; the coordinator's own figures have the silo ``""``."""
    for result in results:
        if not silo:
            MODEL_RANK1.labels("coordinator").set(result.rank1)
            MODEL_MAP.labels("coordinator").set(result.map)
        elif silo_label(silo) != OTHER:
            SILO_RANK1.labels(silo, result.model).set(result.rank1)
            SILO_MAP.labels(silo, result.model).set(result.map)


def _show_update(update: Accepted) -> None:
    report = update.report
    _set(SILO_IMAGES, update.silo, report.num_images)
    if report.privacy is None:
        _set(SILO_DISTANCE, update.silo, report.cosine_distance)
        _set(SILO_LOSS, update.silo, report.train_loss)
    else:
        _set(SILO_EPSILON, update.silo, report.privacy.epsilon)


def _set(gauge: Gauge, silo: str, value: float) -> None:
    """A gauge of several silos together would show nobody's value."""
    if silo_label(silo) != OTHER:
        gauge.labels(silo).set(value)
