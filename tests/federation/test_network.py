"""Does a run come to the very same models over lines that are slow, cut, silent or half gone?

Real processes over real mTLS, with a proxy of the tests' own between agents and coordinator. The
agents train nothing, so what a run publishes follows from which updates counted alone.
"""

import functools
import re
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmark.federation import LocalFederation, Program
from coordinator.folders import Folders as CoordinatorFolders
from fedreid.audit import read_audit
from fedreid.v1 import admin_pb2
from tests.federation.conftest import Founding, write_plan
from tests.federation.proxy import Line, Proxy
from tests.federation.test_learning import finished
from tests.history import check, read_history

pytestmark = pytest.mark.timeout(600)
_WAIT_S = 300.0
BACKBONE = {"name": "shufflenet_v2_x0_5", "neck": "bnneck", "height_px": 64, "width_px": 32}
"""The smallest there is: 1.4 MB."""
QUORUM = {"min_silos": 2, "min_fraction": 1.0, "deadline_s": 240.0, "phase_deadline_s": 120.0}
Digests = Mapping[tuple[str, int], str]


class Linked:
    """A federation whose silos reach their coordinator through proxies."""

    def __init__(self, local: LocalFederation, stack: ExitStack, line: Line | None = None) -> None:
        self.local = local
        self._stack = stack
        self.proxies = {silo: self.proxy(line) for silo in local.silos}

    def proxy(self, line: Line | None = None) -> Proxy:
        """One more way to the coordinator."""
        return self._stack.enter_context(Proxy(self.local.endpoint, line=line))

    def join(self, silo: str) -> Program:
        """Start a null agent that knows the coordinator by its proxy's address."""
        self.local.command(*self._joining(silo, self.local.join_arguments(silo)))
        return self.local.start_null_agent(silo)

    def move(self, silo: str, proxy: Proxy) -> Program:
        """Tell a silo's agent the coordinator's new address; what lies in its folder stays."""
        self.local.agents[silo].stop()
        self.proxies[silo] = proxy
        known = ("silo_agent", "join", "--coordinator", self.local.endpoint,
                 "--dataset", str(self.local.silos[silo]),
                 "--data", str(self.local.agent_data(silo)))  # fmt: skip
        self.local.command(*self._joining(silo, known))
        return self.local.start_null_agent(silo)

    def _joining(self, silo: str, arguments: tuple[str, ...]) -> tuple[str, ...]:
        dialled = self.proxies[silo].address
        return (
            *(dialled if a == self.local.endpoint else a for a in arguments),
            *("--metrics", "127.0.0.1:0"),
            "--enrol-only",
        )

    def figures(self, silo: str) -> dict[str, float]:
        """What a silo's agent exposes now, by name and labels."""
        port = re.findall(r"health and metrics on port (\d+)", self.local.agents[silo].log)[-1]
        url = f"http://127.0.0.1:{port}"
        with urllib.request.urlopen(f"{url}/readyz", timeout=30) as ready:
            assert ready.status == 200
        with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        return {
            name: float(value)
            for name, _, value in (x.rpartition(" ") for x in lines if not x.startswith("#"))
        }

    def control(self, command: str) -> None:
        """Pause, resume or stop the run."""
        value = admin_pb2.RunCommand.Value(f"RUN_COMMAND_{command.upper()}")
        with self.local.admin() as admin:
            admin.ControlRun(admin_pb2.ControlRunRequest(command=value))

    def until(self, reached: Callable[[admin_pb2.GetRunResponse], bool]) -> None:
        """Wait until the run has come so far."""
        self.local.wait_until(reached, timeout_s=_WAIT_S)

    def open_round(self, number: int) -> None:
        """Let exactly one further round begin."""
        self.control("resume")
        self.until(lambda run: run.round.number == number)
        self.control("pause")

    def end_round(self, number: int) -> None:
        """Wait for its model."""
        self.until(lambda run: run.rounds_published == number)

    def accepted(self, silo: str, number: int) -> bool:
        """Whether the coordinator has noted its yes to a silo's update."""
        return any(
            line.event == "update.accepted"
            and (line.fields["silo"], line.fields["round"]) == (silo, number)
            for line in read_audit(CoordinatorFolders(self.local.data).audit)
        )

    def told(self, silo: str, line: str) -> int:
        """How often a silo's agent has said something."""
        return self.local.agents[silo].log.count(line)

    def wait_for(self, happened: Callable[[], bool]) -> None:
        """Wait for something that is not of the run."""
        self.until(lambda run: happened())

    def finish(self, rounds: int, expected: Digests) -> list[admin_pb2.RoundSummary]:
        """Let the run end, and check all that was promised."""
        self.control("resume")
        self.until(finished)
        return self.ended(rounds, expected)

    def ended(self, rounds: int, expected: Digests) -> list[admin_pb2.RoundSummary]:
        """Check all that was promised of a run that has ended."""
        with self.local.admin() as admin:
            found = list(admin.ListRounds(admin_pb2.ListRoundsRequest()).rounds)
        self.check(expected)
        assert [state.phase for state in found] == ["published"] * rounds
        for state in found:
            assert [part.silo for part in state.participants] == sorted(self.local.silos)
            for silo in self.local.silos:
                assert self.told(silo, f"round {state.number}: trained on") == 1
        return found

    def check(self, expected: Digests | None = None) -> None:
        """The promises hold, and nothing has failed unforeseen."""
        folders = map(self.local.agent_data, self.local.silos)
        check(read_history(self.local.data, folders), uninterrupted=expected)
        for program in (self.local.coordinator, *self.local.agents.values()):
            assert "Traceback" not in program.log


@pytest.fixture
def linked(found: Founding) -> Iterator[Callable[..., Linked]]:
    """Federations behind proxies, which all end with the test."""
    with ExitStack() as stack:
        yield lambda name="fed", line=None, silos=2: Linked(found(name, silos=silos), stack, line)


def plan(path: Path, **tables: object) -> Path:
    return write_plan(path, **{"backbone": BACKBONE, "quorum": QUORUM, **tables})


def undisturbed(found: Founding, written: Path, *, silos: int = 2) -> dict[tuple[str, int], str]:
    """The models of the same run where nothing fails."""
    local = found("calm", silos=silos)
    local.start_run(written)
    for silo in local.silos:
        local.join_without_training(silo)
    local.wait_until(finished, timeout_s=_WAIT_S)
    with local.admin() as admin:
        rounds = admin.ListRounds(admin_pb2.ListRoundsRequest()).rounds
    local.stop()
    return {("test", state.number): state.model_digest for state in rounds}


def test_a_run_publishes_the_same_models_whatever_becomes_of_its_connections(
    found: Founding, linked: Callable[..., Linked], tmp_path: Path
) -> None:
    written = plan(tmp_path / "plan.toml", rounds=7)
    expected = undisturbed(found, written)
    fed = linked()
    first, second = fed.local.silos
    fed.local.start_run(written)
    fed.control("pause")
    for silo in fed.local.silos:
        fed.join(silo)
    size_bytes = cut_in_the_middle_of_a_download(fed, first)
    cut_in_the_middle_of_an_upload(fed, first, size_bytes)
    lose_the_answer_to_an_upload(fed, first, size_bytes)
    partition_for_a_second(fed, first, second)
    check_figures(fed.figures(first), size_bytes)
    change_the_address(fed, first, size_bytes)
    restart_behind_the_partition(fed, second)
    fed.finish(7, expected)


def cut_in_the_middle_of_a_download(fed: Linked, silo: str) -> int:
    """Round 1, on a line on which the agent keeps up; gives the size of a model."""
    proxy = fed.proxies[silo]
    proxy.line["down"] = Line(bytes_per_s=400_000)
    cut, before = proxy.cut_after("down", 1_000_000), proxy.passed["down"]
    fed.open_round(1)
    fed.end_round(1)
    assert cut.is_set()
    with fed.local.admin() as admin:
        (state,) = admin.ListRounds(admin_pb2.ListRoundsRequest()).rounds
    size_bytes = state.upload_bytes // 2
    assert size_bytes > 1_000_000
    # What had come before the cut did not come again.
    assert proxy.passed["down"] - before < 1.4 * size_bytes
    proxy.line["down"] = Line()
    return size_bytes


def cut_in_the_middle_of_an_upload(fed: Linked, silo: str, size_bytes: int) -> None:
    """Round 2, on a line on which the coordinator keeps up with what comes."""
    proxy = fed.proxies[silo]
    proxy.line["up"] = Line(bytes_per_s=400_000)
    cut, before = proxy.cut_after("up", 1_000_000), proxy.passed["up"]
    fed.open_round(2)
    fed.end_round(2)
    assert cut.is_set()
    assert proxy.passed["up"] - before < 1.4 * size_bytes
    proxy.line["up"] = Line()


def lose_the_answer_to_an_upload(fed: Linked, silo: str, size_bytes: int) -> None:
    """Round 3: the coordinator's yes is on its way back when the line breaks."""
    proxy = fed.proxies[silo]
    slowed = proxy.when_passed(
        "up", size_bytes - 200_000, lambda: proxy.line.update({"down": Line(latency_s=3.0)})
    )
    fed.open_round(3)
    fed.wait_for(lambda: fed.accepted(silo, 3))
    proxy.cut()
    assert slowed.is_set()
    assert not fed.told(silo, "round 3: update of")
    proxy.line["down"] = Line()
    fed.end_round(3)
    before = proxy.passed["up"]
    fed.wait_for(lambda: fed.told(silo, "in touch again") == 3)
    assert proxy.passed["up"] - before < 100_000  # it is not asked for again


def partition_for_a_second(fed: Linked, *silos: str) -> None:
    """Round 4: nothing goes to or from anybody, and then all of it."""
    proxies = [fed.proxies[silo] for silo in silos]
    parted = [p.when_passed("up", 500_000, functools.partial(p.part, 1.0)) for p in proxies]
    fed.open_round(4)
    fed.end_round(4)
    assert all(event.is_set() for event in parted)


def check_figures(figures: Mapping[str, float], size_bytes: int) -> None:
    """What the agent has told Prometheus of those four rounds."""
    assert figures["fedreid_agent_connected"] == 1
    assert figures["fedreid_agent_reconnects_total"] >= 3
    assert figures["fedreid_agent_rounds_trained_total"] == 4
    assert 4 * size_bytes <= figures["fedreid_agent_egress_bytes_total"] < 6 * size_bytes
    assert figures['fedreid_agent_awaited{reason="task"}'] == 1
    assert figures['fedreid_agent_awaited{reason="coordinator"}'] == 0


def change_the_address(fed: Linked, silo: str, size_bytes: int) -> None:
    """Round 5: the coordinator moves while a trained round lies in the outbox."""
    old, new = fed.proxies[silo], fed.proxy()
    gone = old.when_passed("up", size_bytes // 2, old.part)
    fed.open_round(5)
    assert gone.wait(_WAIT_S)
    fed.move(silo, new)
    old.cut()  # or the coordinator would wait for the old connection's end, a minute or more
    fed.end_round(5)
    assert new.passed["up"] > size_bytes // 3


def restart_behind_the_partition(fed: Linked, silo: str) -> None:
    """Round 6: the agent is killed while it can't reach anybody, with a round in its outbox."""
    proxy = fed.proxies[silo]
    gone = proxy.when_passed("up", 500_000, proxy.part)
    fed.open_round(6)
    assert gone.wait(_WAIT_S)
    fed.local.agents[silo].kill()
    fed.local.agents[silo].start()
    proxy.heal()
    fed.end_round(6)
