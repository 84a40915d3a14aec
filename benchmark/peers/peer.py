"""How is another framework's null round measured from here? In its own environment, line by line.

A peer has a driver beside this file: a program that imports nothing of ours, is run by the
interpreter of the peer's virtual environment, starts the peer's own processes, and prints one line
of JSON for each round.
"""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmark.footprints import children, cpu_seconds
from fedreid.errors import RunError, UsageError

_CHECK_S = 60.0
_ROUND_S = 1800.0
"""Far more than a peer needs: what takes longer hangs."""
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR")
"""All that a peer gets of ours: its users do not have what our launcher tells malloc and gRPC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A framework that we have a driver for."""

    driver: Path
    packages: str
    """What to install, as pip is told."""


_HERE = Path(__file__).parent
KINDS = {
    "flower": Kind(driver=_HERE / "flower.py", packages="flwr numpy"),
    "nvflare": Kind(driver=_HERE / "flare.py", packages="nvflare numpy"),
}

_RUN_DRIVER = """
import runpy, sys
root, driver = sys.argv[1:3]
sys.path.append(root)
sys.argv[:3] = [driver]
runpy.run_path(driver, run_name="__main__")
"""
"""Drivers import ``benchmark.peers.driving``. Our root comes last in their path and in no process's
below them, so that nothing of ours stands before what the peer's environment has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A framework that is installed."""

    name: str
    python: Path
    """Interpreter of the environment in which it is."""
    driver: Path
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a peer is to do; TLS files are PEM."""

    silos: int
    rounds: int
    shapes: Sequence[Sequence[int]]
    """Of the model's tensors, all float32."""
    certificate: Path
    """Of the server, for ``localhost``."""
    key: Path
    root: Path
    """The authority by which its clients know it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerRounds:
    """What a peer took, round by round."""

    seconds: tuple[float, ...]
    """By the clock of its server, from the first message to the new model."""
    cpu_seconds: tuple[float, ...]
    """Of all its processes, since the round before ended."""
    server_peak_mb: float
    """Largest resident memory of the server's processes, added up, in MiB."""


def peers_of(texts: Sequence[str]) -> list[Peer]:
    """The peers that ``NAME=PYTHON`` texts name, each looked for in its environment.

    Raises:
        UsageError: there is no such peer, no such interpreter, or it lacks the peer; or one is
            named twice.
    """
    peers = [_peer_of(text) for text in texts]
    if len({peer.name for peer in peers}) < len(peers):
        raise UsageError("A peer is given twice", next_step="Measure two versions one by one.")
    return peers


def _peer_of(text: str) -> Peer:
    name, _, python = text.partition("=")
    if name not in KINDS or not python:
        raise UsageError(
            f"No peer can be had by {text!r}",
            why=f"it is NAME=PYTHON, and there is a driver for {', '.join(KINDS)}",
        )
    kind = KINDS[name]
    try:
        done = subprocess.run(
            [*_command(python, kind.driver), "check"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=_environment(),
            timeout=_CHECK_S,
        )
        answer = json.loads(done.stdout)
    except OSError as error:
        raise _cannot(name, python, error.strerror or str(error)) from error
    except subprocess.TimeoutExpired as error:
        raise _cannot(name, python, f"it does not answer within {_CHECK_S:g} s") from error
    except ValueError as error:
        raise _cannot(name, python, "it is no Python, or too old a one") from error
    if "missing" in answer:
        raise _cannot(name, python, answer["missing"])
    return Peer(name=name, python=Path(python), driver=kind.driver, version=answer["version"])


def _cannot(name: str, python: str, why: str) -> UsageError:
    return UsageError(
        f"{python} can't run {name}",
        why=why,
        next_step=f"Make an environment that can: python -m venv {name}; "
        f"{name}/bin/pip install {KINDS[name].packages}; then --peer {name}={name}/bin/python",
    )


class Driver:
    """A peer's driver at work; leaving it ends the driver and every process below it."""

    def __init__(self, peer: Peer, task: Task, folder: Path) -> None:
        """Start it, with ``folder``, which is made here, for all that it writes."""
        folder.mkdir(parents=True)
        path = folder / "task.json"
        files = {name: str(getattr(task, name)) for name in ("certificate", "key", "root")}
        numbers = {"silos": task.silos, "rounds": task.rounds, "shapes": task.shapes}
        path.write_text(json.dumps({**files, **numbers, "round_s": _ROUND_S}), "utf-8")
        self._name = peer.name
        self._words = folder / "driver.log"
        with self._words.open("wb") as words:
            self._process = subprocess.Popen(
                [*_command(peer.python, peer.driver), "run", path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for us; the driver ends as we leave
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Gone through before the first ends: what has no parent any more is not found again.
        for pid in (self.pid, *children(self.pid)):
            _kill(pid)
        self._process.communicate()

    @property
    def pid(self) -> int:
        """Process id of the driver."""
        return self._process.pid

    def line(self) -> dict[str, Any]:
        """The driver's next line.

        Raises:
            RunError: the peer failed, or the driver ended.
        """
        assert self._process.stdout is not None
        text = self._process.stdout.readline()
        if not text:
            words = self._words.read_text("utf-8", "replace").strip()[-1000:]
            raise RunError(f"The driver of {self._name} has ended", why=words)
        line: dict[str, Any] = json.loads(text)
        if "failed" in line:
            raise RunError(f"{self._name} has failed", why=line["failed"])
        return line

    def cpu_seconds(self) -> float:
        """Of all its processes so far."""
        return cpu_seconds(self.pid)


def measure_peer(
    peer: Peer, task: Task, folder: Path, *, tell: Callable[[str], None]
) -> PeerRounds:
    """Have a peer do its rounds; ``folder`` is made for what it writes.

    Raises:
        RunError: it failed.
    """
    seconds, cpu_s = [], []
    with Driver(peer, task, folder) as driver:
        before_s = driver.cpu_seconds()
        for number in range(1, task.rounds + 1):
            seconds.append(float(driver.line()["seconds"]))
            now_s = driver.cpu_seconds()
            cpu_s.append(now_s - before_s)
            before_s = now_s
            tell(f"{peer.name}, round {number}: {seconds[-1]:.2f} s")
        server_peak_mb = float(driver.line()["server_peak_mb"])
    return PeerRounds(
        seconds=tuple(seconds), cpu_seconds=tuple(cpu_s), server_peak_mb=server_peak_mb
    )


def _command(python: str | Path, driver: Path) -> list[str | Path]:
    """What runs a driver, but for its own arguments."""
    return [python, "-I", "-c", _RUN_DRIVER, _HERE.parent.parent, driver]


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:  # it has ended meanwhile
        return
