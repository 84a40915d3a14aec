"""What does the coordinator know for certain? The journal: the one durable truth.

SQLite in WAL mode with ``synchronous=FULL``, so that what a commit returned from survives a
power cut; one writer, in the order of calls. Rows hold whole states as JSON: a restart reads the
newest row of the run and of its round and goes on from there.

Damage is told and never read as truth. SQLite checks the structure of the file, when it is opened;
each row bears a seal over its values, looked at whenever it is read; and commits are counted, so
that a file that has lost its newest ones, or is an old copy, can be told from what others have
written down since (``check_not_set_back``).
"""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import blake3
import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import insert

from coordinator.rounds.formats import bring_up
from coordinator.rounds.machine import RoundState
from fedreid import faults
from fedreid.contract import EvaluationResult
from fedreid.errors import StorageError, TokenRefused

_metadata = sa.MetaData()


def _seal_column() -> "sa.Column[str]":
    return sa.Column("seal", sa.String, nullable=True)


_silos = sa.Table(
    "silos",
    _metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("key_fingerprint", sa.String, nullable=False),
    sa.Column("certificate_pem", sa.LargeBinary, nullable=False),
    sa.Column("not_after_s", sa.Float, nullable=False),
    sa.Column("next_key_fingerprint", sa.String, nullable=False),
    sa.Column("next_certificate_pem", sa.LargeBinary, nullable=False),
    sa.Column("previous_key_fingerprint", sa.String, nullable=False),
    sa.Column("previous_until_s", sa.Float, nullable=False),
    sa.Column("authorities_digest", sa.String, nullable=False),
    _seal_column(),
)
_tokens = sa.Table(
    "tokens",
    _metadata,
    sa.Column("secret_hash", sa.String, primary_key=True),
    sa.Column("silo", sa.String, nullable=False),
    sa.Column("expires_at_s", sa.Float, nullable=False),
    sa.Column("key_fingerprint", sa.String, nullable=False, default=""),
    _seal_column(),
)
_runs = sa.Table(
    "runs",
    _metadata,
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("name", sa.String, unique=True, nullable=False),
    sa.Column("plan_toml", sa.Text, nullable=False),
    sa.Column("state", sa.String, nullable=False),
    sa.Column("reason", sa.Text, nullable=False, default=""),
    sa.Column("started_at_s", sa.Float, nullable=False),
    _seal_column(),
)
_plan_changes = sa.Table(
    "plan_changes",
    _metadata,
    sa.Column("sequence", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("run", sa.String, nullable=False),
    sa.Column("from_round", sa.Integer, nullable=False),
    sa.Column("plan_toml", sa.Text, nullable=False),
    _seal_column(),
)
_rounds = sa.Table(
    "rounds",
    _metadata,
    sa.Column("run", sa.String, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("phase", sa.String, nullable=False),
    sa.Column("state", sa.LargeBinary, nullable=False),
    _seal_column(),
)
_models = sa.Table(
    "models",
    _metadata,
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("digest", sa.String, nullable=False, index=True),
    sa.Column("run", sa.String, nullable=False),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("release", sa.LargeBinary, nullable=False),
    sa.Column("signature", sa.LargeBinary, nullable=False),
    _seal_column(),
)
_evaluations = sa.Table(
    "evaluations",
    _metadata,
    sa.Column("run", sa.String, primary_key=True),
    sa.Column("round", sa.Integer, primary_key=True),
    sa.Column("silo", sa.String, primary_key=True),
    sa.Column("model", sa.String, primary_key=True),
    sa.Column("result", sa.LargeBinary, nullable=False),
    _seal_column(),
)
_marks = sa.Table(
    "marks",
    _metadata,
    sa.Column("name", sa.String, primary_key=True),
    sa.Column("value", sa.Integer, nullable=False),
)
_NEWEST = ""
_COMMITS, _BACKED_UP, _RESTORED = "commits", "backed_up_ms", "restored_ms"
_NOT_SEALED = frozenset({"seal", "sequence"})
_SEAL_CHARACTERS = 32
_CORRUPT = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


RUNNING, PAUSED, FINISHED, STOPPED, FAILED = "running", "paused", "finished", "stopped", "failed"
"""States of a run."""


class SiloRow(msgspec.Struct, frozen=True, kw_only=True):
    """A registered silo."""

    name: str
    state: str
    """As :mod:`coordinator.trust.registry` names them."""
    reason: str = ""
    """Why it is in this state, for a person to read."""
    key_fingerprint: str = ""
    """The newest key that was used. While a key awaits approval it has no certificate yet."""
    certificate_pem: bytes = b""
    not_after_s: float = 0.0
    next_key_fingerprint: str = ""
    """A key that has its certificate and was not used yet; empty if there is none."""
    next_certificate_pem: bytes = b""
    previous_key_fingerprint: str = ""
    """The key before the newest, let in until ``previous_until_s``."""
    previous_until_s: float = 0.0
    authorities_digest: str = ""
    """The authorities that the silo has said it trusts."""


class TokenRow(msgspec.Struct, frozen=True, kw_only=True):
    """A join token, by the hash of its secret."""

    secret_hash: str
    silo: str
    expires_at_s: float
    key_fingerprint: str = ""
    """The first key that used it; empty until then."""


class RunRow(msgspec.Struct, frozen=True, kw_only=True):
    """A run of the federation."""

    name: str
    plan_toml: str
    state: str
    """``running``, ``paused``, ``finished``, ``stopped`` or ``failed``."""
    reason: str = ""
    started_at_s: float


class PlanChangeRow(msgspec.Struct, frozen=True, kw_only=True):
    """Another plan of a run that is under way."""

    run: str
    from_round: int
    """The first round that follows it."""
    plan_toml: str


class ModelRow(msgspec.Struct, frozen=True, kw_only=True):
    """A published model."""

    version: int
    digest: str
    run: str
    round: int
    """The round that made it; 0 for start weights."""
    release: bytes
    """The serialised, signed statement."""
    signature: bytes


class EvaluationRow(msgspec.Struct, frozen=True, kw_only=True):
    """A measurement; ``silo`` is empty for the coordinator's own."""

    run: str
    round: int
    silo: str
    result: EvaluationResult


class Journal:
    """The durable state; every method is one transaction and may be called from any thread."""

    def __init__(self, path: Path) -> None:
        """Open or create the journal.

        Raises:
            StorageError: it can't be opened, is damaged, or a newer coordinator's.
        """
        self._path = path
        self._writer = threading.Lock()
        self._engine = sa.create_engine(f"sqlite:///{path}")
        sa.event.listen(self._engine, "connect", _set_pragmas)
        with self._errors():
            bring_up(self._engine, _metadata)
            self._check_structure()
        self._known_models: dict[str, ModelRow] = {}
        marks = self._rows(_marks, sa.select(_marks))
        self._marks: dict[str, int] = {row["name"]: row["value"] for row in marks}

    def close(self) -> None:
        """Release the file."""
        self._engine.dispose()

    @property
    def commits(self) -> int:
        """How many transactions this journal has seen; an old copy of it has seen fewer."""
        return self._marks.get(_COMMITS, 0)

    @property
    def restored(self) -> tuple[float, float] | None:
        """From when the last backup was that this journal was restored from, and when that was."""
        if _RESTORED not in self._marks:
            return None
        return self._marks[_BACKED_UP] / 1000, self._marks[_RESTORED] / 1000

    def mark_restored(self, *, backed_up_s: float, restored_s: float) -> None:
        """Note that what happened between the two instants is not in here.

        A token that was not used may have been used since: none of them is good any longer.
        """
        with self._commit() as connection:
            connection.execute(sa.delete(_tokens).where(_tokens.c.key_fingerprint == ""))
            for name, at_s in ((_BACKED_UP, backed_up_s), (_RESTORED, restored_s)):
                value = round(at_s * 1000)
                connection.execute(
                    insert(_marks)
                    .values(name=name, value=value)
                    .on_conflict_do_update(["name"], set_={"value": value})
                )
                self._marks[name] = value

    def copy_to(self, path: Path) -> None:
        """Write a consistent copy, while others go on writing here."""
        with self._errors(), self._engine.connect() as connection:
            source: Any = connection.connection.driver_connection
            with contextlib.closing(sqlite3.connect(path)) as target:
                source.backup(target)
                target.execute("PRAGMA journal_mode=DELETE")  # whole in one file

    def check_rows(self) -> None:
        """Read every row; blocks for as long as that takes.

        Raises:
            StorageError: one of them is damaged.
        """
        for table in (_tokens, _evaluations, _plan_changes):
            self._rows(table, sa.select(table))
        self.silos()
        self.models()
        for row in self._rows(_runs, sa.select(_runs)):
            self.rounds(row["name"])
            self.evaluations(row["name"])

    def silos(self) -> list[SiloRow]:
        """Every registered silo, by name."""
        query = sa.select(_silos).order_by(_silos.c.name)
        return [SiloRow(**row) for row in self._rows(_silos, query)]

    def save_silo(self, silo: SiloRow, *, drop_tokens: bool = False) -> None:
        """Store a silo as it is now; with ``drop_tokens`` its tokens are good no more."""
        values = msgspec.structs.asdict(silo)
        with self._commit() as connection:
            connection.execute(_upserted_silo(values))
            if drop_tokens:
                connection.execute(sa.delete(_tokens).where(_tokens.c.silo == silo.name))

    def add_token(self, token: TokenRow) -> None:
        """Store a fresh token."""
        with self._commit() as connection:
            connection.execute(_inserted(_tokens, token))

    def token(self, secret_hash: str) -> TokenRow | None:
        """The token with this hash."""
        query = sa.select(_tokens).where(_tokens.c.secret_hash == secret_hash)
        rows = self._rows(_tokens, query)
        return TokenRow(**rows[0]) if rows else None

    def consume_token(self, token: TokenRow, silo: SiloRow) -> None:
        """Bind the token to its first key and register the silo, both or neither.

        Raises:
            TokenRefused: it is bound already, or gone.
        """
        with self._commit() as connection:
            unbound = (_tokens.c.secret_hash == token.secret_hash) & (
                _tokens.c.key_fingerprint == ""
            )
            bound = connection.execute(
                sa.update(_tokens)
                .where(unbound)
                .values(**_sealed(_tokens, msgspec.structs.asdict(token)))
            )
            if bound.rowcount != 1:
                raise TokenRefused("The join token was used by another key in this moment")
            connection.execute(_upserted_silo(msgspec.structs.asdict(silo)))

    def newest_run(self) -> RunRow | None:
        """The run that was started last."""
        query = sa.select(_runs).order_by(_runs.c.sequence.desc()).limit(1)
        rows = self._rows(_runs, query)
        return RunRow(**{k: v for k, v in rows[0].items() if k != "sequence"}) if rows else None

    def run_exists(self, name: str) -> bool:
        """Whether there ever was a run of this name."""
        return bool(self._rows(_runs, sa.select(_runs).where(_runs.c.name == name)))

    def add_run(self, run: RunRow, model: ModelRow) -> None:
        """Start a run with its start weights."""
        with self._commit() as connection:
            connection.execute(_inserted(_runs, run))
            connection.execute(_inserted(_models, model))
        self._known_models = {}

    def set_run_state(self, name: str, state: str, reason: str) -> None:
        """Change a run's state."""
        named = _runs.c.name == name
        (row,) = self._rows(_runs, sa.select(_runs).where(named))
        values = _sealed(_runs, {**row, "state": state, "reason": reason})
        with self._commit() as connection:
            connection.execute(sa.update(_runs).where(named).values(**values))

    def add_plan_change(self, change: PlanChangeRow) -> None:
        """Change the plan of a run from one of its rounds on."""
        with self._commit() as connection:
            connection.execute(_inserted(_plan_changes, change))

    def plan_changes(self, run: str) -> list[PlanChangeRow]:
        """Every change of a run's plan, in the order in which they were made."""
        columns = _plan_changes.c
        query = sa.select(_plan_changes).where(columns.run == run).order_by(columns.sequence)
        rows = self._rows(_plan_changes, query)
        return [PlanChangeRow(**{k: v for k, v in row.items() if k != "sequence"}) for row in rows]

    def save_round(self, state: RoundState, models: Sequence[ModelRow] = ()) -> None:
        """Store a round as it stands, with the models it published, if it just did."""
        values = _sealed(
            _rounds,
            {
                "run": state.run,
                "number": state.number,
                "phase": str(state.phase),
                "state": msgspec.json.encode(state),
            },
        )
        with self._commit() as connection:
            connection.execute(
                insert(_rounds)
                .values(**values)
                .on_conflict_do_update(["run", "number"], set_=values)
            )
            for model in models:
                connection.execute(_inserted(_models, model))
        if models:
            self._known_models = {}

    def add_models(self, models: Sequence[ModelRow]) -> None:
        """Store further releases of models."""
        with self._commit() as connection:
            for model in models:
                connection.execute(_inserted(_models, model))
        self._known_models = {}

    def newest_round(self, run: str) -> RoundState | None:
        """The run's last round."""
        query = (
            sa.select(_rounds)
            .where(_rounds.c.run == run)
            .order_by(_rounds.c.number.desc())
            .limit(1)
        )
        rows = self._rows(_rounds, query)
        with self._errors():
            return msgspec.json.decode(rows[0]["state"], type=RoundState) if rows else None

    def round(self, run: str, number: int) -> RoundState | None:
        """One round."""
        named = (_rounds.c.run == run) & (_rounds.c.number == number)
        rows = self._rows(_rounds, sa.select(_rounds).where(named))
        with self._errors():
            return msgspec.json.decode(rows[0]["state"], type=RoundState) if rows else None

    def rounds(self, run: str, *, first: int = 0, limit: int = -1) -> list[RoundState]:
        """The rounds of a run from ``first`` on by number, at most so many."""
        query = (
            sa.select(_rounds)
            .where(_rounds.c.run == run, _rounds.c.number >= first)
            .order_by(_rounds.c.number)
            .limit(limit)
        )
        rows = self._rows(_rounds, query)
        with self._errors():
            return [msgspec.json.decode(row["state"], type=RoundState) for row in rows]

    def newest_model(self) -> ModelRow | None:
        """The model that was published last."""
        query = sa.select(_models).order_by(_models.c.version.desc()).limit(1)
        return self._known_model(_NEWEST, query)

    def model(self, digest: str) -> ModelRow | None:
        """The newest release of the model with this digest."""
        query = (
            sa.select(_models)
            .where(_models.c.digest == digest)
            .order_by(_models.c.version.desc())
            .limit(1)
        )
        return self._known_model(digest, query)

    def _known_model(self, name: str, query: sa.Select[Any]) -> ModelRow | None:
        """What a query gives, kept until models are added: every silo asks for it in each round."""
        known = self._known_models  # another one as soon as a commit has added to the table
        if name not in known:
            rows = self._rows(_models, query)
            if not rows:  # nor is every name kept that somebody makes up
                return None
            known[name] = ModelRow(**rows[0])
        return known[name]

    def models(self) -> list[ModelRow]:
        """Every published model, newest first."""
        query = sa.select(_models).order_by(_models.c.version.desc())
        return [ModelRow(**row) for row in self._rows(_models, query)]

    def save_evaluations(self, rows: list[EvaluationRow]) -> None:
        """Store measurements; one that is sent twice is stored once."""
        with self._commit() as connection:
            for row in rows:
                values = _sealed(
                    _evaluations,
                    {
                        "run": row.run,
                        "round": row.round,
                        "silo": row.silo,
                        "model": row.result.model,
                        "result": msgspec.json.encode(row.result),
                    },
                )
                connection.execute(
                    insert(_evaluations)
                    .values(**values)
                    .on_conflict_do_update(["run", "round", "silo", "model"], set_=values)
                )

    def measured(self, run: str, number: int) -> dict[str, EvaluationResult]:
        """What the global model of one round scored, by silo; the coordinator's own under "".

        A run of weeks has many thousand figures, and a start must not read them all.
        """
        columns = _evaluations.c
        query = sa.select(_evaluations).where(
            columns.run == run, columns.round == number, columns.model == "global"
        )
        rows = self._rows(_evaluations, query)
        with self._errors():
            return {
                row["silo"]: msgspec.json.decode(row["result"], type=EvaluationResult)
                for row in rows
            }

    def evaluations(self, run: str, number: int | None = None) -> list[EvaluationRow]:
        """Every measurement of a run, or of one round of it; by round, silo and model."""
        columns = _evaluations.c
        query = (
            sa.select(_evaluations)
            .where(columns.run == run)
            .order_by(columns.round, columns.silo, columns.model)
        )
        if number is not None:
            query = query.where(columns.round == number)
        rows = self._rows(_evaluations, query)
        with self._errors():
            return [
                EvaluationRow(
                    run=row["run"],
                    round=row["round"],
                    silo=row["silo"],
                    result=msgspec.json.decode(row["result"], type=EvaluationResult),
                )
                for row in rows
            ]

    def _rows(self, table: sa.Table, query: sa.Select[Any]) -> list[dict[str, Any]]:
        """Whole rows of a table, without their seals."""
        with self._errors(), self._engine.connect() as connection:
            rows = [dict(row) for row in connection.execute(query).mappings()]
        for row in rows:
            # Rows of a journal that an earlier version has written have none.
            seal = row.pop("seal", None)
            if seal is not None and seal != _seal(table, row):
                raise self._damaged(f"a row of its table {table.name} is not as it was written")
        return rows

    @contextlib.contextmanager
    def _commit(self) -> Iterator[sa.Connection]:
        with self._errors(), self._writer:
            with faults.step("journal.commit"), self._engine.begin() as connection:
                yield connection
                commits = connection.scalar(_COUNTED)
            assert commits is not None
            self._marks[_COMMITS] = commits

    def _check_structure(self) -> None:
        with self._engine.connect() as connection:
            told = connection.scalar(sa.text("PRAGMA integrity_check(1)"))
        if told != "ok":
            raise self._damaged(str(told))

    def _damaged(self, why: str) -> StorageError:
        return StorageError(
            f"The journal {self._path} is damaged",
            why=why,
            next_step="Restore the newest backup: coordinator restore BACKUP --data NEW.",
        )

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except msgspec.MsgspecError as error:
            raise self._damaged(str(error)) from error
        except (sa.exc.DBAPIError, OverflowError) as error:
            cause = getattr(error, "orig", error)
            if getattr(cause, "sqlite_errorcode", None) in _CORRUPT:
                raise self._damaged(str(cause)) from error
            raise StorageError(
                f"The journal {self._path} can't be read or written",
                why=str(cause),
                next_step="Free disk space or correct the folder's mode; nothing acknowledged "
                "is lost.",
            ) from error


_COUNTED = (
    insert(_marks)
    .values(name=_COMMITS, value=1)
    .on_conflict_do_update(["name"], set_={"value": _marks.c.value + 1})
    .returning(_marks.c.value)
)


def check_not_set_back(journal: Journal, seen_commits: int) -> None:
    """Check that the journal has not lost commits that others have seen.

    Raises:
        StorageError: it is an old copy, or the end of its write-ahead log is gone.
    """
    if journal.commits >= seen_commits:
        return
    raise StorageError(
        "The journal is older than the audit log beside it",
        why=f"{seen_commits - journal.commits} of its commits are gone: its file or the -wal file "
        "was damaged, removed, or replaced by an old copy",
        next_step="Put the right files back, or restore the newest backup; to go on from what is "
        "there: coordinator doctor --repair.",
    )


def _upserted_silo(values: dict[str, Any]) -> sa.Insert:
    sealed = _sealed(_silos, values)
    return insert(_silos).values(**sealed).on_conflict_do_update(["name"], set_=sealed)


def _inserted(table: sa.Table, row: msgspec.Struct) -> sa.Insert:
    return sa.insert(table).values(**_sealed(table, msgspec.structs.asdict(row)))


def _sealed(table: sa.Table, values: dict[str, Any]) -> dict[str, Any]:
    return {**values, "seal": _seal(table, values)}


def _seal(table: sa.Table, values: dict[str, Any]) -> str:
    """A digest of a row's values as the table gives them back."""
    named = str(table.name)
    told = [float(values[name]) if real else values[name] for name, real in _SEALED[named]]
    return blake3.blake3(msgspec.json.encode([named, told])).hexdigest()[:_SEAL_CHARACTERS]


_SEALED = {
    str(table.name): tuple(
        (str(column.name), isinstance(column.type, sa.Float))
        for column in table.columns
        if column.name not in _NOT_SEALED
    )
    for table in _metadata.sorted_tables
}
"""The columns of each table that a seal covers, and whether they hold real numbers."""


def _set_pragmas(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA busy_timeout=5000")
    cursor.close()
