"""Slow links, silent peers, outages past every deadline: does a run still come to the same models?

These take minutes of waiting by their nature, and little work.
"""

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from benchmark.federation import LocalFederation, Program
from coordinator.folders import Folders as CoordinatorFolders
from coordinator.rounds.journal import Journal
from fedreid.v1 import admin_pb2
from tests.federation.conftest import Founding
from tests.federation.proxy import Line, Proxy
from tests.federation.test_learning import finished
from tests.federation.test_network import QUORUM, Linked, plan, undisturbed
from tests.history import check, read_history

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
_WAIT_S = 1500.0
SLOW = Line(latency_s=0.3, bytes_per_s=8000.0)
"""64 kbit/s, and a round trip of 0.6 s."""
_LONG = {**QUORUM, "deadline_s": 1200.0}
_HALF = {"upload": "bf16", "download": "bf16"}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Proxies that end with the test."""
    with ExitStack() as stack:
        yield stack


def test_a_round_over_64_kbit_per_second_is_slow_and_nothing_worse(
    found: Founding, stack: ExitStack, tmp_path: Path
) -> None:
    written = plan(tmp_path / "plan.toml", rounds=1, quorum=_LONG, wire=_HALF)
    expected = undisturbed(found, written)
    fed = Linked(found(), stack)
    slow = min(fed.local.silos)
    fed.proxies[slow].line.update({"up": SLOW, "down": SLOW})
    fed.local.start_run(written)
    for silo in fed.local.silos:
        fed.join(silo)
    fed.local.wait_until(finished, timeout_s=_WAIT_S)
    (state,) = fed.ended(1, expected)
    passed = fed.proxies[slow].passed
    took_s = state.phase_seconds["collecting"]
    print(
        f"one round at 64 kbit/s: {state.upload_bytes // 2} bytes of update, {passed['up']} up and "
        f"{passed['down']} down, {fed.proxies[slow].connections} connections, {took_s:.0f} s"
    )
    # Once at most: the port closes an idle connection, and what it has sent is still on its way.
    assert fed.told(slow, "can't be reached") <= 1
    assert passed["up"] < 1.2 * state.upload_bytes / 2


@pytest.mark.parametrize("side", ["agent", "coordinator"])
@pytest.mark.parametrize("way", ["up", "down"])
def test_a_half_open_connection_is_noticed_and_replaced(
    found: Founding, stack: ExitStack, tmp_path: Path, side: str, way: str
) -> None:
    written = plan(tmp_path / "plan.toml", rounds=2)
    expected = undisturbed(found, written)
    fed = Linked(found(), stack)
    silent = min(fed.local.silos)
    proxy = fed.proxies[silent]
    forsaken = proxy.when_passed(
        "up" if way == "up" else "down",
        500_000,
        lambda: proxy.leave("agent" if side == "agent" else "coordinator"),
    )
    fed.local.start_run(written)
    for silo in fed.local.silos:
        fed.join(silo)
    fed.local.wait_until(finished, timeout_s=_WAIT_S)
    rounds = fed.ended(2, expected)
    assert forsaken.is_set()
    print(f"{side} gone while {way}: {rounds[0].phase_seconds['collecting']:.1f} s of collecting")


@pytest.mark.parametrize("outage_s", [1.0, 45.0, 150.0])
def test_an_outage_within_the_deadline_costs_time_alone(
    found: Founding, stack: ExitStack, tmp_path: Path, outage_s: float
) -> None:
    written = plan(tmp_path / "plan.toml", rounds=2, quorum=_LONG)
    expected = undisturbed(found, written)
    fed = Linked(found(), stack)
    proxies = list(fed.proxies.values())
    parted = [p.when_passed("up", 500_000, lambda p=p: p.part(outage_s)) for p in proxies]  # type: ignore[misc]
    fed.local.start_run(written)
    for silo in fed.local.silos:
        fed.join(silo)
    fed.local.wait_until(finished, timeout_s=_WAIT_S)
    rounds = fed.ended(2, expected)
    assert all(event.is_set() for event in parted)
    took_s = rounds[0].phase_seconds["collecting"]
    print(f"an outage of {outage_s:g} s: {took_s:.1f} s of collecting")
    assert outage_s <= took_s < outage_s + 60.0  # they come back within RECONNECT_MAX_S and a call
    for silo in fed.local.silos:
        assert fed.told(silo, "can't be reached") <= 1


def test_rounds_fail_while_everybody_is_cut_off_and_go_on_afterwards(
    found: Founding, stack: ExitStack, tmp_path: Path
) -> None:
    fed = Linked(found(), stack)
    proxies = fed.proxies.values()
    quorum = {**QUORUM, "deadline_s": 30.0}  # half of the time for which silos count as present
    fed.local.start_run(plan(tmp_path / "plan.toml", rounds=3, quorum=quorum))
    parted = [p.when_passed("up", 2_000_000, p.part) for p in proxies]
    for silo in fed.local.silos:
        fed.join(silo)
    fed.until(lambda run: all(event.is_set() for event in parted))
    fed.until(lambda run: run.round.phase == "skipped" or "waiting for silos" in run.reason)
    fed.until(lambda run: "waiting for silos: 0" in run.reason)
    for proxy in proxies:
        proxy.heal()
    fed.local.wait_until(finished, timeout_s=_WAIT_S)
    with fed.local.admin() as admin:
        rounds = list(admin.ListRounds(admin_pb2.ListRoundsRequest()).rounds)
    phases = [state.phase for state in rounds]
    assert phases.count("published") == 3 and "skipped" in phases
    fed.check()


NAMESPACES = itertools.count()


class Elsewhere:
    """A network namespace with an own link of so many bits, in which an agent runs."""

    def __init__(self, rate: str) -> None:
        number = next(NAMESPACES)
        self.name = f"fedreid-{os.getpid()}-{number}"
        self._outer, self._inner = f"fr{os.getpid() % 100000}o{number}", "inner"
        self.host, self._guest = f"10.213.{number}.1", f"10.213.{number}.2"
        self._rate = rate

    def __enter__(self) -> "Elsewhere":
        ip = ("ip", "-n", self.name)
        for command in (
            ("ip", "netns", "add", self.name),
            ("ip", "link", "add", self._outer, "type", "veth", "peer", "name", self._inner,
             "netns", self.name),
            ("ip", "addr", "add", f"{self.host}/24", "dev", self._outer),
            ("ip", "link", "set", self._outer, "up"),
            (*ip, "addr", "add", f"{self._guest}/24", "dev", self._inner),
            (*ip, "link", "set", self._inner, "up"),
            ("tc", "qdisc", "add", "dev", self._outer, "root", "tbf", *self._shape()),
            ("tc", "-n", self.name, "qdisc", "add", "dev", self._inner, "root", "tbf",
             *self._shape()),
        ):  # fmt: skip
            subprocess.run(command, check=True, capture_output=True, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        for command in (("ip", "link", "del", self._outer), ("ip", "netns", "del", self.name)):
            subprocess.run(command, check=False, capture_output=True)

    def _shape(self) -> tuple[str, ...]:
        return ("rate", self._rate, "burst", "4kb", "latency", "2000ms")


@contextmanager
def elsewhere(rate: str) -> Iterator[Elsewhere]:
    """A namespace, or a skip that says why there is none."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("tc") is None:
        pytest.skip("needs root, ip and tc; the proxy covers the same without them")
    place = Elsewhere(rate)
    try:
        place.__enter__()
    except subprocess.CalledProcessError as error:
        place.__exit__()
        pytest.skip(f"no limited link here ({error.stderr.strip()}); the proxy covers the same")
    try:
        yield place
    finally:
        place.__exit__()


def test_a_round_over_a_true_link_of_64_kbit_per_second(found: Founding, tmp_path: Path) -> None:
    written = plan(tmp_path / "plan.toml", rounds=1, quorum=_LONG, wire=_HALF)
    expected = undisturbed(found, written)
    with elsewhere("64kbit") as place:
        fed = found("far", hostnames=("localhost", "127.0.0.1", place.host))
        far, near = fed.silos
        with Proxy(fed.endpoint, listens=place.host) as relay:
            join_from(fed, far, place, relay.address)
            fed.join_without_training(near)
            fed.start_run(written)
            fed.wait_until(finished, timeout_s=_WAIT_S)
            fed.stop()
    (state,) = Journal(CoordinatorFolders(fed.data).journal).rounds("test")
    print(
        f"one round over a link of 64 kbit/s: {state.phase_seconds['collecting']:.0f} s, "
        f"{state.updates[0].size_bytes} bytes of update, {relay.passed}"
    )
    assert {("test", 1): state.model_digest} == expected
    assert fed.agents[far].log.count("can't be reached") <= 1
    check(read_history(fed.data, map(fed.agent_data, fed.silos)), uninterrupted=expected)


def join_from(local: LocalFederation, silo: str, place: Elsewhere, address: str) -> None:
    """Enrol and start a null agent in a namespace, where it dials an address."""
    joining = [address if a == local.endpoint else a for a in local.join_arguments(silo)]
    inside = ("tests.federation.inside", place.name)
    local.command(*inside, *joining, "--enrol-only")
    agent = Program(
        (*inside, "benchmark.null_agent", str(local.agent_data(silo))), local.root / f"{silo}.log"
    )
    local.agents[silo] = agent
    agent.start()
