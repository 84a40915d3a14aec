"""How do the commands speak to people? Tables, errors and exit codes, the same in each program."""

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table
from rich.text import Text

from fedreid import faults
from fedreid.errors import ExitCode, FedreidError, encodable

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)

EXIT_CODES = "Exit codes: " + ", ".join(f"{code:d} {code.name.lower()}" for code in ExitCode) + "."
"""What stands below each program's --help."""


def run_program(program: Callable[[], None]) -> None:
    """Run a program; an error of our tree becomes a sentence and its exit code."""
    try:
        faults.check_queue()
        program()
    except FedreidError as error:
        tell_error(error)
        leave(error.exit_code)
    except KeyboardInterrupt:
        leave(ExitCode.INTERRUPTED)


def tell_error(error: FedreidError) -> None:
    """Print an error: what happened, why, and what to do next."""
    err.print(f"[bold red]error[/] ({error.code}) ", end="")
    err.print(error.what.rstrip(".") + ".", markup=False, soft_wrap=True)
    if error.why:
        err.print("  cause: " + error.why, markup=False, soft_wrap=True)
    if error.next_step:
        err.print("  next:  " + error.next_step, markup=False, soft_wrap=True)


def leave(code: ExitCode) -> None:
    """End the process at once; gRPC's threads are not waited for."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(int(code))


def print_json(value: Any) -> None:
    """Print a value for machines."""
    sys.stdout.write(encodable(json.dumps(value, indent=2, ensure_ascii=False)) + "\n")


def print_json_line(value: Any) -> None:
    """Print one value of a stream for machines: a line each, at once."""
    sys.stdout.write(encodable(json.dumps(value, ensure_ascii=False)) + "\n")
    sys.stdout.flush()


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows for people."""
    out.print(table_of(title, columns, rows))


def table_of(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Rows for people, as they stand on a terminal."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")  # a cut path or digest is of no use
    for row in rows:
        table.add_row(*(escape(_printable(cell)) for cell in row))
    return table


def text_of(line: str) -> Text:
    """A line as it stands on a terminal, whatever it holds."""
    return Text(_printable(line))


def _printable(text: str) -> str:
    """Without control characters: some cells hold what a silo calls itself."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def instant(seconds: float) -> str:
    """Seconds since the Unix epoch, for a person to read."""
    return datetime.fromtimestamp(math.floor(seconds), UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def say(line: str) -> None:
    """Print one line of progress."""
    out.print(_printable(line), markup=False, soft_wrap=True)


@contextmanager
def progress_shown() -> Iterator[Callable[[str, float], None]]:
    """A bar below the lines on a terminal; nothing where the output goes to a file or journal."""
    if not out.is_terminal:
        yield lambda doing, share: None
        return
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), console=out,
        transient=True,
    ) as bar:  # fmt: skip
        task = bar.add_task("", total=1.0)
        yield lambda doing, share: bar.update(task, description=doing, completed=share)
