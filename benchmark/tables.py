"""What does a report's table hold, whether it becomes HTML or Markdown?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from benchmark.statistics import Spread

DASH = "–"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One cell of a table: a figure, and what stands smaller beside and below it."""

    text: str = DASH
    beside: str = ""
    below: str = ""
    best: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column's head."""

    title: str
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line; published ones are set apart."""

    name: str
    note: str = ""
    entries: tuple[Entry, ...]
    tone: Literal["ours", "published"] = "ours"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A titled table with the sentences that explain it."""

    title: str
    lead: str
    head: str
    """Of the first column, which names the rows."""
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    remarks: tuple[str, ...] = ()

    @property
    def markdown(self) -> str:
        """The table alone, without title and sentences."""
        heads = [self.head, *(_joined(column.title, column.note) for column in self.columns)]
        lines = [_line(heads), _line(["---", *["---:"] * len(self.columns)])]
        for row in self.rows:
            name = f"*{row.name}*" if row.tone == "published" else row.name
            lines.append(_line([_joined(name, row.note), *(_plain(one) for one in row.entries)]))
        return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _plain(entry: Entry) -> str:
    figure = f"**{entry.text}**" if entry.best else entry.text
    return _joined(" ".join(part for part in (figure, entry.beside) if part), entry.below)


def _joined(first: str, second: str) -> str:
    return f"{first}<br>{second}" if second else first


def points(ratio: float | None) -> str:
    """A ratio in percent without its unit: ``54.3``, or a dash."""
    return DASH if ratio is None else f"{100 * ratio:.1f}"


def deviation(spread: Spread | None) -> str:
    """``± 0.4`` in percent points; nothing for a single value."""
    return "" if spread is None or spread.sd is None else f"± {100 * spread.sd:.1f}"


def gain(spread: Spread | None) -> Entry:
    """A mean difference in percent points with its sign."""
    if spread is None:
        return Entry()
    return Entry(text=f"{100 * spread.mean:+.1f}".replace("-", "−"), beside=deviation(spread))


def p_value(p: float | None) -> str:
    """Three digits, or ``< 0.001``."""
    if p is None:
        return DASH
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
