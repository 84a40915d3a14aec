"""Do programs of versions too far apart part with a sentence, whichever of them is the older?"""

from pathlib import Path

import pytest

from coordinator import service
from fedreid.errors import VersionsApart
from silo_agent.trust import channel
from silo_agent.trust.channel import Line
from tests.coordinator.trust.assembled import Assembled, lived


@pytest.fixture
def coordinator(tmp_path: Path) -> Assembled:
    return Assembled(tmp_path)


def test_an_agent_of_a_far_version_is_told_and_its_version_is_known(
    coordinator: Assembled, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(coordinator: Assembled) -> None:
        identity = await coordinator.enrolled("north")
        async with Line(coordinator.address, identity) as line:
            for version in ("0.1.7", "0.2.0"):
                monkeypatch.setattr(channel, "__version__", version)
                assert (await line.greet()).federation == "harbour"
            monkeypatch.setattr(channel, "__version__", "0.9.0")
            with pytest.raises(VersionsApart, match=r"0\.9\.0.*Upgrade the coordinator"):
                await line.greet()
        assert [silo.agent_version for silo in await coordinator.silos()] == ["0.9.0"]

    lived(coordinator, story)


def test_an_agent_looks_at_a_coordinator_that_does_not_look_at_it(
    coordinator: Assembled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "check_versions", lambda **versions: None)

    async def story(coordinator: Assembled) -> None:
        identity = await coordinator.enrolled("north")
        async with Line(coordinator.address, identity) as line:
            monkeypatch.setattr(channel, "__version__", "0.9.0")
            with pytest.raises(VersionsApart, match="Upgrade the coordinator"):
                await line.greet()

    lived(coordinator, story)
