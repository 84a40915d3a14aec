"""Which format has a journal, and how does an older one become today's?

The number stands in SQLite's ``user_version``, and there is a step from each to the next. All steps
and the new number are one transaction, so a crash leaves the old format or the new one. What stands
inside a row's JSON needs no step: a key that is missing takes its default, and one that a newer
coordinator wrote is passed over, so that going back by one version works.
"""

from collections.abc import Callable

import sqlalchemy as sa

from fedreid import faults
from fedreid.errors import StorageError

FORMAT = 2
"""What this coordinator writes."""


def bring_up(engine: sa.Engine, tables: sa.MetaData) -> None:
    """Make the tables of a new journal, or bring those of an older one to today's format.

    Raises:
        StorageError: a newer coordinator has written the journal.
    """
    with engine.connect() as connection:
        found = _noted(connection)
        if found == FORMAT:
            return
    if found > FORMAT:
        raise StorageError(
            f"The journal has format {found}, and this coordinator knows those up to {FORMAT}",
            why="a newer coordinator has written it",
            next_step="Start that version again, or restore the backup from before the upgrade.",
        )
    with faults.step("journal.format"), engine.begin() as connection:
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # the driver begins none before DDL
        is_new = not sa.inspect(connection).get_table_names()
        tables.create_all(connection)
        for number in range(FORMAT if is_new else found, FORMAT):
            _STEPS[number](connection)
        connection.exec_driver_sql(f"PRAGMA user_version = {FORMAT:d}")


def _noted(connection: sa.Connection) -> int:
    return int(connection.scalar(sa.text("PRAGMA user_version")) or 0)


def _from_0(connection: sa.Connection) -> None:
    """Journals bore no number before 0.1; the first ones knew of no renewal of a silo's key."""
    _add_columns(
        connection,
        "silos",
        reason="TEXT NOT NULL DEFAULT ''",
        next_key_fingerprint="VARCHAR NOT NULL DEFAULT ''",
        next_certificate_pem="BLOB NOT NULL DEFAULT x''",
        previous_key_fingerprint="VARCHAR NOT NULL DEFAULT ''",
        previous_until_s="FLOAT NOT NULL DEFAULT 0.0",
        authorities_digest="VARCHAR NOT NULL DEFAULT ''",
    )


def _add_columns(connection: sa.Connection, table: str, **columns: str) -> None:
    """Add those columns that are not there yet."""
    there = {column["name"] for column in sa.inspect(connection).get_columns(table)}
    for name, kind in columns.items():
        if name not in there:
            connection.exec_driver_sql(f"ALTER TABLE {table} ADD COLUMN {name} {kind}")


def _from_1(connection: sa.Connection) -> None:
    """Rows have borne a seal since, which those from before have not; a run's plan may change."""
    for table in ("silos", "tokens", "runs", "rounds", "models", "evaluations"):
        _add_columns(connection, table, seal="VARCHAR")


_STEPS: dict[int, Callable[[sa.Connection], None]] = {0: _from_0, 1: _from_1}
"""From which format to the next."""
