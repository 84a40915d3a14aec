"""Which tables tell how a scenario went: steadiness, comparisons, winners, cost?

Figures are percent, of the last round, mean ± standard deviation over seeds where not said
otherwise. A dash is a figure that was not measured.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import get_args

from benchmark.cells import CellResult
from benchmark.finished import Grid, mean_of_silos
from benchmark.published import BYTES_PER_SILO
from benchmark.results import DEPLOYABLE, Metric, ModelKind
from benchmark.statistics import (
    LAST_ROUNDS,
    PairedComparison,
    Unit,
    Unrest,
    compare,
    shared_models,
    spread,
    unrest,
)
from benchmark.tables import DASH, Column, Entry, Row, Table, deviation, gain, p_value, points
from fedreid.pages.page import duration_text, size_text


def steadiness_table(grid: Grid, scenario: str, reference: str) -> Table:
    """How much the global model still moves at the end, method by method."""
    methods = grid.methods(scenario, federated=True)
    unrests = {
        (method, metric): unrest(grid.of_method(scenario, method), "global", metric)
        for method in methods
        for metric in get_args(Metric)
    }
    against = unrests.get((reference, "rank1"))
    rows = []
    for method in methods:
        cells = grid.of_method(scenario, method)
        rank1 = unrests[method, "rank1"]
        last = spread(mean_of_silos(cell, "global", "rank1") for cell in cells)
        entries = (
            Entry() if last is None else Entry(text=points(last.mean), beside=deviation(last)),
            _level(rank1, len(cells)),
            _level(unrests[method, "map"], len(cells)),
            Entry() if rank1 is None else Entry(text=points(rank1.step)),
            _ratio(rank1, against),
            Entry() if rank1 is None else Entry(text=str(rank1.rounds)),
            Entry(text=str(len(cells))),
        )
        rows.append(Row(name=method, entries=entries))
    return Table(
        title="Steadiness of the global model",
        lead=f"Over the last {LAST_ROUNDS} or fewer measured rounds: the mean and, after ±, the "
        "fluctuation: the standard deviation over those rounds, averaged over silos and seeds. "
        "Change is the mean absolute difference between neighbouring measured rounds, in points. "
        "Only the first column's ± is over seeds.",
        head="method",
        columns=(
            Column(title="rank-1", note="last round"),
            Column(title="rank-1", note="last rounds"),
            Column(title="mAP", note="last rounds"),
            Column(title="change", note="of rank-1"),
            Column(title="fluctuation", note=f"÷ {reference}'s"),
            Column(title="rounds"),
            Column(title="seeds"),
        ),
        rows=tuple(rows),
    )


def _level(found: Unrest | None, seeds: int) -> Entry:
    if found is None:
        return Entry()
    return Entry(
        text=points(found.level.mean),
        beside=f"± {100 * found.fluctuation:.1f}",
        below=f"n = {found.level.n}" if found.level.n < seeds else "",
    )


def _ratio(found: Unrest | None, against: Unrest | None) -> Entry:
    if found is None or against is None or against.fluctuation == 0.0:
        return Entry()
    return Entry(text=f"{found.fluctuation / against.fluctuation:.2f}")


def comparison_table(grid: Grid, scenario: str, against: str) -> Table | None:
    """Every other federated method minus ``against``, paired by seed; None without any."""
    rows = [
        _comparison_row(grid, scenario, method, against, model)
        for method in grid.methods(scenario, federated=True)
        if method != against
        for model in shared_models(grid, scenario, method, against)
    ]
    if not rows or against not in grid.methods(scenario):
        return None
    return Table(
        title=f"Against {against}",
        lead=f"A method's figure minus {against}'s, mean over silos, in points: mean difference "
        "± standard deviation over seeds. Both tests are paired and two-sided; p is not corrected "
        "for the number of lines. Of n seeds the sign-flip test can't go below 2 / 2ⁿ: "
        "0.25 of three, 1/16 of five.",
        head="method",
        columns=(
            Column(title="mAP"),
            Column(title="p", note="t-test"),
            Column(title="p", note="sign flips"),
            Column(title="rank-1"),
            Column(title="p", note="t-test"),
            Column(title="p", note="sign flips"),
            Column(title="seeds"),
            Column(title="mAP", note="by silo and seed"),
        ),
        rows=tuple(rows),
        remarks=(
            "The last column spreads over every silo of every seed. Silos of a seed share their "
            "global model, and some their test set, so no test is made of it.",
        ),
    )


def _comparison_row(grid: Grid, scenario: str, method: str, against: str, model: ModelKind) -> Row:
    def found(metric: Metric, unit: Unit) -> PairedComparison:
        return compare(
            grid.cells, method, against, scenario=scenario, model=model, metric=metric, unit=unit
        )

    entries: list[Entry] = []
    for metric in ("map", "rank1"):
        test = found(metric, "seed").test
        entries += [
            gain(test.difference),
            Entry(text=p_value(test.t_p)),
            Entry(text=p_value(test.sign_flip_p)),
        ]
    by_silo = found("map", "silo")
    below = f"n = {len(by_silo.test.a)}" if by_silo.test.a else ""
    silos = gain(by_silo.test.difference)
    entries += [
        Entry(text=str(len(by_silo.seeds))),
        Entry(text=silos.text, beside=silos.beside, below=below),
    ]
    return Row(name=method, note=model, entries=tuple(entries))


def winner_table(grid: Grid, scenario: str) -> Table:
    """Which model each silo should deploy, counted over seeds."""
    silos = grid.silos(scenario)
    rows = []
    for method in grid.methods(scenario, federated=True):
        cells = grid.of_method(scenario, method)
        counts = [
            Counter(grid.winner(cell, silo) for cell in cells if silo in cell.silos)
            for silo in silos
        ]
        total = sum(counts, Counter[ModelKind | None]())
        entries = [*(_counted(one) for one in counts), _counted(total)]
        rows.append(Row(name=method, entries=(*entries, Entry(text=str(len(cells))))))
    return Table(
        title="Which model to deploy",
        lead="How often each of standalone, local and global was a silo's best after the last "
        "round: by mAP, then rank-1; a tie goes to the one that is cheaper to have. Counted "
        "where all three were measured.",
        head="method",
        columns=tuple(Column(title=title) for title in (*silos, "all silos", "seeds")),
        rows=tuple(rows),
    )


def _counted(winners: Counter[ModelKind | None]) -> Entry:
    """``global 4`` above ``local 1``, the most frequent first."""
    found = [(model, winners[model]) for model in reversed(DEPLOYABLE) if winners[model]]
    if not found:
        return Entry()
    first, *others = sorted(found, key=lambda pair: -pair[1])
    return Entry(
        text=f"{first[0]} {first[1]}",
        below=", ".join(f"{model} {count}" for model, count in others),
    )


def cost_table(grid: Grid, scenario: str) -> Table:
    """Bytes on the wire and wall time of a whole run, means over seeds."""
    rows = []
    for method in grid.methods(scenario):
        cells = grid.of_method(scenario, method)
        federated = cells[0].kind == "federated"
        rows.append(
            Row(
                name=method,
                note="" if federated else "baseline",
                entries=(
                    Entry(text=_span([len(cell.rounds) for cell in cells]) if federated else DASH),
                    *(_size(cells, of) if federated else Entry() for of in _TRAFFIC),
                    _time(cells),
                    Entry(text=str(len(cells))),
                ),
            )
        )
    paper = f"{BYTES_PER_SILO / 1e9:g} GB, {size_text(BYTES_PER_SILO)}"
    return Table(
        title="What a run costs",
        lead="Model bytes of a whole run, payloads as sent, and wall time of a cell; means over "
        "seeds. Time ± is the standard deviation over seeds, on a machine that may have done "
        "other things as well.",
        head="method",
        columns=(
            Column(title="rounds"),
            Column(title="up", note="per silo"),
            Column(title="down", note="per silo"),
            Column(title="up", note="all silos"),
            Column(title="down", note="all silos"),
            Column(title="time", note="per cell"),
            Column(title="seeds"),
        ),
        rows=tuple(rows),
        remarks=(f"Published: {paper} per silo both ways, 300 rounds of ResNet-50 in fp32.",),
    )


def privacy_table(grid: Grid, scenario: str) -> Table | None:
    """Noise, its price in epsilon, and what it does to the model; None where nobody adds any."""
    methods = [
        (name, cells)
        for name in grid.methods(scenario)
        if (cells := grid.of_method(scenario, name))[0].kind == "federated"
    ]
    if not any(cells[0].policy.privacy.on for _, cells in methods):
        return None
    return Table(
        title="What differential privacy costs",
        lead="Noise on all that leaves a silo, over twice the clip norm; epsilon of the whole run, "
        "the largest of any silo. Protected is a silo's whole contribution, not a person.",
        head="method",
        columns=(
            Column(title="clip norm"),
            Column(title="noise", note="multiplier"),
            Column(title="epsilon"),
            Column(title="delta"),
            Column(title="mAP", note="global, mean"),
        ),
        rows=tuple(
            Row(name=name, entries=(*_privacy(cells), _global_map(cells)))
            for name, cells in methods
        ),
    )


def _privacy(cells: Sequence[CellResult]) -> tuple[Entry, ...]:
    privacy = cells[0].policy.privacy
    if not privacy.on:
        return (Entry(text="none"), Entry(text="none"), Entry(text="∞"), Entry())
    epsilon = max(max(cell.rounds[-1].epsilons.values()) for cell in cells)
    return (
        Entry(text=f"{privacy.clip_norm:g}"),
        Entry(text=f"{privacy.noise_multiplier:g}"),
        Entry(text=f"{epsilon:.3g}"),
        Entry(text=f"{privacy.delta:g}"),
    )


def _global_map(cells: Sequence[CellResult]) -> Entry:
    found = spread(
        mean for cell in cells if (mean := mean_of_silos(cell, "global", "map")) is not None
    )
    return Entry() if found is None else Entry(text=points(found.mean), beside=deviation(found))


def _uploaded(cell: CellResult) -> float:
    return sum(one.upload_bytes for one in cell.rounds)


def _downloaded(cell: CellResult) -> float:
    return sum(one.download_bytes for one in cell.rounds)


_TRAFFIC: tuple[Callable[[CellResult], float], ...] = (
    lambda cell: _uploaded(cell) / len(cell.silos),
    lambda cell: _downloaded(cell) / len(cell.silos),
    _uploaded,
    _downloaded,
)


def _size(cells: Sequence[CellResult], of: Callable[[CellResult], float]) -> Entry:
    return Entry(text=size_text(fmean(of(cell) for cell in cells)))


def _time(cells: Sequence[CellResult]) -> Entry:
    found = spread(cell.seconds for cell in cells)
    if found is None or found.sd is None:
        return Entry() if found is None else Entry(text=duration_text(found.mean))
    return Entry(text=duration_text(found.mean), beside=f"± {duration_text(found.sd)}")


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low}–{high}"
