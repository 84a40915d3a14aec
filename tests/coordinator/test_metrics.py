"""Can Prometheus read the figures, and is every label's set of values closed or bounded?"""

import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from coordinator import metrics
from coordinator.learning.jobs import Flag
from coordinator.rounds.machine import (
    Abandoned,
    Aggregated,
    Distilled,
    Phase,
    Published,
    RoundState,
    TimePassed,
    advance,
)
from fedreid.contract import EvaluationResult, ModelKind
from fedreid.errors import Denial, Refusal
from tests.coordinator.rounds.states import (
    BEGAN_S,
    DEADLINE_S,
    PRIVACY,
    opened,
    rules,
    update,
)

CLOSED: dict[str, set[str]] = {
    "phase": {str(phase) for phase in Phase},
    "stage": {"before", "after"},
    "flag": set(get_args(Flag)),
    "model": set(get_args(ModelKind)),
    "dataset": set(metrics.DATASETS),
    "state": {*metrics.SILO_STATES, *metrics.PART_STATES},
}
REASONS = {
    "fedreid_updates_rejected": {reason.value for reason in Refusal},
    "fedreid_access_denied": {reason.value for reason in Denial},
}
OUTCOMES = {
    "fedreid_enrolments": set(metrics.ENROLMENT_OUTCOMES),
    "fedreid_rounds": {"published", "skipped", "failed"},
    "fedreid_silo_updates": {"accepted", "rejected"},
}
FORBIDDEN = {"round", "run", "digest", "address", "peer", "person", "identity", "path"}


FIGURES = EvaluationResult(
    model="global", rank1=0.5, rank5=0.6, rank10=0.7, map=0.4, minp=0.1, queries=9
)


def exposed() -> dict[str, Metric]:
    """Every metric of this product, as a scraper reads it."""
    families = text_string_to_metric_families(generate_latest(REGISTRY).decode())
    mine = [f for f in families if f.name.startswith("fedreid_")]
    return {f.name: f for f in mine}


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def published() -> RoundState:
    by = rules(distils=True)
    state = opened("a", "b", by=by)
    for event in (
        update("a"),
        update("b"),
        Aggregated(
            weights={"a": 0.25, "b": 0.75}, update_norm=1.0, flags={"b": ("clipped", "outlier")}
        ),
        Distilled(loss_before=2.0, loss_after=1.5),
        Published(model_digest="m" * 64, download_bytes=7),
    ):
        state = advance(state, event, by, BEGAN_S + 5)
    return state


def ended() -> list[RoundState]:
    """A round of each end."""
    skipped = advance(opened("a", "b"), TimePassed(), rules(), BEGAN_S + DEADLINE_S)
    failed = advance(opened("a", "b"), Abandoned(reason="stopped"), rules(), BEGAN_S)
    return [published(), skipped, failed]


def test_a_scraper_reads_the_exposition_and_finds_every_metric_documented() -> None:
    for state in ended():
        metrics.note_round(state, BEGAN_S)
    found = exposed()
    assert len(found) > 10
    for family in found.values():
        assert family.documentation.endswith(".")
        assert family.type in ("counter", "gauge", "histogram")
        assert re.fullmatch(r"fedreid_[a-z0-9_]+", family.name)


def test_a_metric_names_its_unit_and_a_counter_counts_totals() -> None:
    text = generate_latest(REGISTRY).decode()
    for family in exposed().values():
        if family.type == "counter":
            assert f"# TYPE {family.name}_total counter" in text
        assert not family.name.endswith(("_ms", "_mb", "_percent", "_count"))


def test_every_label_has_a_closed_set_of_values_or_names_a_registered_silo() -> None:
    for state in ended():
        metrics.note_round(state, BEGAN_S)
    for family in exposed().values():
        for sample in family.samples:
            labels = {name: text for name, text in sample.labels.items() if name != "le"}
            assert not labels.keys() & FORBIDDEN
            for name, text in labels.items():
                if name == "outcome":
                    assert text in OUTCOMES[family.name]
                elif name == "reason":
                    assert text in REASONS[family.name]
                elif family.name != "fedreid_build_info" and name != "silo":
                    assert text in CLOSED[name], (family.name, name, text)


def test_every_closed_label_is_there_from_the_start() -> None:
    # a rate over a series that appears with its first event misses that event
    found = exposed()
    for name, reasons in REASONS.items():
        assert {s.labels["reason"] for s in found[name].samples} == reasons
    flags = {s.labels["flag"] for s in found["fedreid_updates_flagged"].samples}
    assert flags == CLOSED["flag"]
    for name, states in (
        ("fedreid_silos", metrics.SILO_STATES),
        ("fedreid_round_participants", metrics.PART_STATES),
    ):
        assert {s.labels["state"] for s in found[name].samples} == set(states)
    for name in ("fedreid_rounds", "fedreid_enrolments"):
        assert {s.labels["outcome"] for s in found[name].samples} == OUTCOMES[name]


@pytest.mark.parametrize("state", ended(), ids=lambda state: str(state.phase))
def test_a_round_that_ended_is_counted_once_under_its_end(state: RoundState) -> None:
    before = {o: value("fedreid_rounds_total", outcome=o) for o in OUTCOMES["fedreid_rounds"]}
    metrics.note_round(state, BEGAN_S + 9)
    for outcome, count in before.items():
        grown = value("fedreid_rounds_total", outcome=outcome) - count
        assert grown == (1 if outcome == str(state.phase) else 0)


def test_a_published_round_leaves_its_figures() -> None:
    metrics.note_round(published(), BEGAN_S + 9)
    assert value("fedreid_round_last_success_timestamp_seconds") == BEGAN_S + 9
    assert value("fedreid_silo_aggregation_weight_ratio", silo="b") == 0.75
    assert value("fedreid_silo_cosine_distance", silo="a") == 0.5
    assert value("fedreid_distillation_loss", stage="before") == 2.0
    assert value("fedreid_distillation_loss", stage="after") == 1.5


def test_a_flagged_update_is_counted_under_each_of_its_flags() -> None:
    before = {flag: value("fedreid_updates_flagged_total", flag=flag) for flag in get_args(Flag)}
    metrics.note_round(published(), BEGAN_S)
    for flag, count in before.items():
        grown = value("fedreid_updates_flagged_total", flag=flag) - count
        assert grown == (1 if flag in ("clipped", "outlier") else 0)


def test_a_silo_with_noise_shows_its_epsilon_and_no_distance() -> None:
    state = advance(opened("quiet", "open"), update("quiet", private=True), rules(), BEGAN_S)
    metrics.note_round(advance(state, update("open"), rules(), BEGAN_S), BEGAN_S)
    assert value("fedreid_silo_privacy_epsilon", silo="quiet") == PRIVACY.epsilon
    for name, silo in (
        ("fedreid_silo_privacy_epsilon", "open"),
        ("fedreid_silo_cosine_distance", "quiet"),
    ):
        assert REGISTRY.get_sample_value(name, {"silo": silo}) is None


def test_a_failed_round_is_no_success() -> None:
    metrics.note_round(published(), BEGAN_S)
    metrics.note_round(ended()[2], BEGAN_S + 500)
    assert value("fedreid_round_last_success_timestamp_seconds") == BEGAN_S


def test_each_phase_is_observed_with_its_duration() -> None:
    name = "fedreid_round_phase_duration_seconds"
    before = value(f"{name}_sum", phase="collecting")
    metrics.note_round(published(), BEGAN_S)
    assert value(f"{name}_sum", phase="collecting") - before == pytest.approx(5.0)


def test_a_round_of_many_silos_makes_one_series_for_each_and_no_more() -> None:
    metrics.forget_silos(list(metrics.labelled_silos()))  # other tests' count towards the limit
    names = tuple(f"silo-{n:03d}" for n in range(50))
    state = opened(*names)
    for name in names:
        state = advance(state, update(name), rules(), BEGAN_S)
    for number in range(3):
        metrics.note_round(msgspec.structs.replace(state, number=number), BEGAN_S)
    samples = exposed()["fedreid_silo_cosine_distance"].samples
    mine = [s for s in samples if s.labels["silo"].startswith("silo-")]
    assert len(mine) == 50


def test_every_metric_is_set_by_somebody() -> None:
    root = Path(metrics.__file__).parent
    declared = {name for name, kind in vars(metrics).items() if isinstance(kind, MetricWrapperBase)}
    sources = "".join(path.read_text("utf-8") for path in root.rglob("*.py"))
    used = {n for n in declared if len(re.findall(rf"\b{n}\b", sources)) > 1}
    assert len(declared) > 40 and declared == used


def test_silos_beyond_the_limit_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    known = metrics.labelled_silos()
    monkeypatch.setattr(metrics, "SILOS_LABELLED", len(known) + 1)
    assert [metrics.silo_label(name) for name in ("first", "second", "first")] == [
        "first", metrics.OTHER, "first",
    ]  # fmt: skip
    metrics.forget_silos(["first"])
    assert metrics.silo_label("second") == "second"
    metrics.forget_silos(["second"])


def test_a_silo_that_is_forgotten_leaves_no_series() -> None:
    metrics.note_round(published(), BEGAN_S)
    metrics.show_evaluations("a", [FIGURES])
    assert 'silo="a"' in generate_latest(REGISTRY).decode()
    metrics.forget_silos(["a"])
    assert 'silo="a"' not in generate_latest(REGISTRY).decode()
    assert value("fedreid_silo_aggregation_weight_ratio", silo="b") == 0.75


def test_a_silo_without_a_part_in_the_newest_aggregate_has_no_weight() -> None:
    metrics.silo_label("away")
    metrics.note_round(published(), BEGAN_S)
    assert value("fedreid_silo_aggregation_weight_ratio", silo="away") == 0.0
    assert value("fedreid_silo_aggregation_weight_ratio", silo="b") == 0.75
    metrics.forget_silos(["away"])


def test_the_coordinators_own_figures_are_no_silos() -> None:
    metrics.show_evaluations("", [FIGURES])
    assert value("fedreid_model_map_ratio", dataset="coordinator") == FIGURES.map
    assert REGISTRY.get_sample_value("fedreid_silo_map_ratio", {"silo": "", "model": "global"}) is (
        None
    )
