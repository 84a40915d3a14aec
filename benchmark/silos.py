"""How are generated silos made while a person watches?"""

from pathlib import Path

from rich.progress import Progress

from fedreid.console import err, say
from fedreid.datasets.synthetic import SyntheticSpec, SyntheticSummary, render


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
