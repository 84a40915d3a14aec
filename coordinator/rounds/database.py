"""How does the journal's file keep what was committed, and tell when it is damaged?

SQLite in WAL mode with ``synchronous=FULL``, so that what a commit returned from survives a
power cut; one writer, in the order of calls.

Damage is told and never read as truth. SQLite checks the structure of the file, when it is opened;
each row bears a seal over its values, looked at whenever it is read; and commits are counted, so
that a file that has lost its newest ones, or is an old copy, can be told from what others have
written down since.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from coordinator.metrics import JOURNAL_COMMIT
from coordinator.rounds.formats import bring_up
from coordinator.rounds.sealing import unsealed
from coordinator.rounds.tables import MARKS, METADATA
from fedreid import faults
from fedreid.errors import StorageError

COMMITS = "commits"
"""The mark that counts transactions."""
_CORRUPT = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_COUNTED = (
    insert(MARKS)
    .values(name=COMMITS, value=1)
    .on_conflict_do_update(["name"], set_={"value": MARKS.c.value + 1})
    .returning(MARKS.c.value)
)


class Database:
    """The journal's file; every method may be called from any thread."""

    def __init__(self, path: Path) -> None:
        """Open or create it.

        Raises:
            StorageError: it can't be opened, is damaged, or a newer coordinator's.
        """
        self.path = path
        self._writer = threading.Lock()
        self.engine = sa.create_engine(f"sqlite:///{path}")
        sa.event.listen(self.engine, "connect", _set_pragmas)
        with self.errors():
            bring_up(self.engine, METADATA)
            self._check_structure()
        self.marks: dict[str, int] = {
            row["name"]: row["value"] for row in self.rows(MARKS, sa.select(MARKS))
        }
        """Numbers by their names, as the table holds them."""

    def close(self) -> None:
        """Release the file."""
        self.engine.dispose()

    def copy_to(self, path: Path) -> None:
        """Write a consistent copy, while others go on writing here."""
        with self.errors(), self.engine.connect() as connection:
            source: Any = connection.connection.driver_connection
            with contextlib.closing(sqlite3.connect(path)) as target:
                source.backup(target)
                target.execute("PRAGMA journal_mode=DELETE")  # whole in one file

    def rows(self, table: sa.Table, query: sa.Select[Any]) -> list[dict[str, Any]]:
        """Whole rows of a table, without their seals.

        Raises:
            StorageError: a row is not as it was written, or can't be read.
        """
        with self.errors(), self.engine.connect() as connection:
            found = [dict(row) for row in connection.execute(query).mappings()]
        values = [unsealed(table, row) for row in found]
        whole = [row for row in values if row is not None]
        if len(whole) < len(found):
            raise self._damaged(f"a row of its table {table.name} is not as it was written")
        return whole

    @contextlib.contextmanager
    def commit(self) -> Iterator[sa.Connection]:
        """One transaction: all of the block or nothing of it, and durable when it is over."""
        with self.errors(), self._writer:
            with (
                JOURNAL_COMMIT.time(),
                faults.step("journal.commit"),
                self.engine.begin() as connection,
            ):
                yield connection
                commits = connection.scalar(_COUNTED)
            assert commits is not None
            self.marks[COMMITS] = commits

    def mark(self, connection: sa.Connection, name: str, value: int) -> None:
        """Set a mark, within a transaction."""
        connection.execute(
            insert(MARKS)
            .values(name=name, value=value)
            .on_conflict_do_update(["name"], set_={"value": value})
        )
        self.marks[name] = value

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """What SQLite and rows that can't be decoded raise in the block becomes ours.

        Raises:
            StorageError: the file is damaged, or the disk does not do its part.
        """
        try:
            yield
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:  # SQLite's own words, too
            raise self._damaged(str(error)) from error
        except (sa.exc.DBAPIError, OverflowError) as error:
            cause = getattr(error, "orig", error)
            if getattr(cause, "sqlite_errorcode", None) in _CORRUPT:
                raise self._damaged(str(cause)) from error
            raise StorageError(
                f"The journal {self.path} can't be read or written",
                why=str(cause),
                next_step="Free disk space or correct the folder's mode; nothing acknowledged "
                "is lost.",
            ) from error

    def _check_structure(self) -> None:
        with self.engine.connect() as connection:
            told = connection.scalar(sa.text("PRAGMA integrity_check(1)"))
        if told != "ok":
            raise self._damaged(str(told))

    def _damaged(self, why: str) -> StorageError:
        return StorageError(
            f"The journal {self.path} is damaged",
            why=why,
            next_step="Restore the newest backup: coordinator restore BACKUP --data NEW.",
        )


def _set_pragmas(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA busy_timeout=5000")
    cursor.close()
