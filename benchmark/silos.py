"""How are generated silos made while a person watches?"""

from pathlib import Path

from rich.progress import Progress

from benchmark.scenarios import GENERATED_MARK, Source
from fedreid.console import err, say
from fedreid.datasets.synthetic import SyntheticSpec, SyntheticSummary, render
from fedreid.files import remove_folder


def drawn_silos(out: Path, spec: SyntheticSpec, *, workers: int) -> dict[str, Source]:
    """The silos of a spec by name, rendered unless they are there already."""
    if not (out / GENERATED_MARK).exists():
        remove_folder(out)
        render_silos(out, spec, workers=workers)
    return {
        path.parent.name: Source(name=path.parent.name, path=path.parent, layout="market1501")
        for path in sorted(out.glob("*/query"))
    }


def render_silos(out: Path, spec: SyntheticSpec, *, workers: int) -> SyntheticSummary:
    """Render the silos with a progress bar and say what was made."""
    with Progress(console=err, transient=True) as bar:
        task = bar.add_task("rendering pedestrians", total=None)
        made = render(
            out,
            spec,
            workers=workers,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    say(
        f"rendered {made.images} images of procedural pedestrians in {made.seconds:.0f} s "
        f"({made.images / made.seconds:.0f} images/s); contact sheets: {out}/*.png"
    )
    return made
