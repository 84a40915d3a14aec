"""How is a running federation shown to a person? One HTML page that can be mailed.

It holds everything that it shows and fetches nothing. Whoever needs the numbers themselves has
them from ``coordinator round list --json`` and its like.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import fedreid
from coordinator.gathered import PUBLISHED, Figure, Gathered, Part, Round
from fedreid.console import instant
from fedreid.contract import EvaluationResult, ModelKind
from fedreid.files import write_bytes
from fedreid.limits import MIB
from fedreid.pages.chart import COLOURS, Chart, Points, bar_chart, line_chart
from fedreid.pages.page import Tile, duration_text, percent, size_text, template
from fedreid.pictures.theme import DARK, LIGHT

MODELS: tuple[ModelKind, ...] = ("standalone", "local", "global")
_PHASES = ("collecting", "aggregating", "distilling", "evaluating", "publishing")
_TROUBLES_SHOWN = 200

ByRound = Mapping[int, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class SiloRow:
    """What the page says of one silo."""

    name: str
    state: str
    reason: str
    last_seen: str
    certificate_ends: str
    agent_version: str
    accepted: int
    invited: int
    last: Part | None
    """Its newest accepted update."""
    figures: dict[ModelKind, EvaluationResult]
    """The newest of each model."""

    @property
    def best(self) -> ModelKind | None:
        """The model with the highest mAP, if there are several to compare."""
        if len(self.figures) < 2:
            return None
        return max(self.figures, key=lambda model: self.figures[model].map)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trouble:
    """An update that did not count in full, and why."""

    round: int
    silo: str
    what: str
    why: str


def write_report(gathered: Gathered, out: Path) -> None:
    """Write the page.

    Raises:
        StorageError: it can't be written.
    """
    write_bytes(out, page_of(gathered).encode())


def page_of(gathered: Gathered) -> str:
    """The page's HTML."""
    troubles = troubles_of(gathered.rounds)
    return template("run.html.j2", package="coordinator").render(
        it=gathered,
        at=instant(gathered.at_s),
        version=fedreid.__version__,
        tiles=_tiles(gathered),
        charts=[chart for chart in _charts(gathered) if chart is not None],
        silos=silo_rows(gathered),
        own=_newest(one for one in gathered.figures if not one.silo).get("global"),
        models=MODELS,
        troubles=troubles[:_TROUBLES_SHOWN],
        troubles_left=len(troubles[_TROUBLES_SHOWN:]),
        any_distillation=any(one.loss_after is not None for one in gathered.rounds),
        light=LIGHT,
        dark=DARK,
    )


def silo_rows(gathered: Gathered) -> list[SiloRow]:
    """Every silo of the registry, by name."""
    accepted: dict[str, int] = defaultdict(int)
    invited: dict[str, int] = defaultdict(int)
    last: dict[str, Part] = {}
    for one in gathered.rounds:
        for silo in one.invited:
            invited[silo] += 1
        for part in one.parts:
            accepted[part.silo] += 1
            last[part.silo] = part
    return [
        SiloRow(
            name=silo.name,
            state=silo.state,
            reason=silo.reason,
            last_seen=instant(silo.last_seen_s) if silo.last_seen_s else "–",
            certificate_ends=instant(silo.certificate_ends_s) if silo.certificate_ends_s else "–",
            agent_version=silo.agent_version,
            accepted=accepted[silo.name],
            invited=invited[silo.name],
            last=last.get(silo.name),
            figures=_newest(one for one in gathered.figures if one.silo == silo.name),
        )
        for silo in gathered.members
    ]


def troubles_of(rounds: Iterable[Round]) -> list[Trouble]:
    """What was refused, declined or flagged, newest first."""
    found = []
    for one in rounds:
        for silo, reason in one.refused.items():
            found.append(Trouble(round=one.number, silo=silo, what="refused", why=reason))
        for silo, key in one.declined.items():
            found.append(Trouble(round=one.number, silo=silo, what="declined", why=f"policy {key}"))
        for part in one.parts:
            if part.flags:
                why = ", ".join(flag.replace("_", " ") for flag in part.flags)
                found.append(Trouble(round=one.number, silo=part.silo, what="flagged", why=why))
    return sorted(found, key=lambda trouble: (-trouble.round, trouble.silo))


def _newest(figures: Iterable[Figure]) -> dict[ModelKind, EvaluationResult]:
    found = {one.result.model: one.result for one in sorted(figures, key=lambda one: one.round)}
    return {model: found[model] for model in MODELS if model in found}


def _tiles(gathered: Gathered) -> list[Tile]:
    maps = _by_silo(gathered.figures, "map")
    published = [one for one in gathered.rounds if one.phase == PUBLISHED]
    ended = [one for one in gathered.rounds if one.phase in (PUBLISHED, "skipped", "failed")]
    tiles = [
        Tile(
            label="Models published",
            value=f"{gathered.models_published} of {gathered.models_planned}",
            note=f"{len(ended) - len(published)} rounds without a model",
        ),
        Tile(
            label="Mean mAP, global model",
            value=percent(_mean_at(maps, last=True)),
            note=f"first measured {percent(_mean_at(maps, last=False))}",
        ),
    ]
    if published:
        moved = sum(one.upload_bytes + one.download_bytes for one in published)
        tiles += [
            Tile(
                label="Time per round",
                value=duration_text(fmean(one.seconds for one in published)),
                note=f"{duration_text(sum(one.seconds for one in ended))} in all rounds",
            ),
            Tile(
                label="Traffic per round, all silos",
                value=size_text(moved / len(published)),
                note=f"{size_text(moved)} in all published rounds",
            ),
        ]
    return tiles


def _charts(gathered: Gathered) -> Iterable[Chart | None]:
    yield line_chart(
        "Is it learning?",
        "Mean average precision of the published model on each silo's own test set. Round 0 is "
        "the model that the run started from.",
        shown_series(_by_silo(gathered.figures, "map")),
        text=lambda value: f"{100 * value:.3g} %",
    )
    yield line_chart(
        "Who shapes the model",
        "Each silo's share of the aggregate.",
        shown_series(_weights(gathered.rounds)),
        text=lambda value: f"{100 * value:.3g} %",
    )
    yield bar_chart(
        "Where the time goes",
        "Seconds in each phase. Collecting spans local training at the silos, the rest is the "
        "coordinator's own work.",
        _phases(gathered.rounds),
        text=duration_text,
    )
    yield bar_chart(
        "What travels",
        "Model bytes on the wire, all silos together.",
        {
            "download": [(one.number, one.download_bytes / MIB) for one in gathered.rounds],
            "upload": [(one.number, one.upload_bytes / MIB) for one in gathered.rounds],
        },
        text=lambda value: f"{value:.3g} MiB",
    )


def shown_series(by_silo: Mapping[str, ByRound]) -> dict[str, Points]:
    """A series for each silo; of more than there are colours, the lowest, mean and highest."""
    if len(by_silo) <= COLOURS:
        return {silo: sorted(found.items()) for silo, found in sorted(by_silo.items())}
    values: dict[int, list[float]] = defaultdict(list)
    for found in by_silo.values():
        for number, value in found.items():
            values[number].append(value)
    rounds = sorted(values)
    return {
        "mean of silos": [(number, fmean(values[number])) for number in rounds],
        "lowest": [(number, min(values[number])) for number in rounds],
        "highest": [(number, max(values[number])) for number in rounds],
    }


def _by_silo(figures: Iterable[Figure], metric: str) -> dict[str, dict[int, float]]:
    """Of the global model, by silo and round."""
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for one in figures:
        if one.silo and one.result.model == "global":
            found[one.silo][one.round] = getattr(one.result, metric)
    return found


def _mean_at(by_silo: Mapping[str, ByRound], *, last: bool) -> float | None:
    """Over the silos that measured the last, or first, round that any of them has measured."""
    rounds = {number for found in by_silo.values() for number in found}
    if not rounds:
        return None
    number = max(rounds) if last else min(rounds)
    return fmean(found[number] for found in by_silo.values() if number in found)


def _weights(rounds: Iterable[Round]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for one in rounds:
        if one.phase == PUBLISHED:
            for part in one.parts:
                found[part.silo][one.number] = part.weight
    return found


def _phases(rounds: Iterable[Round]) -> dict[str, Points]:
    rounds = list(rounds)
    return {
        phase: [
            (one.number, one.phase_seconds[phase]) for one in rounds if phase in one.phase_seconds
        ]
        for phase in _PHASES
        if any(phase in one.phase_seconds for one in rounds)
    }
