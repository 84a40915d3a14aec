"""A run that never happened, with plausible numbers from a formula."""

import math

from benchmark.results import Accuracy, ModelKind, Results, RoundResult, SiloResult

SILOS = {"station": 1080, "mall": 540, "campus": 270, "depot": 90}
"""Training images."""

_CEILING: dict[ModelKind, dict[str, float]] = {
    "global": {"station": 0.66, "mall": 0.70, "campus": 0.64, "depot": 0.58},
    "local": {"station": 0.72, "mall": 0.73, "campus": 0.66, "depot": 0.60},
    "standalone": {"station": 0.70, "mall": 0.62, "campus": 0.49, "depot": 0.31},
}


def accuracy(rank1: float) -> Accuracy:
    return Accuracy(
        rank1=rank1, rank5=min(1.0, rank1 * 1.3), map=rank1 * 0.62, minp=rank1 * 0.3, queries=144
    )


def _at(model: ModelKind, silo: str, number: int, rounds: int) -> Accuracy:
    wobble = 0.015 * math.sin(1.7 * number + len(silo) + 2.0 * len(model))
    rise = 1.0 - math.exp(-4.0 * number / rounds)
    return accuracy(0.14 + (_CEILING[model][silo] - 0.14) * rise + wobble)


def _round(number: int, rounds: int, *, distilled: bool, size_bytes: int) -> RoundResult:
    distances = {
        silo: (0.35 + 0.05 * index) * math.exp(-1.5 * number / rounds) + 0.05
        for index, silo in enumerate(sorted(SILOS))
    }
    participants = tuple(sorted(SILOS))
    before = 0.21 * math.exp(-2.0 * number / rounds) + 0.03 if distilled else None
    return RoundResult(
        number=number,
        model_digest=f"{number * 0x9E3779B97F4A7C15 % 2**256:064x}"[::-1],
        participants=participants,
        weights={silo: distances[silo] / sum(distances.values()) for silo in participants},
        cosine_distances=distances,
        phase_seconds={
            "collecting": 11.0 + 2.0 * math.sin(number),
            "aggregating": 0.4,
            "distilling": 3.1 if distilled else 0.0,
            "evaluating": 4.0,
            "publishing": 0.2,
        },
        upload_bytes=4 * size_bytes,
        download_bytes=4 * size_bytes,
        distillation_loss_before=before,
        distillation_loss_after=None if before is None else before * 0.7,
        evaluations={
            silo: {model: _at(model, silo, number, rounds) for model in _CEILING}
            for silo in participants
        },
    )


def made_up(rounds: int = 20, *, distilled: bool = True) -> Results:
    done = tuple(
        _round(number, rounds, distilled=distilled, size_bytes=6_200_000)
        for number in range(1, rounds + 1)
    )
    silos = {
        silo: SiloResult(
            images=images,
            identities=images // 6,
            colours=accuracy(0.05),
            untrained=accuracy(0.14),
            standalone=_at("standalone", silo, rounds, rounds),
            local=_at("local", silo, rounds, rounds),
            global_=_at("global", silo, rounds, rounds),
        )
        for silo, images in SILOS.items()
    }
    return Results(
        federation="city-cameras",
        run="demo",
        seed=7,
        plan='name = "demo"\nrounds = 20\nseed = 7\n\n[backbone]\nname = "mobilenet_v3_small"\n',
        silos=silos,
        rounds=done,
        versions={"fedreid": "0.1.0", "python": "3.11.7", "torch": "2.15.0", "numpy": "2.4.6"},
    )
