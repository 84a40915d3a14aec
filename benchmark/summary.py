"""What does each silo get out of the run, in one table for the terminal?"""

from rich.table import Table
from rich.text import Text

from benchmark.results import MODELS, Accuracy, Results, SiloResult

BEST_MARK = "●"


def summary_table(results: Results) -> Table:
    """Rank-1 and mAP of every silo's models; the one to deploy is marked."""
    table = Table(
        title=f"{results.federation}: rank-1 / mAP on each silo's own test set, in %",
        caption=f"{BEST_MARK} the model to deploy: highest mAP, then rank-1",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("silo", no_wrap=True)
    table.add_column("images", justify="right")
    for model in MODELS:
        table.add_column(model, justify="right", no_wrap=True)
    for name in results.largest_first:
        silo = results.silos[name]
        table.add_row(name, f"{silo.images:,}", *_cells(silo))
    return table


def _cells(silo: SiloResult) -> list[Text]:
    return [
        Text(f"{BEST_MARK} {figures(silo.accuracy(model))}", style="bold green")
        if model == silo.best
        else Text(figures(silo.accuracy(model)), style="dim" if model == "untrained" else "")
        for model in MODELS
    ]


def figures(accuracy: Accuracy | None) -> str:
    """``rank-1 / mAP`` in percent, or a dash."""
    if accuracy is None:
        return "–"
    return f"{100 * accuracy.rank1:.1f} / {100 * accuracy.map:.1f}"
