"""How do an agent and its coordinator meet, and part if their versions are too far apart?"""

import asyncio
from pathlib import Path

import psutil
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


def test_an_agent_that_dials_anew_leaves_its_old_connection(coordinator: Assembled) -> None:
    def ports(address: str) -> set[int]:
        """Of this process's connections to the coordinator."""
        port = int(address.rpartition(":")[2])
        return {
            each.laddr.port
            for each in psutil.Process().net_connections("tcp")
            if each.status == psutil.CONN_ESTABLISHED and each.raddr and each.raddr.port == port
        }

    async def story(coordinator: Assembled) -> None:
        identity = await coordinator.enrolled("north")
        async with Line(coordinator.address, identity) as line:
            await line.greet()
            before = ports(coordinator.address)
            line.dial_again()
            await line.greet()
            async with asyncio.timeout(10):
                while len(after := ports(coordinator.address)) > len(before):
                    await asyncio.sleep(0.01)
        assert len(after - before) == len(before - after) == 1

    lived(coordinator, story)
