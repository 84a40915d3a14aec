"""Does a silo whose machine dies in the middle of an epoch go on with that epoch?"""

import re
import signal
from pathlib import Path

import pytest

from benchmark.federation import LocalFederation, Program
from coordinator.client import every_round
from fedreid import faults
from silo_agent.config import Folders
from tests.federation.conftest import Founding, write_plan
from tests.federation.test_learning import finished

_WAIT_S = 300.0
_KILLS = (
    "train.checkpoint:after 3 crash",
    "train.checkpoint:before 1 crash",
    "train.step 2 crash",
    "train.checkpoint:after 5 crash",
)


def digest(local: LocalFederation) -> str:
    """Of the model that the only round published."""
    local.wait_until(finished, timeout_s=_WAIT_S)
    with local.admin() as admin:
        (state,) = every_round(admin)
    return state.model_digest


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_agent_killed_in_an_epoch_goes_on_with_it_to_the_same_model(
    found: Founding, tmp_path: Path
) -> None:
    plan = write_plan(
        tmp_path / "plan.toml",
        rounds=1,
        training={"threads": 1, "batch_size": 4},
        quorum={"min_silos": 1, "deadline_s": 600.0, "phase_deadline_s": 60.0},
    )
    calm = found("calm", silos=1)
    (silo,) = calm.silos
    calm.start_run(plan)
    calm.join(silo)
    wanted = digest(calm)
    calm.stop()

    local = found("killed", silos=1)
    local.start_run(plan)
    local.command(*local.join_arguments(silo), "--enrol-only")
    armed = tmp_path / "faults"
    armed.write_text("".join(f"{line}\n" for line in _KILLS))
    data = local.agent_data(silo)
    agent = local.agents[silo] = Program(
        ("tests.federation.careful_agent", str(data)),
        local.root / f"{silo}.log",
        {faults.VARIABLE: str(armed)},
    )
    for _ in _KILLS:
        agent.start()
        assert agent.wait(_WAIT_S) == -signal.SIGKILL
    assert list(Folders(data).rounds.glob(".*.checkpoints"))
    agent.start()
    assert digest(local) == wanted
    went_on = re.search(r"this silo went on from step (\d+), where it was interrupted", agent.log)
    assert went_on is not None and int(went_on[1]) >= 5
    assert not list(Folders(data).rounds.glob(".*"))
