"""How long does a round take without learning, and how near is that to what the machine can do?

The null round: the real coordinator and real agents, as processes of their own over mutual TLS,
with a training process that adds a constant. Beside each round, in the same run, the bare program
of ``limit`` moves the same bytes both ways and sums them. On a machine that others use too, the
ratio of the two and the CPU seconds say more than seconds by the clock. Other frameworks, where
they are installed, do the same afterwards (``peers``).
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import tomli_w

from benchmark.federation import LocalFederation, terminable
from benchmark.footprints import children, cpu_seconds, peak_mb
from benchmark.limit import Limit, LimitKind
from benchmark.peers.peer import Peer, PeerRounds, Task, measure_peer
from coordinator.folders import Folders
from fedreid.audit import read_audit
from fedreid.datasets.synthetic import SyntheticSpec, render
from fedreid.errors import RunError, UsageError
from fedreid.plan import Encoding
from fedreid.v1 import admin_pb2
from fedreid.wire.manifest import ENCODINGS
from fedreid.wire.tensors import TensorFile

if TYPE_CHECKING:
    from fedreid.v1.admin_pb2_grpc import AdminStub

_POLL_S = 0.2
_BEGINNING_POLL_S = 0.01
"""A round of a small model takes a few tenths of a second: within it the pause has to come."""
_ROUND_S = 600.0
_WARM_UP = 2
"""Rounds before the first that counts: processes start, import what they need, and get their first
model whole, where later ones come as differences."""
_MODELS_KEPT = 2
_SETTLING = _MODELS_KEPT + 2
"""The same for us: from then on each file of a round is written over one of an earlier round, also
models, as in every coordinator that has published more of them than it keeps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The middle and the ends of what was measured in each round."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of at least one value."""
        return cls(median=median(values), least=min(values), most=max(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class NullRound:
    """One round: what it took, and what the bare program took beside it."""

    seconds: float
    phases: dict[str, float]
    cpu_seconds: float
    """Of all processes of the federation."""
    limit_seconds: float
    limit_cpu_seconds: float
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerTransported:
    """What another framework took for the same model and as many silos; memory in MiB."""

    version: str
    round_seconds: Spread
    """From its server's first message to the new model."""
    ratio_to_ours: float
    """Of the medians by the clock."""
    cpu_seconds: Spread
    """Of all its processes."""
    server_peak_mb: float
    """Of its server's processes, added up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transported:
    """What was measured; bytes are of one round and all silos, memory in MiB."""

    silos: int
    model: str
    encoding: str
    rounds: int
    ratio_to_limit: float
    """Of the medians by the clock."""
    cpu_ratio_to_limit: float
    round_seconds: Spread
    limit_seconds: Spread
    limit_kind: LimitKind
    phases: dict[str, Spread]
    cpu_seconds: Spread
    limit_cpu_seconds: Spread
    bytes_up: int
    bytes_down: int
    service_peak_mb: float
    worker_peak_mb: float
    agent_peak_mb: float
    peers: dict[str, PeerTransported] = field(default_factory=dict)
    """By name; always in float32, which is what they send."""


def encoding_of(name: str) -> Encoding:
    """The encoding of this name.

    Raises:
        UsageError: there is none.
    """
    found = next((encoding for encoding in ENCODINGS if encoding == name), None)
    if found is None:
        raise UsageError(f"There is no encoding {name!r}", why=f"known are {', '.join(ENCODINGS)}")
    return found


def measure_transport(
    *,
    silos: int,
    model: str,
    encoding: Encoding,
    rounds: int,
    tell: Callable[[str], None],
    peers: Sequence[Peer] = (),
) -> Transported:
    """Run a federation of null agents, and the bare program after each of its rounds.

    Then, with the federation stopped, ``peers`` do as many rounds, one after the other.

    Raises:
        UsageError: no silo, or no round.
        RunError: the federation, the bare program or a peer failed.
    """
    if silos < 1 or rounds < 1:
        raise UsageError("A null round needs a silo, and a measurement a round")
    with tempfile.TemporaryDirectory(prefix="fedreid-transport-") as folder, terminable():
        root = Path(folder)
        names = [f"silo-{index:03d}" for index in range(1, silos + 1)]
        images = images_of_nobody(root / "images")
        with LocalFederation(
            root / "federation", federation="transport", silos=dict.fromkeys(names, images)
        ) as local:
            local.initialise(models_kept=_MODELS_KEPT)
            local.start_run(_write_plan(root, silos, model, encoding, rounds))
            for name in names:
                local.join_without_training(name)
                tell(f"{name} has joined")
            measured, kind = _rounds(local, root, rounds, tell)
            ours = _summary(measured, kind, local, model=model, encoding=encoding)
        task = _task(local, rounds)
        return replace(
            ours,
            peers={
                peer.name: _beside(
                    ours, peer, measure_peer(peer, task, root / peer.name, tell=tell)
                )
                for peer in peers
            },
        )


def images_of_nobody(folder: Path) -> Path:
    """A few images, which every silo names as its own: an agent counts them before it trains."""
    spec = SyntheticSpec(
        silos=1,
        unit_identities=2,
        test_identities=1,
        distractors=1,
        junk=1,
        public_images=1,
        height_px=64,
        width_px=32,
    )
    made = render(folder, spec, workers=1)
    return folder / made.silos[0].name


def _write_plan(root: Path, silos: int, model: str, encoding: Encoding, rounds: int) -> Path:
    plan = {
        "name": "transport",
        "rounds": _SETTLING + rounds + 1,  # the last is never begun: agents need not measure it
        "backbone": {"name": model, "height_px": 64, "width_px": 32},
        "wire": {"upload": encoding, "download": encoding},
        "quorum": {"min_silos": silos, "deadline_s": _ROUND_S, "phase_deadline_s": _ROUND_S},
    }
    path = root / "plan.toml"
    path.write_text(tomli_w.dumps(plan), "utf-8")
    return path


def _rounds(
    local: LocalFederation, root: Path, rounds: int, tell: Callable[[str], None]
) -> tuple[list[NullRound], LimitKind]:
    """Round after round, with the run paused in between, while the bare program has its turn."""
    measured: list[NullRound] = []
    with local.admin() as admin:
        warm = _one_round(local, admin, 1)
        for number in range(2, _SETTLING + 1):
            warm = _next_round(local, admin, number)
        server = Folders(local.data).server / "live"
        with Limit(
            root,
            certificate=server / "certificate.pem",
            key=server / "key.pem",
            silos=len(local.silos),
            bytes_down=_of_one(warm.download_bytes, local),
            bytes_up=_of_one(warm.upload_bytes, local),
        ) as limit:
            limit.round()
            for number in range(_SETTLING + 1, _SETTLING + rounds + 1):
                before_s = _cpu_seconds(local)
                summary = _next_round(local, admin, number)
                took_s = _cpu_seconds(local) - before_s
                bare_s, bare_cpu_s = limit.round()
                measured.append(
                    NullRound(
                        seconds=_seconds(local, number),
                        phases=dict(summary.phase_seconds),
                        cpu_seconds=took_s,
                        limit_seconds=bare_s,
                        limit_cpu_seconds=bare_cpu_s,
                        bytes_up=summary.upload_bytes,
                        bytes_down=summary.download_bytes,
                    )
                )
                tell(f"round {number}: {measured[-1].seconds:.2f} s, bare {bare_s:.2f} s")
            return measured, limit.kind


def _next_round(local: LocalFederation, admin: "AdminStub", number: int) -> admin_pb2.RoundSummary:
    """Go on for one round."""
    admin.ControlRun(admin_pb2.ControlRunRequest(command=admin_pb2.RUN_COMMAND_RESUME))
    return _one_round(local, admin, number)


def _one_round(local: LocalFederation, admin: "AdminStub", number: int) -> admin_pb2.RoundSummary:
    """Wait for a round's beginning, have it be the last one for now, and wait for its end."""
    _wait(local, admin, lambda run: run.round.number >= number, poll_s=_BEGINNING_POLL_S)
    admin.ControlRun(admin_pb2.ControlRunRequest(command=admin_pb2.RUN_COMMAND_PAUSE))
    run = _wait(local, admin, lambda run: run.round.phase in ("published", "failed", "skipped"))
    if (run.round.number, run.round.phase) != (number, "published"):
        raise RunError(
            f"The round {run.round.number} is {run.round.phase}, instead of round {number} "
            "published",
            why=run.round.reason,
        )
    return run.round


def _wait(
    local: LocalFederation,
    admin: "AdminStub",
    reached: Callable[[admin_pb2.GetRunResponse], bool],
    *,
    poll_s: float = _POLL_S,
) -> admin_pb2.GetRunResponse:
    until_s = time.monotonic() + _ROUND_S
    while not reached(run := admin.GetRun(admin_pb2.GetRunRequest())):
        local.check_alive()
        if time.monotonic() > until_s:
            raise RunError(f"The round {run.round.number} has not ended after {_ROUND_S:g} s")
        time.sleep(poll_s)
    return run


def _seconds(local: LocalFederation, number: int) -> float:
    """From a round's opening to its end, both as they stand in the coordinator's audit log."""
    at_s = {
        line.event: line.at_s
        for line in read_audit(Folders(local.data).audit)
        if line.fields.get("round") == number
    }
    return at_s["round.published"] - at_s["round.opened"]


def _of_one(size_bytes: int, local: LocalFederation) -> int:
    return size_bytes // len(local.silos)


def _cpu_seconds(local: LocalFederation) -> float:
    return sum(cpu_seconds(each.pid) for each in (local.coordinator, *local.agents.values()))


def _summary(
    measured: Sequence[NullRound],
    limit_kind: LimitKind,
    local: LocalFederation,
    *,
    model: str,
    encoding: Encoding,
) -> Transported:
    def spread(of: Callable[[NullRound], float]) -> Spread:
        return Spread.of([of(each) for each in measured])

    seconds, limit_s = spread(lambda one: one.seconds), spread(lambda one: one.limit_seconds)
    cpu_s = spread(lambda one: one.cpu_seconds)
    limit_cpu_s = spread(lambda one: one.limit_cpu_seconds)
    service = local.coordinator.pid
    return Transported(
        silos=len(local.silos),
        model=model,
        encoding=encoding,
        rounds=len(measured),
        ratio_to_limit=seconds.median / limit_s.median,
        cpu_ratio_to_limit=cpu_s.median / limit_cpu_s.median,
        round_seconds=seconds,
        limit_seconds=limit_s,
        limit_kind=limit_kind,
        phases={
            name: Spread.of([each.phases[name] for each in measured]) for name in measured[0].phases
        },
        cpu_seconds=cpu_s,
        limit_cpu_seconds=limit_cpu_s,
        bytes_up=measured[-1].bytes_up,
        bytes_down=measured[-1].bytes_down,
        service_peak_mb=peak_mb(service),
        worker_peak_mb=max(map(peak_mb, children(service)), default=0.0),
        agent_peak_mb=max(peak_mb(agent.pid) for agent in local.agents.values()),
    )


def _task(local: LocalFederation, rounds: int) -> Task:
    """The same for a peer: as many silos, the tensors of our model, our server's certificate."""
    folders = Folders(local.data)
    live = folders.server / "live"
    with TensorFile(next(folders.models.glob("*.safetensors"))) as model:
        shapes = [spec.shape for spec in model.layout.specs]
    return Task(
        silos=len(local.silos),
        rounds=_WARM_UP + rounds,
        shapes=shapes,
        certificate=live / "certificate.pem",
        key=live / "key.pem",
        root=live / "authorities.pem",
    )


def _beside(ours: Transported, peer: Peer, measured: PeerRounds) -> PeerTransported:
    seconds = Spread.of(measured.seconds[_WARM_UP:])
    return PeerTransported(
        version=peer.version,
        round_seconds=seconds,
        ratio_to_ours=seconds.median / ours.round_seconds.median,
        cpu_seconds=Spread.of(measured.cpu_seconds[_WARM_UP:]),
        server_peak_mb=measured.server_peak_mb,
    )


def rows(result: Transported) -> list[tuple[str, str]]:
    """Each figure with its name, for a person to read."""

    def spread(value: Spread) -> str:
        return f"{value.median:.3f} ({value.least:.3f} to {value.most:.3f})"

    return [
        ("round, s", spread(result.round_seconds)),
        *((f"  {name}, s", spread(value)) for name, value in result.phases.items()),
        (f"bare limit ({result.limit_kind}), s", spread(result.limit_seconds)),
        ("ratio to the limit", f"{result.ratio_to_limit:.2f}"),
        ("CPU of the round, s", spread(result.cpu_seconds)),
        ("CPU of the limit, s", spread(result.limit_cpu_seconds)),
        ("ratio of CPU", f"{result.cpu_ratio_to_limit:.2f}"),
        ("bytes up", f"{result.bytes_up:,}"),
        ("bytes down", f"{result.bytes_down:,}"),
        ("service peak, MiB", f"{result.service_peak_mb:.0f}"),
        ("worker peak, MiB", f"{result.worker_peak_mb:.0f}"),
        ("agent peak, MiB", f"{result.agent_peak_mb:.0f}"),
        *(
            row
            for name, peer in result.peers.items()
            for row in (
                (f"{name} {peer.version}, s", spread(peer.round_seconds)),
                ("  ratio to ours", f"{peer.ratio_to_ours:.2f}"),
                ("  CPU, s", spread(peer.cpu_seconds)),
                ("  server peak, MiB", f"{peer.server_peak_mb:.0f}"),
            )
        ),
    ]
