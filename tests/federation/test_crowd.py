"""Do an honest silo's rounds go on, and its calls get answers, while others hold the door?

Idle connections, half-open sockets, and silos that drip their uploads byte by byte, all at once
and opened again whenever they are closed, against real processes.
"""

import asyncio
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import psutil
import pytest

from benchmark.federation import LocalFederation
from fedreid.errors import FedreidError
from fedreid.v1 import admin_pb2, tensors_pb2
from fedreid.v1 import federation_pb2 as pb
from silo_agent.config import Folders
from silo_agent.trust.channel import calling
from tests.federation.conftest import Founding, write_plan
from tests.federation.rogue import Rogue, announcement, payload_of

_WAIT_S = 240.0
_DRIP_S = 0.2
_MODEL = {"name": "mobilenet_v3_small", "height_px": 64, "width_px": 32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Siege:
    """How many of whom, and how often an honest silo says hello meanwhile."""

    idle: int
    half_open: int
    drips: int
    hellos: int
    rounds: int
    deadline_s: float
    """Until which a round waits for those who drip."""


FEW = Siege(idle=60, half_open=40, drips=3, hellos=50, rounds=1, deadline_s=10.0)
MANY = Siege(idle=1000, half_open=200, drips=8, hellos=1000, rounds=2, deadline_s=30.0)


@contextmanager
def crowd(address: str, identity: Path, siege: Siege) -> Iterator[None]:
    """A process that holds connections open."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.federation.crowd", address, str(identity),
         str(siege.idle), str(siege.half_open)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdin is not None and child.stdout is not None
        try:
            assert "idle" in child.stdout.readline()
            yield
            assert child.poll() is None
        finally:
            child.stdin.close()
            child.wait(10)


async def drip(rogue: Rogue) -> None:
    """Upload a byte at a time, each in a chunk as it should be, for ever."""
    while True:
        with contextlib.suppress(FedreidError):
            task = await rogue.next_round(0)
            tensors = await rogue.base(task)
            opening = await rogue.open(task, announcement(task, tensors))
            if opening.state == pb.UPLOAD_STATE_SEND:
                with calling(rogue.address):
                    await rogue.stub.SendUpload(_drops(opening, payload_of(tensors)))
        await asyncio.sleep(_DRIP_S)


async def _drops(
    opening: pb.OpenUploadResponse, payload: bytes
) -> AsyncIterator[pb.SendUploadRequest]:
    yield pb.SendUploadRequest(upload_id=opening.upload_id)
    for at in range(opening.offset, len(payload)):
        data = payload[at : at + 1]
        chunk = tensors_pb2.Chunk(offset=at, data=data, crc32c=google_crc32c.value(data))
        yield pb.SendUploadRequest(chunk=chunk)
        await asyncio.sleep(_DRIP_S)


async def hellos_ms(rogue: Rogue, count: int) -> list[float]:
    """How long so many calls took, one after the other."""
    took = []
    for _ in range(count):
        began_s = time.perf_counter()
        await rogue.stub.Hello(pb.HelloRequest(agent_version="1"))
        took.append((time.perf_counter() - began_s) * 1000)
        await asyncio.sleep(0.01)
    return took


def told(took_ms: list[float]) -> str:
    """Median, 99th percentile and the longest."""
    cuts = statistics.quantiles(took_ms, n=100)
    return f"p50 {cuts[49]:.1f} ms, p99 {cuts[98]:.1f} ms, longest {max(took_ms):.1f} ms"


class Besieged:
    """A federation with one honest agent, and everybody else."""

    def __init__(self, local: LocalFederation, siege: Siege) -> None:
        self._local = local
        self._siege = siege
        self._door = Rogue(local, "door")
        self._drips = [Rogue(local, f"drip-{n}") for n in range(siege.drips)]
        self.quiet_ms: list[float] = []
        self.besieged_ms: list[float] = []

    async def measure(self, plan: Path) -> None:
        """Say hello before the siege, and during it while a run goes on."""
        for rogue in (self._door, *self._drips):
            await rogue.enrol()
        async with self._door.connected():
            self.quiet_ms = await hellos_ms(self._door, self._siege.hellos)
            async with self._dripping():
                identity = Folders(self._local.agent_data("door")).identity
                with crowd(self._local.endpoint, identity, self._siege):
                    await asyncio.to_thread(self._local.start_run, plan)
                    await self._until_drips_fall()
                    self.besieged_ms = await hellos_ms(self._door, self._siege.hellos)
                    await asyncio.to_thread(
                        self._local.wait_until,
                        lambda run: run.rounds_published == self._siege.rounds,
                        timeout_s=_WAIT_S,
                    )

    async def _until_drips_fall(self) -> None:
        spool = self._local.data / "spool"
        while len({path.name for path in spool.glob("*/drip-*.part")}) < self._siege.drips:
            await asyncio.sleep(_DRIP_S)

    @asynccontextmanager
    async def _dripping(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for rogue in self._drips:
                await stack.enter_async_context(rogue.connected())
            tasks = [asyncio.create_task(drip(rogue)) for rogue in self._drips]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


def check(found: Founding, tmp_path: Path, siege: Siege) -> None:
    """Every round ends with the honest silo's update, and calls are answered meanwhile."""
    local = found(silos=1)
    (honest,) = local.silos
    plan = write_plan(
        tmp_path / "plan.toml",
        rounds=siege.rounds,
        backbone=_MODEL,
        quorum={
            "min_silos": 1, "min_fraction": 0.0, "deadline_s": siege.deadline_s,
            "phase_deadline_s": 120.0,
        },
    )  # fmt: skip
    agent = local.join_without_training(honest)
    local.wait_until(lambda run: "connected" in agent.log, timeout_s=_WAIT_S)
    besieged = Besieged(local, siege)
    service = psutil.Process(local.coordinator.pid)
    before_mb = service.memory_info().rss / 2**20
    asyncio.run(besieged.measure(plan))
    print(
        f"{siege}: quiet {told(besieged.quiet_ms)}; besieged {told(besieged.besieged_ms)}; "
        f"service {before_mb:.0f} MB before, {service.memory_info().rss / 2**20:.0f} MB after"
    )
    with local.admin() as admin:
        rounds = admin.ListRounds(admin_pb2.ListRoundsRequest()).rounds
    assert [state.phase for state in rounds] == ["published"] * siege.rounds
    assert [[part.silo for part in state.participants] for state in rounds] == [
        [honest]
    ] * siege.rounds
    assert "Traceback" not in local.coordinator.log
    # The figure is for a quiet machine; this only says that nobody waits for those who hold.
    assert statistics.median(besieged.besieged_ms) < 1000


@pytest.mark.timeout(300)
def test_a_few_who_hold_the_door_hinder_nobody(found: Founding, tmp_path: Path) -> None:
    check(found, tmp_path, FEW)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_who_hold_the_door_hinder_nobody(found: Founding, tmp_path: Path) -> None:
    check(found, tmp_path, MANY)
