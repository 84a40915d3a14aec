"""Does a start cost the same after three rounds and after three hundred?"""

from pathlib import Path
from typing import Any

import pytest
import tomli_w

from coordinator.config import load_config
from coordinator.folders import Folders
from coordinator.rounds.database import Database
from coordinator.rounds.journal import Journal, ModelRow, RunRow
from coordinator.rounds.machine import open_round
from coordinator.server import Coordinator
from fedreid.audit import AuditLog
from fedreid.clock import SystemClock
from tests.coordinator.rounds import long_run
from tests.coordinator.rounds.states import BASE, rules
from tests.coordinator.trust.assembled import Assembled

SILOS = long_run.names(4)


def after(folder: Path, rounds: int) -> Folders:
    """The data folder of a coordinator that was killed while it collected the next round."""
    folders = Assembled(folder).folders
    journal, audit = Journal(folders.journal), AuditLog(folders.audit, SystemClock())
    model = ModelRow(
        version=1, digest=BASE, run="spring", round=0, release=b"release", signature=b"signature"
    )
    plan = tomli_w.dumps({"name": "spring", "rounds": 1000})
    run = RunRow(name="spring", plan_toml=plan, state="running", started_at_s=1.0)
    journal.add_run(run, model)
    long_run.register(journal, SILOS)
    state = open_round(
        run="spring",
        number=rounds + 1,
        base_digest=BASE,
        before=None,
        published_before=rounds,
        invited=SILOS,
        rules=rules(),
        now_s=SystemClock().now_s(),
    )
    long_run.write_rounds(journal, state, range(1, rounds + 1), SILOS)
    long_run.write_audit(audit, "spring", range(1, rounds + 1), SILOS)
    journal.save_round(state)
    journal.close()
    return folders


def test_a_start_reads_no_more_of_the_journal_after_a_long_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    rows = Database.rows

    def counted(self: Database, *arguments: Any) -> list[dict[str, Any]]:
        found = rows(self, *arguments)
        read.append(len(found))
        return found

    monkeypatch.setattr(Database, "rows", counted)
    costs = []
    for rounds in (3, 60):
        folders = after(tmp_path / str(rounds), rounds)
        read.clear()
        coordinator = Coordinator(folders, load_config(folders))
        costs.append(sum(read))
        state = coordinator._current.round
        assert state is not None and (state.number, state.phase) == (rounds + 1, "collecting")
        coordinator._journal.close()
    assert costs[0] == costs[1] < 20
