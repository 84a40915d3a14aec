"""How long does an agent need from its start to its first answered Hello?"""

import time

import pytest

from tests.federation.conftest import Founding

pytestmark = pytest.mark.slow
_LIMIT_S = 3.0
_STARTS = 5


def test_an_agent_is_in_touch_three_seconds_after_its_start(found: Founding) -> None:
    local = found(silos=1)
    (silo,) = local.silos
    local.command(*local.join_arguments(silo), "--enrol-only")
    needed_s = []
    for _ in range(_STARTS):
        began_s = time.monotonic()
        agent = local.start_agent(silo)
        while "connected" not in agent.log_of_this_start:
            assert agent.running(), agent.log
            time.sleep(0.01)
        needed_s.append(time.monotonic() - began_s)
        agent.stop()
    print("start to first Hello:", ", ".join(f"{s:.2f} s" for s in needed_s))
    assert min(needed_s) < _LIMIT_S
