"""What stands in for journal, audit log and clock? The same promises, kept in memory.

A commit is whole or has not happened; rows are stored as the bytes that the true journal stores.
A test plays the same schedules over the true journal, and they must go the same way.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from coordinator.rounds.journal import (
    EvaluationRow,
    Journal,
    ModelRow,
    PlanChangeRow,
    RunRow,
    SiloRow,
)
from coordinator.rounds.machine import RoundState
from fedreid.audit import AuditLine, AuditLog, Field
from fedreid.contract import EvaluationResult
from fedreid.errors import StorageError
from tests.simulation.loop import VirtualLoop

EPOCH_S = 1_900_000_000.0


class MemoryClock:
    """The coordinator's clock, which somebody may set; time itself passes with the loop."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.shift_s = 0.0

    def now_s(self) -> float:
        """Seconds since the Unix epoch."""
        return EPOCH_S + self._loop.time() + self.shift_s

    def monotonic_s(self) -> float:
        """Seconds since the schedule began."""
        return self._loop.time()


class MemoryJournal(Journal):
    """The journal's rows in dictionaries."""

    def __init__(self, step: Callable[[str], None], saw: Callable[[RoundState], None]) -> None:
        """``step`` is told before and after each commit; ``saw`` of each round's new state."""
        self._step, self._saw = step, saw
        self._silos: dict[str, bytes] = {}
        self._runs: dict[str, RunRow] = {}
        self._rounds: dict[tuple[str, int], bytes] = {}
        self._models: list[ModelRow] = []
        self._plan_changes: list[PlanChangeRow] = []
        self._evaluations: dict[tuple[str, int, str, str], EvaluationRow] = {}

    @property
    def commits(self) -> int:
        """Nobody counts them here."""
        return 0

    @property
    def restored(self) -> None:
        """It is of no backup."""

    def close(self) -> None:
        """Nothing is held open."""

    def silos(self) -> list[SiloRow]:
        """Every registered silo, by name."""
        rows = (self._silos[name] for name in sorted(self._silos))
        return [msgspec.msgpack.decode(row, type=SiloRow) for row in rows]

    def save_silo(self, silo: SiloRow, *, drop_tokens: bool = False) -> None:
        """Store a silo as it is now."""
        self._step(f"before commit silo {silo.name}")
        self._silos[silo.name] = msgspec.msgpack.encode(silo)
        self._step(f"after commit silo {silo.name}")

    def newest_run(self) -> RunRow | None:
        """The run that was started last."""
        return next(reversed(self._runs.values()), None)

    def run_exists(self, name: str) -> bool:
        """Whether there ever was a run of this name."""
        return name in self._runs

    def add_run(self, run: RunRow, model: ModelRow) -> None:
        """Start a run with its start weights."""
        self._step("before commit run")
        self._runs[run.name] = run
        self._models.append(model)
        self._step("after commit run")

    def set_run_state(self, name: str, state: str, reason: str) -> None:
        """Change a run's state."""
        self._step("before commit run")
        self._runs[name] = msgspec.structs.replace(self._runs[name], state=state, reason=reason)
        self._step("after commit run")

    def add_plan_change(self, change: PlanChangeRow) -> None:
        """Change the plan of a run from one of its rounds on."""
        self._step("before commit plan")
        self._plan_changes.append(change)
        self._step("after commit plan")

    def plan_changes(self, run: str) -> list[PlanChangeRow]:
        """Every change of a run's plan, in the order in which they were made."""
        return [change for change in self._plan_changes if change.run == run]

    def save_round(self, state: RoundState, models: Sequence[ModelRow] = ()) -> None:
        """Store a round as it stands, with the models it published."""
        self._step(f"before commit round {state.number} {state.phase}")
        versions = {model.version for model in self._models}
        assert not versions & {model.version for model in models}, "a version is given once"
        self._rounds[state.run, state.number] = msgspec.json.encode(state)
        self._models.extend(models)
        self._saw(state)
        self._step(f"after commit round {state.number} {state.phase}")

    def add_models(self, models: Sequence[ModelRow]) -> None:
        """Store further releases of models."""
        self._step("before commit models")
        self._models.extend(models)
        self._step("after commit models")

    def newest_round(self, run: str) -> RoundState | None:
        """The run's last round."""
        return next(reversed(self.rounds(run)), None)

    def round(self, run: str, number: int) -> RoundState | None:
        """One round."""
        stored = self._rounds.get((run, number))
        return None if stored is None else msgspec.json.decode(stored, type=RoundState)

    def rounds(self, run: str, *, first: int = 0, limit: int = -1) -> list[RoundState]:
        """The rounds of a run from ``first`` on by number, at most so many."""
        places = sorted(at for at in self._rounds if at[0] == run and at[1] >= first)
        wanted = places if limit < 0 else places[:limit]
        return [msgspec.json.decode(self._rounds[place], type=RoundState) for place in wanted]

    def newest_model(self) -> ModelRow | None:
        """The model that was published last."""
        return self._models[-1] if self._models else None

    def model(self, digest: str) -> ModelRow | None:
        """The newest release of the model with this digest."""
        return next((row for row in reversed(self._models) if row.digest == digest), None)

    def models(self) -> list[ModelRow]:
        """Every published model, newest first."""
        return self._models[::-1]

    def save_evaluations(self, rows: list[EvaluationRow]) -> None:
        """Store measurements."""
        self._step("before commit evaluations")
        for row in rows:
            self._evaluations[row.run, row.round, row.silo, row.result.model] = row
        self._step("after commit evaluations")

    def measured(self, run: str, number: int) -> dict[str, EvaluationResult]:
        """What the global model of one round scored, by silo."""
        rows = (row for at, row in self._evaluations.items() if at[:2] == (run, number))
        return {row.silo: row.result for row in rows if row.result.model == "global"}

    def evaluations(self, run: str, number: int | None = None) -> list[EvaluationRow]:
        """Every measurement of a run, or of one round of it."""
        return [
            self._evaluations[at]
            for at in sorted(self._evaluations)
            if at[0] == run and number in (None, at[1])
        ]


class SteppedJournal(Journal):
    """The true journal on SQLite, whose commits are steps of the schedule as well."""

    def __init__(
        self, path: Path, step: Callable[[str], None], saw: Callable[[RoundState], None]
    ) -> None:
        super().__init__(path)
        self._step, self._saw = step, saw

    def save_silo(self, silo: SiloRow, *, drop_tokens: bool = False) -> None:
        """Store a silo as it is now."""
        self._step(f"before commit silo {silo.name}")
        super().save_silo(silo, drop_tokens=drop_tokens)
        self._step(f"after commit silo {silo.name}")

    def add_run(self, run: RunRow, model: ModelRow) -> None:
        """Start a run with its start weights."""
        self._step("before commit run")
        super().add_run(run, model)
        self._step("after commit run")

    def set_run_state(self, name: str, state: str, reason: str) -> None:
        """Change a run's state."""
        self._step("before commit run")
        super().set_run_state(name, state, reason)
        self._step("after commit run")

    def add_plan_change(self, change: PlanChangeRow) -> None:
        """Change the plan of a run from one of its rounds on."""
        self._step("before commit plan")
        super().add_plan_change(change)
        self._step("after commit plan")

    def save_round(self, state: RoundState, models: Sequence[ModelRow] = ()) -> None:
        """Store a round as it stands, with the models it published."""
        self._step(f"before commit round {state.number} {state.phase}")
        super().save_round(state, models)
        self._saw(state)
        self._step(f"after commit round {state.number} {state.phase}")

    def save_evaluations(self, rows: list[EvaluationRow]) -> None:
        """Store measurements."""
        self._step("before commit evaluations")
        super().save_evaluations(rows)
        self._step("after commit evaluations")


class MemoryAudit(AuditLog):
    """An audit log in a list; its instants are the schedule's own, whatever the clock says."""

    def __init__(self, loop: VirtualLoop, step: Callable[[str], None]) -> None:
        self._loop, self._step = loop, step
        self.lines: list[AuditLine] = []
        self.unwritten: list[AuditLine] = []
        """What was to be written and found no room: it happened all the same."""
        self.told: Callable[[str, dict[str, Any]], None] = lambda event, fields: None

    def newest_first(self) -> Iterator[AuditLine]:
        """Every line."""
        return reversed(self.lines)

    def append_owed(self, owed: "deque[tuple[str, dict[str, Field]]]") -> None:
        """Write events and take off what is written, one after the other."""
        for event, fields in [owed[at] for at in range(len(owed))]:
            self.append(event, **fields)
            owed.popleft()

    def append(self, event: str, **fields: Field) -> None:
        """Write one event."""
        line = AuditLine(
            number=len(self.lines) + 1,
            at_s=self._loop.time(),
            event=event,
            fields=dict(fields),
            previous="",
        )
        try:
            self._step(f"before audit {event}")
        except StorageError:
            self.unwritten.append(line)
            raise
        self.lines.append(line)
        self.told(event, line.fields)
        self._step(f"after audit {event}")
