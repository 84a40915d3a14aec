"""How do many light agents run in one process? ``python -m benchmark.light_agents CROWD SEEN``.

Each takes part as soon as it is connected, a few connect at once; when all are, a line is printed.
In the end what was measured is written as JSON. How late the process's own event loop comes round
is measured beside, for a call can't be answered sooner than its caller looks.
"""

import asyncio
import resource
import sys
import time
from pathlib import Path

import msgspec

from benchmark.light_agent import Federation, LightAgent, Measured, Shelf
from fedreid import launch
from fedreid.console import run_program
from fedreid.files import write_bytes
from fedreid.names import SiloName
from fedreid.pki.identity import Identity

_CONNECTING_AT_ONCE = 8
_LOOK_S = 0.02


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One silo and its identity."""

    silo: str
    key_pem: bytes
    certificate_pem: bytes


class Crowd(msgspec.Struct, frozen=True, kw_only=True):
    """The silos of one process."""

    address: str
    federation: str
    model_key: bytes
    authorities_pem: bytes
    members: tuple[Member, ...]


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What the agents of one process have measured."""

    seconds: dict[str, list[float]]
    """Of each unary call, by its name."""
    errors: dict[str, int]
    polls: int
    models: int
    updates: int
    lateness_s: list[float]
    """How much later than it wanted the event loop came round, every now and then."""
    cpu_s: float


async def live(crowd: Crowd) -> Seen:
    """Connect all, and take part until the run is over."""
    federation = Federation(address=crowd.address, name=crowd.federation, model_key=crowd.model_key)
    measured, shelf = Measured(), Shelf()
    agents = [
        LightAgent(
            federation,
            SiloName(member.silo),
            Identity(
                key_pem=member.key_pem,
                certificate_pem=member.certificate_pem,
                authorities_pem=crowd.authorities_pem,
            ),
            measured,
            shelf,
        )
        for member in crowd.members
    ]
    connecting = asyncio.Semaphore(_CONNECTING_AT_ONCE)

    async def connect(agent: LightAgent) -> "asyncio.Task[None]":
        async with connecting:
            await agent.connect()
        return asyncio.create_task(agent.take_part())

    taking_part = await asyncio.gather(*map(connect, agents))
    print("connected", flush=True)
    lateness_s: list[float] = []
    watching = asyncio.create_task(_watch(lateness_s))
    await asyncio.gather(*taking_part)
    watching.cancel()
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Seen(
        seconds=measured.seconds,
        errors=dict(measured.errors),
        polls=measured.polls,
        models=measured.models,
        updates=measured.updates,
        lateness_s=lateness_s,
        cpu_s=used.ru_utime + used.ru_stime,
    )


async def _watch(lateness_s: list[float]) -> None:
    while True:
        began_s = time.perf_counter()
        await asyncio.sleep(_LOOK_S)
        lateness_s.append(time.perf_counter() - began_s - _LOOK_S)


def main() -> None:
    """Run the crowd that a file describes."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    crowd = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Crowd)
    write_bytes(Path(sys.argv[2]), msgspec.json.encode(asyncio.run(live(crowd))))


if __name__ == "__main__":
    launch.prepare()
    run_program(main)
