"""What does the coordinator know for certain? The journal: the one durable truth.

Rows hold whole states as JSON: a restart reads the newest row of the run and of its round and goes
on from there. ``coordinator.rounds.database`` keeps them, so that none is lost or changed unseen.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from coordinator.rounds.database import COMMITS, Database
from coordinator.rounds.machine import RoundState
from coordinator.rounds.sealing import inserted, replaced, sealed
from coordinator.rounds.tables import (
    EVALUATIONS,
    MODELS,
    PLAN_CHANGES,
    ROUNDS,
    RUNS,
    SILOS,
    TOKENS,
)
from fedreid.contract import EvaluationResult
from fedreid.errors import StorageError, TokenRefused

_BACKED_UP, _RESTORED = "backed_up_ms", "restored_ms"
_NEWEST = ""


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
        self._database = Database(path)
        self._known_models: dict[str, ModelRow] = {}

    def close(self) -> None:
        """Release the file."""
        self._database.close()

    @property
    def commits(self) -> int:
        """How many transactions this journal has seen; an old copy of it has seen fewer."""
        return self._database.marks.get(COMMITS, 0)

    @property
    def restored(self) -> tuple[float, float] | None:
        """From when the last backup was that this journal was restored from, and when that was."""
        marks = self._database.marks
        if _RESTORED not in marks:
            return None
        return marks[_BACKED_UP] / 1000, marks[_RESTORED] / 1000

    def mark_restored(self, *, backed_up_s: float, restored_s: float) -> None:
        """Note that what happened between the two instants is not in here.

        A token that was not used may have been used since: none of them is good any longer.
        """
        with self._database.commit() as connection:
            connection.execute(sa.delete(TOKENS).where(TOKENS.c.key_fingerprint == ""))
            for name, at_s in ((_BACKED_UP, backed_up_s), (_RESTORED, restored_s)):
                self._database.mark(connection, name, round(at_s * 1000))

    def copy_to(self, path: Path) -> None:
        """Write a consistent copy, while others go on writing here."""
        self._database.copy_to(path)

    def check_rows(self) -> None:
        """Read every row; blocks for as long as that takes.

        Raises:
            StorageError: one of them is damaged.
        """
        for table in (TOKENS, EVALUATIONS, PLAN_CHANGES):
            self._database.rows(table, sa.select(table))
        self.silos()
        self.models()
        for row in self._database.rows(RUNS, sa.select(RUNS)):
            self.rounds(row["name"])
            self.evaluations(row["name"])

    def silos(self) -> list[SiloRow]:
        """Every registered silo, by name."""
        query = sa.select(SILOS).order_by(SILOS.c.name)
        return [SiloRow(**row) for row in self._database.rows(SILOS, query)]

    def save_silo(self, silo: SiloRow, *, drop_tokens: bool = False) -> None:
        """Store a silo as it is now; with ``drop_tokens`` its tokens are good no more."""
        with self._database.commit() as connection:
            connection.execute(replaced(SILOS, msgspec.structs.asdict(silo)))
            if drop_tokens:
                connection.execute(sa.delete(TOKENS).where(TOKENS.c.silo == silo.name))

    def add_token(self, token: TokenRow) -> None:
        """Store a fresh token."""
        with self._database.commit() as connection:
            connection.execute(inserted(TOKENS, token))

    def token(self, secret_hash: str) -> TokenRow | None:
        """The token with this hash."""
        query = sa.select(TOKENS).where(TOKENS.c.secret_hash == secret_hash)
        rows = self._database.rows(TOKENS, query)
        return TokenRow(**rows[0]) if rows else None

    def consume_token(self, token: TokenRow, silo: SiloRow) -> None:
        """Bind the token to its first key and register the silo, both or neither.

        Raises:
            TokenRefused: it is bound already, or gone.
        """
        with self._database.commit() as connection:
            unbound = (TOKENS.c.secret_hash == token.secret_hash) & (TOKENS.c.key_fingerprint == "")
            bound = connection.execute(
                sa.update(TOKENS)
                .where(unbound)
                .values(**sealed(TOKENS, msgspec.structs.asdict(token)))
            )
            if bound.rowcount != 1:
                raise TokenRefused(
                    "The join token was used by another key in this moment", reused=True
                )
            connection.execute(replaced(SILOS, msgspec.structs.asdict(silo)))

    def newest_run(self) -> RunRow | None:
        """The run that was started last."""
        query = sa.select(RUNS).order_by(RUNS.c.sequence.desc()).limit(1)
        rows = self._database.rows(RUNS, query)
        return RunRow(**{k: v for k, v in rows[0].items() if k != "sequence"}) if rows else None

    def run_exists(self, name: str) -> bool:
        """Whether there ever was a run of this name."""
        return bool(self._database.rows(RUNS, sa.select(RUNS).where(RUNS.c.name == name)))

    def add_run(self, run: RunRow, model: ModelRow) -> None:
        """Start a run with its start weights."""
        with self._database.commit() as connection:
            connection.execute(inserted(RUNS, run))
            connection.execute(inserted(MODELS, model))
        self._known_models = {}

    def set_run_state(self, name: str, state: str, reason: str) -> None:
        """Change a run's state."""
        named = RUNS.c.name == name
        (row,) = self._database.rows(RUNS, sa.select(RUNS).where(named))
        values = sealed(RUNS, {**row, "state": state, "reason": reason})
        with self._database.commit() as connection:
            connection.execute(sa.update(RUNS).where(named).values(**values))

    def add_plan_change(self, change: PlanChangeRow) -> None:
        """Change the plan of a run from one of its rounds on."""
        with self._database.commit() as connection:
            connection.execute(inserted(PLAN_CHANGES, change))

    def plan_changes(self, run: str) -> list[PlanChangeRow]:
        """Every change of a run's plan, in the order in which they were made."""
        columns = PLAN_CHANGES.c
        query = sa.select(PLAN_CHANGES).where(columns.run == run).order_by(columns.sequence)
        rows = self._database.rows(PLAN_CHANGES, query)
        return [PlanChangeRow(**{k: v for k, v in row.items() if k != "sequence"}) for row in rows]

    def save_round(self, state: RoundState, models: Sequence[ModelRow] = ()) -> None:
        """Store a round as it stands, with the models it published, if it just did."""
        values = {
            "run": state.run,
            "number": state.number,
            "phase": str(state.phase),
            "state": msgspec.json.encode(state),
        }
        with self._database.commit() as connection:
            connection.execute(replaced(ROUNDS, values))
            for model in models:
                connection.execute(inserted(MODELS, model))
        if models:
            self._known_models = {}

    def add_models(self, models: Sequence[ModelRow]) -> None:
        """Store further releases of models."""
        with self._database.commit() as connection:
            for model in models:
                connection.execute(inserted(MODELS, model))
        self._known_models = {}

    def newest_round(self, run: str) -> RoundState | None:
        """The run's last round."""
        query = (
            sa.select(ROUNDS).where(ROUNDS.c.run == run).order_by(ROUNDS.c.number.desc()).limit(1)
        )
        rows = self._database.rows(ROUNDS, query)
        with self._database.errors():
            return msgspec.json.decode(rows[0]["state"], type=RoundState) if rows else None

    def round(self, run: str, number: int) -> RoundState | None:
        """One round."""
        named = (ROUNDS.c.run == run) & (ROUNDS.c.number == number)
        rows = self._database.rows(ROUNDS, sa.select(ROUNDS).where(named))
        with self._database.errors():
            return msgspec.json.decode(rows[0]["state"], type=RoundState) if rows else None

    def rounds(self, run: str, *, first: int = 0, limit: int = -1) -> list[RoundState]:
        """The rounds of a run from ``first`` on by number, at most so many."""
        query = (
            sa.select(ROUNDS)
            .where(ROUNDS.c.run == run, ROUNDS.c.number >= first)
            .order_by(ROUNDS.c.number)
            .limit(limit)
        )
        rows = self._database.rows(ROUNDS, query)
        with self._database.errors():
            return [msgspec.json.decode(row["state"], type=RoundState) for row in rows]

    def newest_model(self) -> ModelRow | None:
        """The model that was published last."""
        query = sa.select(MODELS).order_by(MODELS.c.version.desc()).limit(1)
        return self._known_model(_NEWEST, query)

    def model(self, digest: str) -> ModelRow | None:
        """The newest release of the model with this digest."""
        query = (
            sa.select(MODELS)
            .where(MODELS.c.digest == digest)
            .order_by(MODELS.c.version.desc())
            .limit(1)
        )
        return self._known_model(digest, query)

    def _known_model(self, name: str, query: "sa.Select[Any]") -> ModelRow | None:
        """What a query gives, kept until models are added: every silo asks for it in each round."""
        known = self._known_models  # another one as soon as a commit has added to the table
        if name not in known:
            rows = self._database.rows(MODELS, query)
            if not rows:  # nor is every name kept that somebody makes up
                return None
            known[name] = ModelRow(**rows[0])
        return known[name]

    def models(self) -> list[ModelRow]:
        """Every published model, newest first."""
        query = sa.select(MODELS).order_by(MODELS.c.version.desc())
        return [ModelRow(**row) for row in self._database.rows(MODELS, query)]

    def save_evaluations(self, rows: list[EvaluationRow]) -> None:
        """Store measurements; one that is sent twice is stored once."""
        with self._database.commit() as connection:
            for row in rows:
                values = {
                    "run": row.run,
                    "round": row.round,
                    "silo": row.silo,
                    "model": row.result.model,
                    "result": msgspec.json.encode(row.result),
                }
                connection.execute(replaced(EVALUATIONS, values))

    def measured(self, run: str, number: int) -> dict[str, EvaluationResult]:
        """What the global model of one round scored, by silo; the coordinator's own under "".

        A run of weeks has many thousand figures, and a start must not read them all.
        """
        columns = EVALUATIONS.c
        query = sa.select(EVALUATIONS).where(
            columns.run == run, columns.round == number, columns.model == "global"
        )
        rows = self._database.rows(EVALUATIONS, query)
        with self._database.errors():
            return {
                row["silo"]: msgspec.json.decode(row["result"], type=EvaluationResult)
                for row in rows
            }

    def evaluations(self, run: str, number: int | None = None) -> list[EvaluationRow]:
        """Every measurement of a run, or of one round of it; by round, silo and model."""
        columns = EVALUATIONS.c
        query = (
            sa.select(EVALUATIONS)
            .where(columns.run == run)
            .order_by(columns.round, columns.silo, columns.model)
        )
        if number is not None:
            query = query.where(columns.round == number)
        rows = self._database.rows(EVALUATIONS, query)
        with self._database.errors():
            return [
                EvaluationRow(
                    run=row["run"],
                    round=row["round"],
                    silo=row["silo"],
                    result=msgspec.json.decode(row["result"], type=EvaluationResult),
                )
                for row in rows
            ]


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
