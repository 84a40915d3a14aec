"""How do figures, measurements and matches look on a terminal?"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fedreid.console import print_json, print_table, say
from fedreid.datasets.checks import Unreadable
from fedreid.errors import UsageError
from silo_agent.budget import PrivacyBudget
from silo_agent.config import Folders, load_config, load_membership
from silo_agent.outbox import FinishedRound, ModelFigures, Outbox
from silo_agent.using.advice import MODELS, Advice, advise, newest_of, spread

if TYPE_CHECKING:  # they need torch, and a report does not
    from silo_agent.using.embedding import Embedded
    from silo_agent.using.evaluating import Measurement
    from silo_agent.using.exporting import Exported
    from silo_agent.using.searching import Found

QUERIES_PRINTED = 10
"""Tables of a search on a terminal; files take every query."""


def print_report(folders: Folders, *, as_json: bool) -> None:
    """Standalone, local and global model side by side, and the one to deploy with the reason.

    Raises:
        IdentityMissing: the folder is no agent's.
        UsageError: no model has been measured yet.
    """
    load_membership(folders)
    privacy = PrivacyBudget(folders, load_config(folders).policy.privacy).statement()
    outbox = Outbox(folders)
    last = outbox.last()
    if last is None:
        raise UsageError(
            "This silo has not trained a round yet",
            next_step="Take part first: silo-agent run.",
        )
    figures = outbox.figures(last)
    if not figures:
        raise UsageError(
            f"No model of {last.run} has been measured on this silo yet",
            why="its plan has not asked for it so far, or no query has a match in another camera",
            next_step="Measure one now: silo-agent evaluate --model local.",
        )
    advice = advise(figures)
    if as_json:
        print_json({**_report_tree(last, figures, advice), "privacy": msgspec.to_builtins(privacy)})
        return
    _print_models(last.run, figures, advice)
    _print_history(figures)
    say(privacy.sentence())
    say(f"Deploy the {advice.model} model: {advice.why}")
    say(f"Next: silo-agent model export --model {advice.model} --format onnx --out reid.onnx")


def _print_models(run: str, figures: Sequence[ModelFigures], advice: Advice) -> None:
    """A column per model, which fits a narrow terminal; the one to deploy is marked."""
    newest = newest_of(figures)
    results = [one.result for one in newest.values()]
    over = [spread(figures, kind) for kind in newest]
    rows = [
        ("made by round", *(str(one.round) for one in newest.values())),
        ("rank-1", *(f"{result.rank1:.1%}" for result in results)),
        ("rank-5", *(f"{result.rank5:.1%}" for result in results)),
        ("rank-10", *(f"{result.rank10:.1%}" for result in results)),
        ("mAP", *(f"{result.map:.1%}" for result in results)),
        ("mINP", *(f"{result.minp:.1%}" for result in results)),
        ("queries", *(str(result.queries) for result in results)),
        (
            "mAP, last rounds",
            *(f"{100 * one.mean:.1f} ± {100 * one.deviation:.1f} of {one.rounds}" for one in over),
        ),
    ]
    columns = [f"{kind}, deploy" if kind == advice.model else kind for kind in newest]
    print_table(f"Models of {run} on this silo's own query and gallery", ("", *columns), rows)


def _print_history(figures: Sequence[ModelFigures]) -> None:
    maps = {(one.round, one.result.model): one.result.map for one in figures}
    rounds = sorted({number for number, _ in maps})
    if len(rounds) < 3:
        return
    rows = [
        (
            str(number),
            *(f"{maps[number, kind]:.1%}" if (number, kind) in maps else "" for kind in MODELS),
        )
        for number in rounds
    ]
    print_table("mAP over the last measured rounds", ("round", *MODELS), rows)


def _report_tree(
    last: FinishedRound, figures: Sequence[ModelFigures], advice: Advice
) -> dict[str, object]:
    return {
        "run": last.run,
        "round": last.round,
        "deploy": advice.model,
        "why": advice.why,
        "models": [
            {
                **msgspec.to_builtins(one.result),
                "of_round": one.round,
                "map_last_rounds": {
                    "mean": spread(figures, kind).mean,
                    "deviation": spread(figures, kind).deviation,
                    "rounds": spread(figures, kind).rounds,
                },
            }
            for kind, one in newest_of(figures).items()
        ],
        "history": [
            {"of_round": one.round, "model": one.result.model, "map": one.result.map,
             "rank1": one.result.rank1}
            for one in figures
        ],
    }  # fmt: skip


def print_measurement(
    measured: "Measurement", dataset: Path, *, picture: Path | None, as_json: bool
) -> None:
    """One model's figures on one test set."""
    metrics = measured.metrics
    ratios = {
        "rank1": metrics.rank(1),
        "rank5": metrics.rank(5),
        "rank10": metrics.rank(10),
        "map": metrics.map,
        "minp": metrics.minp,
    }
    if as_json:
        print_json(
            {
                "model": measured.model.to_builtins(),
                "dataset": str(dataset),
                "reranked": measured.reranked,
                **ratios,
                "queries": metrics.num_valid,
                "query_images": measured.num_query,
                "gallery_images": measured.num_gallery,
                "picture": str(picture) if picture else "",
            }
        )
        return
    print_table(
        f"{_capital(measured.model.named())} on {dataset}"
        + (", re-ranked" if measured.reranked else ""),
        ("rank-1", "rank-5", "rank-10", "mAP", "mINP", "queries", "gallery images"),
        [
            (
                *(f"{ratio:.1%}" for ratio in ratios.values()),
                str(metrics.num_valid),
                str(measured.num_gallery),
            )
        ],
    )
    without = measured.num_query - metrics.num_valid
    if without:
        say(f"{without} queries have no match in another camera and are left out of every mean")
    if picture:
        say(f"ranked lists of {len(measured.shown)} queries: {picture}")


def print_export(exported: "Exported", *, as_json: bool) -> None:
    """What was written, and what its check found."""
    if as_json:
        print_json(
            {
                "path": str(exported.path),
                "note": str(exported.note),
                "file_bytes": exported.file_bytes,
                "largest_difference": exported.largest_difference,
                "images_checked": exported.images_checked,
            }
        )
        return
    say(f"{exported.path} holds {exported.model.named()}, {exported.file_bytes} bytes")
    say(
        f"checked: loaded back and run on {exported.images_checked} images, its embeddings differ "
        f"from the original's by at most {exported.largest_difference:.1g}"
    )
    say(f"what it takes and gives: {exported.note}")


def print_embedded(embedded: "Embedded", out: Path, *, as_json: bool) -> None:
    """How many images were embedded, and which could not be."""
    images, width = embedded.embeddings.values_ND.shape
    if as_json:
        print_json(
            {
                "path": str(out),
                "images": images,
                "width": width,
                "model": embedded.embeddings.provenance.to_builtins(),
                "skipped": [{"path": str(one.path), "why": one.why} for one in embedded.skipped],
            }
        )
        return
    _print_skipped(embedded.skipped)
    say(f"{out} holds {images} embeddings of {width} values by "
        f"{embedded.embeddings.provenance.named()}")  # fmt: skip


def print_found(found: "Found", *, table: Path | None, picture: Path | None, as_json: bool) -> None:
    """Each query's matches, best first."""
    if as_json:
        print_json(
            {
                "model": found.model.to_builtins(),
                "gallery_images": found.num_gallery,
                "queries": [
                    {
                        "query": one.query,
                        "matches": [
                            {"path": match.path, "similarity": match.similarity}
                            for match in one.matches
                        ],
                    }
                    for one in found.ranked
                ],
                "skipped": [{"path": str(one.path), "why": one.why} for one in found.skipped],
            }
        )
        return
    _print_skipped(found.skipped)
    for one in found.ranked[:QUERIES_PRINTED]:
        rows = [
            (str(rank), f"{match.similarity:.3f}", _short(match.path))
            for rank, match in enumerate(one.matches, start=1)
        ]
        print_table(_short(one.query), ("rank", "similarity", "image"), rows)
    if (more := len(found.ranked) - QUERIES_PRINTED) > 0:
        say(f"and {more} more queries; --out TABLE.csv takes them all")
    for path in (table, picture):
        if path:
            say(f"written: {path}")


def _print_skipped(skipped: Sequence[Unreadable]) -> None:
    for one in skipped:
        say(f"skipped: {one.path}: {one.why}")
    if skipped:
        say(f"{len(skipped)} image files can't be read and are skipped")


def _short(path: str) -> str:
    """As seen from the working folder, where it lies below."""
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
