"""What do the drivers of all peers have in common? Programs with logs, a report, and an end.

A driver runs in the virtual environment of its peer, so what it imports is the standard library and
ours that needs no more, and it can say what is missing there. It starts what the peer's documents
have people deploy, each a process of its own on loopback, and an app of ours on the peer's side
that writes a line of figures after each round.

``check`` says which peer is there; ``run TASK.json`` does the rounds: a line of JSON for each, then
one with ``server_peak_mb``; or one with ``failed``. The driver stays until its input ends, and ends
what it started then: whoever started it can see and end all processes, and none is left behind by
one who was killed.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from benchmark.footprints import children, peak_mb

START_S = 120.0
"""For a peer's server to listen, and for each command of its."""
_POLL_S = 0.05
_STOP_S = 10.0
_TAIL = 2000


class Failed(Exception):
    """What a peer was asked to do, it did not; the message has its last words."""


class Rounds(Protocol):
    """A peer at work on one task."""

    def run(self) -> None:
        """Tell a line after each round, and one after all.

        Raises:
            Failed: a program of the peer's ended, or a round took too long.
        """

    def stop(self) -> None:
        """End every process."""


def installed(packages: tuple[str, ...], *, oldest: tuple[int, int]) -> dict[str, str]:
    """The ``version`` of the first of these packages, or as ``missing`` what is."""
    absent = [name for name in packages if find_spec(name) is None]
    if absent:
        return {"missing": f"not installed: {', '.join(absent)}"}
    version = metadata.version(packages[0])
    if tuple(map(int, version.split(".")[:2])) < oldest:
        return {"missing": f"{packages[0]} {version} is older than {'.'.join(map(str, oldest))}"}
    return {"version": version}


class Programs:
    """The processes of one run of a peer, each with its log below one folder."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        """``environment`` is added to ours.

        Peers start their own programs by their names: those beside the interpreter come first.
        """
        self._folder = folder
        here = Path(sys.executable).parent
        path = os.pathsep.join([str(here), os.environ.get("PATH", os.defpath)])
        self._environment = {**os.environ, **environment, "PATH": path}
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._changing = threading.Lock()
        """Held while something starts, and while all is stopped: nothing starts after that."""

    def start(self, name: str, *command: str) -> None:
        """Start a program that stays."""
        with self._changing, self._log(name).open("wb") as log:
            self._started[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
                cwd=self._folder,
            )

    def run(self, *command: str) -> None:
        """Run a program to its end.

        Raises:
            Failed: it failed.
        """
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self._environment,
            cwd=self._folder,
            timeout=START_S,
        )
        if done.returncode != 0:
            words = (done.stdout + done.stderr)[-_TAIL:]
            raise Failed(f"{' '.join(command[:2])} failed: {words}")

    def until(self, happened: Callable[[], bool], *, within_s: float, server: str) -> None:
        """Wait for something while all programs run.

        Raises:
            Failed: one has ended, or time has passed; then the words are the ``server``'s.
        """
        until_s = time.monotonic() + within_s
        while not happened():
            for name, process in self._started.items():
                if process.poll() is not None:
                    raise Failed(f"{name} ended with {process.returncode}: {self.words(name)}")
            if time.monotonic() > until_s:
                raise Failed(f"nothing happens any more: {self.words(server)}")
            time.sleep(_POLL_S)

    def line(
        self, report: Path, number: int, *, over: Callable[[], bool], within_s: float, server: str
    ) -> dict[str, Any]:
        """What the peer's app wrote after its ``number``-th round, from 0 on.

        Raises:
            Failed: the app says so, or is ``over`` early.
        """

        def written() -> bool:
            ended = over()  # asked first: all is written by then
            if len(_lines(report)) > number:
                return True
            if ended:
                raise Failed(f"the server's app has ended early: {self.words(server)}")
            return False

        self.until(written, within_s=within_s, server=server)
        line: dict[str, Any] = json.loads(_lines(report)[number])
        if "failed" in line:
            raise Failed(line["failed"])
        return line

    def words(self, name: str) -> str:
        """The last that a program printed."""
        return self._log(name).read_text("utf-8", "replace")[-_TAIL:]

    def peak_mb(self, name: str) -> float:
        """The most that a program has held, in MiB."""
        return peak_mb(self._started[name].pid)

    def stop(self) -> None:
        """End every program, and what they started in turn."""
        with self._changing:
            below = [*children(os.getpid())]  # what has no parent any more is not found again
            for process in self._started.values():
                process.terminate()
            for process in self._started.values():
                try:
                    process.wait(_STOP_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            for pid in {*below} - {process.pid for process in self._started.values()}:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:  # it has ended with its parent
                    continue

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"


def free_port() -> int:
    """A port that nothing listens on, for a program which must be told one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def listens(port: int) -> bool:
    """Whether something listens there, on this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("localhost", port)) == 0


def tell(line: Mapping[str, Any]) -> None:
    """Print a line for whoever started the driver."""
    print(json.dumps(line), flush=True)


def drive(check: Callable[[], dict[str, str]], rounds: Callable[[Path], Rounds]) -> None:
    """Be the driver that the command line asks for."""
    if sys.argv[1] == "check":
        tell(check())
    else:
        _run(rounds(Path(sys.argv[2])))


def _run(rounds: Rounds) -> None:
    def end_with_input() -> None:
        sys.stdin.read()
        rounds.stop()
        os._exit(0)

    watch = threading.Thread(target=end_with_input, daemon=True)
    watch.start()
    try:
        rounds.run()
    except (Failed, OSError, subprocess.SubprocessError) as error:
        tell({"failed": str(error)})
    except BaseException:
        rounds.stop()
        raise
    watch.join()


def _lines(report: Path) -> list[str]:
    """The whole lines of a report, of which the last may still be written."""
    written = report.read_text("utf-8") if report.exists() else ""
    return [line for line in written.splitlines(keepends=True) if line.endswith("\n")]
