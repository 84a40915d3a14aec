"""What do the platform team's commands share? Options, and how an instant is printed."""

import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Optional

import typer

Data = Annotated[Path, typer.Option("--data", help="The coordinator's data folder.")]
Address = Annotated[
    Optional[str],  # noqa: UP045 - typer reads it
    typer.Option("--coordinator", help="HOST:PORT; default: the one that serves --data here."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def instant(seconds: float) -> str:
    """Seconds since the Unix epoch, for a person to read."""
    return datetime.fromtimestamp(math.floor(seconds), UTC).strftime("%Y-%m-%d %H:%M:%SZ")
