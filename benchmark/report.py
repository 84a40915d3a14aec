"""How is a run shown to a person? A folder with report.html, report.json and the pictures.

The page holds everything it shows, so that it can be mailed as one file.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from benchmark import plots, results
from benchmark.checks import judged
from benchmark.pages import PAGE_NAME, Picture, picture, template
from benchmark.results import DEPLOYABLE, MODELS, ModelKind, Results
from benchmark.theme import THEMES, save
from fedreid.files import make_folder, write_bytes
from fedreid.pages.page import Tile, duration_text, percent, size_text
from fedreid.pictures.ranked import RankedQuery, ranked_picture

DATA_NAME = "report.json"

LAST_ROUNDS = 5
"""Rounds whose spread stands beside the last figure: one round alone may be lucky."""


_FIGURES: tuple[tuple[str, str, plots.Draw, str], ...] = (
    (
        "accuracy-rank1",
        "Rank-1 over rounds",
        plots.rank1_over_rounds,
        "How often the first gallery image shows the right person. Each panel is one silo, "
        "measured on its own test set. Where the blue or orange line ends above the green one, "
        "the silo gains from taking part; the dashed line is where everybody started.",
    ),
    (
        "accuracy-map",
        "Mean average precision over rounds",
        plots.map_over_rounds,
        "How far up all images of the right person stand, not only the first. Panels and lines "
        "are those of rank-1 above.",
    ),
    (
        "weights",
        "Who shapes the model",
        plots.weights_over_rounds,
        "Left, how much each silo counts in the aggregate. Right, how far its model moved in "
        "local training, which the cosine weighting is made from. Distances that shrink mean "
        "that local training finds less and less to change.",
    ),
    (
        "distillation",
        "What distillation adds",
        plots.distillation_over_rounds,
        "How far the aggregate is from the mean of its teachers on the public images, before "
        "and after distillation at the coordinator. The longer the line between the two, the more "
        "was learnt.",
    ),
    (
        "cost",
        "What a round costs",
        plots.cost_over_rounds,
        "Left, model bytes on the wire, all silos together. Right, where the time goes: "
        "collecting spans local training at the silos, the rest is the coordinator's own work.",
    ),
)
_RANKED = (
    "ranked",
    "What the global model finds",
    "Each row is one query and its best gallery images, the nearest first. Green with a tick is "
    "the same person, seen by another camera; red with a cross is somebody else. "
    "The number below is the cosine.",
)


def write_report(measured: Results, out: Path, *, ranked: Sequence[RankedQuery] = ()) -> Path:
    """Judge the results and write the report's folder; returns the path of the page.

    ``ranked`` are the queries of the ranked-retrieval picture. Without any, one that an earlier
    report left in the folder stays: its rows are not in report.json.

    Raises:
        StorageError: the folder can't be written.
        DatasetError: an image of ``ranked`` can't be read.
    """
    checked = judged(measured)
    make_folder(out)
    results.write(out / DATA_NAME, checked)
    pictures = _pictures(checked, out, ranked)
    spreads = {name: _spreads(checked, name) for name in checked.silos}
    page = template("report.html.j2").render(
        results=checked,
        pictures=pictures,
        tiles=_tiles(checked),
        models=MODELS,
        spreads=spreads,
        any_spread=any(spreads.values()),
        last_rounds=LAST_ROUNDS,
        any_distillation=any(r.distillation_loss_after is not None for r in checked.rounds),
    )
    write_bytes(out / PAGE_NAME, page.encode())
    return out / PAGE_NAME


def _pictures(checked: Results, out: Path, ranked: Sequence[RankedQuery]) -> list[Picture]:
    pictures = []
    for name, title, draw, caption in _FIGURES:
        for theme in THEMES:
            figure = draw(checked, theme)
            if figure is not None:
                save(figure, out / f"{name}{theme.suffix}.png")
        if figure is not None:
            pictures.append(picture(out, name, title=title, caption=caption))
    name, title, caption = _RANKED
    ranked_paths = [out / f"{name}{theme.suffix}.png" for theme in THEMES]
    if ranked:
        for path, theme in zip(ranked_paths, THEMES, strict=True):
            ranked_picture(ranked, path, theme=theme)
    if all(path.exists() for path in ranked_paths):
        pictures.append(picture(out, name, title=title, caption=caption))
    return pictures


def _tiles(checked: Results) -> list[Tile]:
    rounds = checked.rounds
    tiles = [
        Tile(
            label=f"Mean {label}, global model",
            value=percent(_mean(checked, "global", metric)),
            note=f"untrained {percent(_mean(checked, 'untrained', metric))}",
        )
        for metric, label in (("rank1", "rank-1"), ("map", "mAP"))
    ]
    if rounds:
        moved = sum(one.upload_bytes + one.download_bytes for one in rounds)
        spent = sum(sum(one.phase_seconds.values()) for one in rounds)
        tiles += [
            Tile(
                label="Traffic per round, all silos",
                value=size_text(moved / len(rounds)),
                note=f"{size_text(moved)} in the whole run",
            ),
            Tile(
                label="Time per round",
                value=duration_text(spent / len(rounds)),
                note=f"{duration_text(spent)} in the whole run",
            ),
        ]
    return tiles


def _mean(checked: Results, model: ModelKind, metric: str) -> float | None:
    found = [silo.accuracy(model) for _, silo in sorted(checked.silos.items())]
    known = [getattr(accuracy, metric) for accuracy in found if accuracy is not None]
    return fmean(known) if known else None


def _spreads(checked: Results, silo: str) -> dict[ModelKind, tuple[float, float]]:
    """Mean and standard deviation of rank-1 over the last rounds, by model."""
    spreads: dict[ModelKind, tuple[float, float]] = {}
    for model in DEPLOYABLE:
        of_silo = [one.evaluations.get(silo, {}) for one in checked.rounds]
        values = [found[model].rank1 for found in of_silo if model in found][-LAST_ROUNDS:]
        if len(values) > 1:
            spreads[model] = (fmean(values), stdev(values))
    return spreads
