"""How accurate is each method of a scenario, in the papers' layout and beside their figures?

Figures are percent, of the last round, mean ± standard deviation over seeds. A dash is a figure
that was not measured.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import get_args

from benchmark.cells import SiloUse
from benchmark.finished import Grid, at_the_end, mean_of_silos
from benchmark.published import DATASETS, PUBLISHED, SOURCE, PublishedRow
from benchmark.results import Accuracy, Metric, ModelKind
from benchmark.statistics import Spread, spread
from benchmark.tables import Column, Entry, Row, Table, deviation, points

NOT_COMPARABLE = "not comparable: generated images"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """A method's model: rank-1 and mAP over seeds, by silo, then their mean over silos."""

    method: str
    model: ModelKind
    federated: bool
    seeds: int
    figures: tuple[tuple[Spread | None, Spread | None], ...]


def accuracy_table(grid: Grid, scenario: str) -> Table:
    """The papers' layout: a line per method and model, a column per silo, published lines last."""
    titles = (*grid.silos(scenario), "mean", "seeds")
    published = _published_rows(grid, scenario)
    remarks = [_presence(grid, scenario)]
    if grid.kind(scenario) != "by-dataset":
        remarks.append("All silos share the dataset's test set, and so a global model's figures.")
    if published:
        remarks.append(f"{_PUBLISHED_REMARK} {_PARENTHESES_REMARK}")
    return Table(
        title="Accuracy",
        lead="Rank-1 and, below it, mAP on each silo's test set after the last round, never "
        "the best one; mean ± standard deviation over seeds, in percent. Marked is the highest "
        "rank-1 of a federated method.",
        head="method",
        columns=tuple(Column(title=title) for title in titles),
        rows=(_images_row(grid, scenario), *_accuracy_rows(grid, scenario), *published),
        remarks=tuple(remarks),
    )


def _accuracy_rows(grid: Grid, scenario: str) -> list[Row]:
    lines = [
        _line(grid, scenario, method, model)
        for method in grid.methods(scenario)
        for model in grid.models(scenario, method)
    ]
    columns = zip(*(line.figures for line in lines if line.federated), strict=True)
    tops = [
        max((rank1.mean for rank1, _ in column if rank1 is not None), default=None)
        for column in columns
    ]
    return [
        Row(
            name=line.method,
            note=line.model if line.federated else "baseline",
            entries=(*_accuracy_entries(line, tops), Entry(text=str(line.seeds))),
        )
        for line in lines
    ]


def _line(grid: Grid, scenario: str, method: str, model: ModelKind) -> _Line:
    cells = grid.of_method(scenario, method)
    figures = []
    for silo in grid.silos(scenario):
        found = [at_the_end(cell, silo, model) for cell in cells]
        figures.append((_over_seeds(found, "rank1"), _over_seeds(found, "map")))
    of_all = [
        spread(mean_of_silos(cell, model, metric) for cell in cells) for metric in get_args(Metric)
    ]
    return _Line(
        method=method,
        model=model,
        federated=cells[0].kind == "federated",
        seeds=len(cells),
        figures=(*figures, (of_all[0], of_all[1])),
    )


def _over_seeds(found: Iterable[Accuracy | None], metric: Metric) -> Spread | None:
    return spread(None if accuracy is None else getattr(accuracy, metric) for accuracy in found)


def _accuracy_entries(line: _Line, tops: Sequence[float | None]) -> list[Entry]:
    entries = []
    for place, (rank1, mean_precision) in enumerate(line.figures):
        if rank1 is None or mean_precision is None:
            entries.append(Entry())
            continue
        fewer = f"n = {rank1.n}" if rank1.n < line.seeds else ""
        below = (points(mean_precision.mean), deviation(mean_precision), fewer)
        entries.append(
            Entry(
                text=points(rank1.mean),
                beside=deviation(rank1),
                below=" ".join(part for part in below if part),
                best=line.federated and rank1.mean == tops[place],
            )
        )
    return entries


def _images_row(grid: Grid, scenario: str) -> Row:
    entries = []
    for silo in grid.silos(scenario):
        use = _use(grid, scenario, silo)
        named = "real" if use.dataset == silo else f"real: {_titled(use.dataset)}"
        below = "generated" if use.generated else named
        entries.append(Entry(text=f"{use.train_images:,}", below=below))
    return Row(
        name="train images",
        note="what was present",
        entries=(*entries, Entry(text=""), Entry(text="")),
    )


def _presence(grid: Grid, scenario: str) -> str:
    uses = [(silo, _use(grid, scenario, silo)) for silo in grid.silos(scenario)]
    real = [f"{_titled(use.dataset)} ({silo})" for silo, use in uses if not use.generated]
    made = [silo for silo, use in uses if use.generated]
    sentences = []
    if real:
        sentences.append(f"Really present: {', '.join(real)}.")
    if made:
        sentences.append(f"Generated images, not those of any dataset: {', '.join(made)}.")
    return " ".join(sentences)


def _use(grid: Grid, scenario: str, silo: str) -> SiloUse:
    return next(cell.silos[silo] for cell in grid.in_scenario(scenario) if silo in cell.silos)


def _titled(dataset: str) -> str:
    return DATASETS.get(dataset, dataset)


_PUBLISHED_REMARK = (
    f"Published: {SOURCE}; ResNet-50 from ImageNet weights, and the best 3 of 30 tests on the "
    "test set. Ours are those of the last round."
)
_PARENTHESES_REMARK = "Those in parentheses can't be compared: our images under them are generated."


def _published_rows(grid: Grid, scenario: str) -> list[Row]:
    """Published lines in the table's columns; none if no silo has a dataset of theirs.

    Outside by-dataset the papers have one test set, that of the whole dataset: it stands under
    the mean.
    """
    uses = [_use(grid, scenario, silo) for silo in grid.silos(scenario)]
    published = PUBLISHED[grid.kind(scenario)]
    matched = [use for use in uses if use.dataset in published[0].rank1]
    if not matched:
        return []
    rows = []
    for row in published:
        if grid.kind(scenario) == "by-dataset":
            entries = [*(_published_beside(row, use) for use in uses), Entry()]
        else:
            entries = [*(Entry() for _ in uses), _published_beside(row, matched[0])]
        rows.append(
            Row(
                name=row.name,
                note=_comparability(matched),
                entries=(*entries, Entry(text="")),
                tone="published",
            )
        )
    return rows


def _comparability(matched: Sequence[SiloUse]) -> str:
    generated = sum(use.generated for use in matched)
    if not generated:
        return "published"
    if generated == len(matched):
        return f"published, {NOT_COMPARABLE}"
    return "published, in ( ) not comparable"


def _published_beside(row: PublishedRow, use: SiloUse) -> Entry:
    """In parentheses where ours are of generated images."""
    found = _published_entry(row, use.dataset)
    if not use.generated or use.dataset not in row.rank1:
        return found
    return Entry(text=f"({found.text})", below=f"({found.below})" if found.below else "")


def _published_entry(row: PublishedRow, dataset: str) -> Entry:
    if dataset not in row.rank1:
        return Entry()
    return Entry(text=points(row.rank1[dataset]), below=points(row.map[dataset]) if row.map else "")


def published_table(grid: Grid, scenario: str) -> Table | None:
    """The published figures by themselves, where no silo has one of the papers' datasets."""
    if _published_rows(grid, scenario):
        return None
    published = PUBLISHED[grid.kind(scenario)]
    datasets = [name for name in DATASETS if name in published[0].rank1]
    return Table(
        title="Published figures, for reference",
        lead="None of these datasets was present: the figures above are of other images and can't "
        "be compared with these. Rank-1 and, where published, mAP below it.",
        head="method",
        columns=tuple(Column(title=DATASETS[name]) for name in datasets),
        rows=tuple(
            Row(
                name=row.name,
                note="published",
                entries=tuple(_published_entry(row, name) for name in datasets),
                tone="published",
            )
            for row in published
        ),
        remarks=(_PUBLISHED_REMARK,),
    )
