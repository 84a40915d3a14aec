"""How does one coordinator serve very many silos at once?

Light agents (``light_agent``), each with its own certificate, key and connection, take part in
whole rounds of a real coordinator process with a small model. They live in a few processes, for a
process of each would measure this machine's memory. The silos are registered before the
coordinator starts, in the way in which enrolment does it: joining is not what is measured.

Agents and coordinator share the machine. What the agents cost is told beside: their CPU seconds,
and how late their own event loops come round; a call can't be answered sooner than its caller
looks, so a latency bounds the coordinator's from above.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import tomli_w

from benchmark.federation import LocalFederation, terminable
from benchmark.footprints import Footprint, children, footprint, peak_mb
from benchmark.light_agents import Crowd, Member, Seen
from coordinator.config import load_config, load_model_key
from coordinator.folders import Folders
from coordinator.rounds.journal import Journal, SiloRow
from coordinator.trust.authorities import Authorities
from coordinator.trust.registry import ACTIVE, Registry
from fedreid.audit import AuditLine, newest_first
from fedreid.clock import SystemClock
from fedreid.errors import RunError, UsageError
from fedreid.files import write_bytes
from fedreid.limits import CONCURRENT_TRANSFERS, LEAF_LIFE_S
from fedreid.names import FederationName, Principal, Role, SiloName
from fedreid.pki.certificates import holder_of, key_to_pem, new_key, to_pem
from fedreid.pki.signing import public_bytes

MODELS_MB = {
    1.4: "shufflenet_v2_x0_5",
    3.7: "mobilenet_v3_small",
    5.1: "shufflenet_v2_x1_0",
    44.8: "resnet18",
    94.2: "resnet50",
}
"""Backbones by the size of what is shared."""

_FEDERATION = "load"
_RUN = "load"
_PROCESSES = 2
_LOOK_S = 0.5
_CONNECT_S = 300.0
_ROUND_S = 600.0


class Latency(msgspec.Struct, frozen=True, kw_only=True):
    """How long calls of one kind took at their callers, in ms."""

    calls: int
    p50_ms: float
    p99_ms: float
    longest_ms: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Latency":
        """The quantiles of at least one call."""
        ordered = sorted(seconds)
        rank = [1000 * ordered[min(len(ordered) - 1, int(len(ordered) * q))] for q in (0.5, 0.99)]
        return cls(
            calls=len(ordered), p50_ms=rank[0], p99_ms=rank[1], longest_ms=1000 * ordered[-1]
        )


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What a load has come to."""

    silos: int
    rounds: int
    model: str
    model_bytes: int
    round_seconds: list[float]
    """From a round's opening to its model, one after the other."""
    phase_seconds: dict[str, float]
    """Medians over the rounds."""
    rounds_per_minute: float
    """From the first round's opening to the last model."""
    unary: dict[str, Latency]
    unary_p99_ms: float
    """Over all unary calls."""
    agents_lateness: Latency
    """Of the agents' own event loops: a part of every latency above that is not the coordinator's.
    """
    polls: int
    errors: dict[str, int]
    service: Footprint
    """In the end."""
    service_by_round: list[Footprint]
    """At the first look after each round's end."""
    worker_peak_mb: float
    agents_cpu_s: float


def measure_load(
    silos: int,
    rounds: int,
    model_mb: float,
    tell: Callable[[str], None],
    *,
    transfers: int = CONCURRENT_TRANSFERS,
) -> Load:
    """Run whole rounds with so many light agents, of whom ``transfers`` fetch or send at once.

    Raises:
        UsageError: a number is out of range.
        RunError: the federation failed, or did not come to an end in time.
    """
    if silos < 2 or rounds < 1 or model_mb <= 0 or transfers < 1:
        raise UsageError("A load needs two silos, a round, a model of some size, and a transfer")
    model = MODELS_MB[min(MODELS_MB, key=lambda size_mb: abs(size_mb - model_mb))]
    with terminable(), tempfile.TemporaryDirectory(prefix="fedreid-load-") as folder:
        root = Path(folder)
        with LocalFederation(root, federation=_FEDERATION, silos={}) as local:
            local.make_folder()
            tell(f"registering {silos} silos")
            members = _registered(Folders(local.data), silos)
            local.open()
            plan = _write_plan(
                root / "plan.toml", silos=silos, rounds=rounds, model=model, transfers=transfers
            )
            return _run(local, members, plan, rounds=rounds, model=model, tell=tell)


def rows(load: Load) -> list[tuple[str, str]]:
    """The figures for a table."""
    seconds = load.round_seconds
    return [
        ("s per round, median", f"{statistics.median(seconds):.2f}"),
        ("s per round, longest", f"{max(seconds):.2f}"),
        ("rounds per minute", f"{load.rounds_per_minute:.2f}"),
        *((f"s {phase}, median", f"{value:.2f}") for phase, value in load.phase_seconds.items()),
        *(
            (f"{name}: p50, p99, longest of {each.calls:,}, ms", _three(each))
            for name, each in load.unary.items()
        ),
        ("all unary calls: p99, ms", f"{load.unary_p99_ms:.0f}"),
        ("the agents' own event loops late: p50, p99, longest, ms", _three(load.agents_lateness)),
        ("errors", ", ".join(f"{n} × {kind}" for kind, n in load.errors.items()) or "none"),
        ("service: peak MB", f"{load.service.peak_mb:.0f}"),
        ("service: open files, threads", f"{load.service.open_files}, {load.service.threads}"),
        ("service: CPU s", f"{load.service.cpu_s:.1f}"),
        ("worker: peak MB", f"{load.worker_peak_mb:.0f}"),
        ("agents: CPU s", f"{load.agents_cpu_s:.1f}"),
    ]


def _three(each: Latency) -> str:
    return f"{each.p50_ms:.0f}, {each.p99_ms:.0f}, {each.longest_ms:.0f}"


def _registered(folders: Folders, silos: int) -> list[Member]:
    """So many silos in the journal of a coordinator that does not run, with their identities."""
    clock, federation = SystemClock(), FederationName(load_config(folders).federation)
    issuing = Authorities(folders.authority).issuing
    journal = Journal(folders.journal)
    registry = Registry(journal, federation, clock)
    members = []
    for number in range(silos):
        key, name = new_key(), SiloName(f"silo-{number:04d}")
        certificate_pem = to_pem(
            issuing.issue(
                Principal(federation=federation, role=Role.SILO, name=name),
                key.public_key(),
                now_s=clock.now_s(),
                life_s=LEAF_LIFE_S,
            )
        )
        holder = holder_of(certificate_pem)
        with registry.changing:
            registry.store(
                SiloRow(
                    name=name,
                    state=ACTIVE,
                    key_fingerprint=holder.key_fingerprint,
                    certificate_pem=certificate_pem,
                    not_after_s=holder.not_after_s,
                )
            )
        members.append(Member(silo=name, key_pem=key_to_pem(key), certificate_pem=certificate_pem))
    journal.close()
    return members


def _run(
    local: LocalFederation,
    members: Sequence[Member],
    plan: Path,
    *,
    rounds: int,
    model: str,
    tell: Callable[[str], None],
) -> Load:
    with ExitStack() as stack:
        crowds = [
            stack.enter_context(_crowd(local, number, members[number::_PROCESSES]))
            for number in range(min(_PROCESSES, len(members)))
        ]
        tell(f"connecting {len(members)} agents")
        for crowd in crowds:
            _expect(crowd, "connected")
        local.start_run(plan)
        watch = _Watch(local, crowds, rounds=rounds, tell=tell)
        watch.until_over()
        seen = [
            msgspec.json.decode(_seen_path(local, number).read_bytes(), type=Seen)
            for number in range(len(crowds))
        ]
        return watch.load(seen, members, model)


def _write_plan(path: Path, *, silos: int, rounds: int, model: str, transfers: int) -> Path:
    plan = {
        "name": _RUN,
        "rounds": rounds,
        "backbone": {"name": model, "neck": "bnneck", "height_px": 64, "width_px": 32},
        "evaluation": {"standalone": False},
        "wire": {"transfers": transfers},
        "quorum": {
            "min_silos": silos,
            "min_fraction": 1.0,
            "deadline_s": _ROUND_S,
            "phase_deadline_s": _ROUND_S,
        },
    }
    path.write_text(tomli_w.dumps(plan), "utf-8")
    return path


@contextmanager
def _crowd(
    local: LocalFederation, number: int, members: Sequence[Member]
) -> "Iterator[subprocess.Popen[str]]":
    """A process of light agents."""
    folders = Folders(local.data)
    crowd = Crowd(
        address=local.endpoint,
        federation=_FEDERATION,
        model_key=public_bytes(load_model_key(folders)),
        authorities_pem=Authorities(folders.authority).bundle_pem,
        members=tuple(members),
    )
    path = local.root / f"crowd-{number}.json"
    write_bytes(path, msgspec.json.encode(crowd), mode=0o600)
    with (
        (local.root / f"crowd-{number}.log").open("wb") as log,
        subprocess.Popen(
            [
                sys.executable,
                "-m",
                "benchmark.light_agents",
                str(path),
                str(_seen_path(local, number)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def _seen_path(local: LocalFederation, number: int) -> Path:
    return local.root / f"seen-{number}.json"


def _expect(crowd: "subprocess.Popen[str]", line: str) -> None:
    assert crowd.stdout is not None
    told = crowd.stdout.readline().strip()
    if told != line:
        raise RunError(f"The light agents ended before they were {line}", why=told)


class _Watch:
    """Looks at a run from outside, without asking the coordinator anything."""

    def __init__(
        self,
        local: LocalFederation,
        crowds: "Sequence[subprocess.Popen[str]]",
        *,
        rounds: int,
        tell: Callable[[str], None],
    ) -> None:
        self._local = local
        self._crowds = crowds
        self._rounds = rounds
        self._tell = tell
        self._by_round: list[Footprint] = []
        self._worker_peak_mb = 0.0
        self._service = footprint(local.coordinator.pid)

    def until_over(self) -> None:
        """Wait for the last model, and until each agent has measured it.

        Raises:
            RunError: it takes too long, a process ended, or the run failed.
        """
        until_s = time.monotonic() + _ROUND_S * self._rounds
        while any(crowd.poll() is None for crowd in self._crowds):
            if not self._local.coordinator.running() or time.monotonic() > until_s:
                raise RunError(
                    "The run did not come to its end", why=self._local.coordinator.log[-500:]
                )
            self._look()
            time.sleep(_LOOK_S)
        self._look()  # the last rounds may have ended since

    def _look(self) -> None:
        pid = self._local.coordinator.pid
        self._service = footprint(pid)
        for child in children(pid):
            self._worker_peak_mb = max(self._worker_peak_mb, peak_mb(child))
        published = len(self._lines("round.published"))
        for number in range(len(self._by_round) + 1, published + 1):
            self._by_round.append(self._service)
            self._tell(f"round {number} of {self._rounds} is published")

    def load(self, seen: Sequence[Seen], members: Sequence[Member], model: str) -> Load:
        """Everything that was measured."""
        opened, published = self._lines("round.opened"), self._lines("round.published")
        seconds = [end.at_s - begun.at_s for begun, end in zip(opened, published, strict=True)]
        journal = Journal(Folders(self._local.data).journal)
        states = journal.rounds(_RUN)
        journal.close()
        calls: dict[str, list[float]] = {}
        for each in seen:
            for name, took_s in each.seconds.items():
                calls.setdefault(name, []).extend(took_s)
        errors: Counter[str] = Counter()
        for each in seen:
            errors.update(each.errors)
        return Load(
            silos=len(members),
            rounds=len(states),
            model=model,
            model_bytes=states[0].updates[0].size_bytes,
            round_seconds=seconds,
            phase_seconds={
                phase: statistics.median(state.phase_seconds[phase] for state in states)
                for phase in states[0].phase_seconds
            },
            rounds_per_minute=60 * len(seconds) / (published[-1].at_s - opened[0].at_s),
            unary={name: Latency.of(took_s) for name, took_s in sorted(calls.items())},
            unary_p99_ms=Latency.of([s for took_s in calls.values() for s in took_s]).p99_ms,
            agents_lateness=Latency.of([s for each in seen for s in each.lateness_s]),
            polls=sum(each.polls for each in seen),
            errors=dict(errors),
            service=self._service,
            service_by_round=self._by_round,
            worker_peak_mb=self._worker_peak_mb,
            agents_cpu_s=sum(each.cpu_s for each in seen),
        )

    def _lines(self, event: str) -> list[AuditLine]:
        """Of the audit log, oldest first."""
        found = [
            line for line in newest_first(Folders(self._local.data).audit) if line.event == event
        ]
        return found[::-1]
