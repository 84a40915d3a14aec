"""Which plan does each round of a run follow? The one it was started with, or a later change's."""

from dataclasses import dataclass

from coordinator.rounds.changes import changes_between
from coordinator.rounds.chronicle import Log
from coordinator.rounds.journal import Journal, PlanChangeRow, RunRow
from fedreid.errors import RunError
from fedreid.plan import Plan, parse_plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A plan, and the first round that follows it."""

    from_round: int
    toml: str
    plan: Plan

    @classmethod
    def of(cls, from_round: int, toml: str) -> "Planned":
        """The plan in a TOML text; see :func:`parse_plan` for errors."""
        return cls(from_round=from_round, toml=toml, plan=parse_plan(toml))


class Plans:
    """The plans of one run, oldest first; every change of them is in the journal."""

    def __init__(self, journal: Journal, run: RunRow | None) -> None:
        """Read what the run follows; without a run there is no plan."""
        self._journal = journal
        self._planned: list[Planned] = []
        if run is not None:
            self._planned.append(Planned.of(0, run.plan_toml))
            for change in journal.plan_changes(run.name):
                self._planned.append(Planned.of(change.from_round, change.plan_toml))

    @property
    def newest(self) -> Planned:
        """The plan as it was changed last.

        Raises:
            RunError: there never was a run.
        """
        if not self._planned:
            raise RunError("There is no run", next_step="Start one: coordinator run start PLAN.")
        return self._planned[-1]

    def of_round(self, number: int) -> Plan:
        """What a round follows.

        Raises:
            RunError: there never was a run.
        """
        fitting = (p.plan for p in reversed(self._planned) if p.from_round <= number)
        return next(fitting, self.newest.plan)

    def change(
        self, run: str, planned: Planned, *, published: int, admin: str, audit: Log
    ) -> tuple[str, ...]:
        """Follow another plan from one of the run's next rounds on; blocks on the disk.

        Returns:
            What is different, a line for each key.

        Raises:
            PlanRefused: it changes what a run keeps, or nothing.
        """
        changes = changes_between(self.newest.plan, planned.plan, published=published)
        row = PlanChangeRow(run=run, from_round=planned.from_round, plan_toml=planned.toml)
        self._journal.add_plan_change(row)
        self._planned.append(planned)
        audit.append(
            "run.changed",
            run=run,
            from_round=planned.from_round,
            changes=list(changes),
            admin=admin,
        )
        return changes
