"""Which options do the platform team's commands share?"""

from pathlib import Path
from typing import Annotated, Optional

import typer

Data = Annotated[Path, typer.Option("--data", help="The coordinator's data folder.")]
Address = Annotated[
    Optional[str],  # noqa: UP045 - typer reads it
    typer.Option("--coordinator", help="HOST:PORT; default: the one that serves --data here."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
