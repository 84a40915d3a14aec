"""Does a federation give the same models whatever is killed, and wherever? The most telling points.

Real processes over real mTLS that train nothing; every point there is: test_crash_matrix.py.
"""

from pathlib import Path

import pytest

from tests.federation.conftest import Storming, write_plan
from tests.federation.storms import (
    BACKBONE,
    COORDINATOR,
    QUORUM,
    Storm,
    check_nothing_is_lost,
    play,
)

pytestmark = pytest.mark.timeout(900)

_OF_THE_COORDINATOR = (
    "upload.chunk.write:after",
    "upload.accept.commit:before",
    "upload.accept.commit:after",
    "aggregate.write:after",
    "publish.rename:after",
    "publish.commit:after",
)
_OF_AN_AGENT = ("download.finish:after", "outbox.write:after", "upload.ack.received")


def ravaged(storm: Storm) -> None:
    silo = next(iter(storm.local.agents))
    for point in _OF_THE_COORDINATOR:
        storm.ride_out(COORDINATOR, f"{point} 1 crash")
    for point in _OF_AN_AGENT:
        storm.ride_out(silo, f"{point} 1 crash")
    # Again in the middle of recovering from the first.
    storm.ride_out(COORDINATOR, "publish.rename:before 1 crash", "durable:after 2 crash")
    assert storm.deaths[COORDINATOR] == len(_OF_THE_COORDINATOR) + 2
    assert storm.deaths[silo] >= len(_OF_AN_AGENT)


def test_killed_anywhere_a_federation_publishes_the_same_models(
    storms: Storming, tmp_path: Path
) -> None:
    plan = write_plan(tmp_path / "plan.toml", rounds=1000, backbone=BACKBONE, quorum=QUORUM)
    stormy, calm = storms("stormy"), storms("calm")
    play(stormy, plan, ravaged)
    play(calm, plan, lambda storm: storm.go_on(stormy.published() - 1))
    check_nothing_is_lost(stormy, calm)
