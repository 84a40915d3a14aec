"""A grid that never ran: cells by hand for known figures, or plausible ones from a seed."""

import math

import msgspec
import numpy as np

from benchmark.cells import CellKind, CellResult, ScenarioKind, SiloUse
from benchmark.results import Accuracy, ModelKind, RoundResult

DATASET_SILOS = {"station": 1080, "mall": 540, "campus": 270, "depot": 90}
CAMERA_SILOS = {"camera-1": 420, "camera-2": 390, "camera-3": 310}
METHODS: dict[str, tuple[float, float]] = {
    "best": (0.64, 0.006),
    "reference": (0.52, 0.030),
    "fedprox": (0.57, 0.012),
    "paper": (0.55, 0.015),
}
"""Rank-1 that the method tends to, and how much its rounds wobble."""

BASELINES: dict[CellKind, float] = {"standalone": 0.46, "centralised": 0.74}
UPDATE_BYTES = 6_200_000


def accuracy(rank1: float, *, mean_precision: float | None = None) -> Accuracy:
    rank1 = min(max(rank1, 0.0), 1.0)
    return Accuracy(
        rank1=rank1,
        rank5=min(1.0, rank1 * 1.3),
        map=rank1 * 0.62 if mean_precision is None else mean_precision,
        minp=rank1 * 0.3,
        queries=144,
    )


def use(images: int, *, dataset: str = "pedestrians", generated: bool = True) -> SiloUse:
    return SiloUse(
        dataset=dataset,
        generated=generated,
        train_images=images,
        train_identities=images // 6,
        queries=144,
        gallery=900,
    )


def round_of(
    number: int, evaluations: dict[str, dict[ModelKind, Accuracy]], *, traffic: bool = True
) -> RoundResult:
    silos = tuple(sorted(evaluations))
    distances = {silo: 0.1 + 0.05 * index + 0.3 / number for index, silo in enumerate(silos)}
    size_bytes = UPDATE_BYTES * len(silos) if traffic else 0
    return RoundResult(
        number=number,
        model_digest=f"{number:064x}",
        participants=silos,
        weights={silo: d / sum(distances.values()) for silo, d in distances.items()}
        if traffic
        else {},
        cosine_distances=distances if traffic else {},
        phase_seconds={"collecting": 10.0, "aggregating": 0.5},
        upload_bytes=size_bytes,
        download_bytes=2 * size_bytes,
        evaluations=evaluations,
    )


def cell(
    method: str,
    seed: int,
    rounds: tuple[RoundResult, ...],
    *,
    scenario: str = "by-dataset",
    scenario_kind: ScenarioKind = "by-dataset",
    kind: CellKind = "federated",
    silos: dict[str, SiloUse] | None = None,
) -> CellResult:
    names = sorted({silo for one in rounds for silo in one.evaluations})
    return CellResult(
        bench="made-up",
        method=method,
        scenario=scenario,
        scenario_kind=scenario_kind,
        seed=seed,
        kind=kind,
        transport="local",
        plan=f'name = "{method}"\n',
        silos={name: use(100) for name in names} if silos is None else silos,
        untrained={},
        rounds=rounds,
        seconds=60.0 + seed,
        versions={"fedreid": "0.1.0", "torch": "2.15.0"},
    )


def simple(
    method: str,
    seed: int,
    figures: dict[str, dict[ModelKind, float]],
    *,
    kind: CellKind = "federated",
    scenario: str = "by-dataset",
    scenario_kind: ScenarioKind = "by-dataset",
) -> CellResult:
    """A cell of one round whose rank-1 and mAP are both the given figures."""
    evaluations = {
        silo: {model: accuracy(value, mean_precision=value) for model, value in models.items()}
        for silo, models in figures.items()
    }
    return cell(
        method,
        seed,
        (round_of(1, evaluations, traffic=kind == "federated"),),
        kind=kind,
        scenario=scenario,
        scenario_kind=scenario_kind,
    )


def plausible(
    *,
    seeds: int = 5,
    rounds: int = 20,
    scenarios: tuple[ScenarioKind, ...] = ("by-dataset", "by-camera"),
    methods: tuple[str, ...] = tuple(METHODS),
    dataset: str = "pedestrians",
) -> list[CellResult]:
    """Every method and both baselines in every scenario, with noise drawn from the seed."""
    cells = []
    for scenario in scenarios:
        images = CAMERA_SILOS if scenario == "by-camera" else DATASET_SILOS
        silos = {name: use(count, dataset=dataset) for name, count in images.items()}
        for seed in range(seeds):
            for method in methods:
                cells.append(_federated(method, seed, rounds, scenario, silos))
            for kind, level in BASELINES.items():
                cells.append(_baseline(kind, level, seed, rounds, scenario, silos))
    return cells


def _federated(
    method: str, seed: int, rounds: int, scenario: ScenarioKind, silos: dict[str, SiloUse]
) -> CellResult:
    level, wobble = METHODS[method]
    draw = np.random.default_rng([seed, *method.encode(), *scenario.encode()])
    shift = draw.normal(0.0, 0.008)
    done = []
    for number in range(1, rounds + 1):
        rise = 1.0 - math.exp(-5.0 * number / rounds)
        evaluations: dict[str, dict[ModelKind, Accuracy]] = {}
        for index, silo in enumerate(silos):
            end = level + shift - 0.04 * index
            value = 0.12 + (end - 0.12) * rise + draw.normal(0.0, wobble)
            evaluations[silo] = {
                "global": accuracy(value),
                "local": accuracy(value + 0.03 + draw.normal(0.0, wobble / 2)),
            }
        done.append(round_of(number, evaluations))
    made = cell(method, seed, tuple(done), scenario=scenario, scenario_kind=scenario, silos=silos)
    untrained = {silo: accuracy(0.12) for silo in silos}
    return msgspec.structs.replace(made, untrained=untrained)


def _baseline(
    kind: CellKind,
    level: float,
    seed: int,
    rounds: int,
    scenario: ScenarioKind,
    silos: dict[str, SiloUse],
) -> CellResult:
    draw = np.random.default_rng([seed, *kind.encode()])
    model: ModelKind = "standalone" if kind == "standalone" else "global"
    evaluations: dict[str, dict[ModelKind, Accuracy]] = {
        silo: {model: accuracy(level - 0.05 * index + draw.normal(0.0, 0.01))}
        for index, silo in enumerate(silos)
    }
    last = round_of(rounds, evaluations, traffic=False)
    return cell(
        kind, seed, (last,), scenario=scenario, scenario_kind=scenario, kind=kind, silos=silos
    )
