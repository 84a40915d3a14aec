"""Is a row of the journal as it was written? A seal over its values tells.

SQLite checks the structure of its file, and not the values in it: a bit that has flipped in one of
them would be read as truth.
"""

from typing import Any

import blake3
import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from coordinator.rounds.tables import METADATA

_NOT_SEALED = frozenset({"seal", "sequence"})
_SEAL_CHARACTERS = 32
_SEALED = {
    str(table.name): tuple(
        (str(column.name), isinstance(column.type, sa.Float))
        for column in table.columns
        if column.name not in _NOT_SEALED
    )
    for table in METADATA.sorted_tables
}
"""The columns of each table that a seal covers, and whether they hold real numbers."""


def sealed(table: sa.Table, values: dict[str, Any]) -> dict[str, Any]:
    """The values of a row with their seal."""
    return {**values, "seal": _seal(table, values)}


def unsealed(table: sa.Table, row: dict[str, Any]) -> dict[str, Any] | None:
    """The values of a row that was read, without their seal; None if it does not fit them."""
    values = {name: value for name, value in row.items() if name != "seal"}
    seal = row.get("seal")
    # Rows of a journal that an earlier version has written have none.
    return values if seal is None or seal == _seal(table, values) else None


def inserted(table: sa.Table, row: msgspec.Struct) -> sa.Insert:
    """A new row, sealed."""
    return sa.insert(table).values(**sealed(table, msgspec.structs.asdict(row)))


def replaced(table: sa.Table, values: dict[str, Any]) -> sa.Insert:
    """A row, sealed, in the place of the one that has the same key, if there is one."""
    key = [column.name for column in table.primary_key]
    row = sealed(table, values)
    return insert(table).values(**row).on_conflict_do_update(key, set_=row)


def _seal(table: sa.Table, values: dict[str, Any]) -> str:
    """A digest of a row's values as the table gives them back."""
    named = str(table.name)
    told = [float(values[name]) if real else values[name] for name, real in _SEALED[named]]
    return blake3.blake3(msgspec.json.encode([named, told])).hexdigest()[:_SEAL_CHARACTERS]
