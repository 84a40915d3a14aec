"""How is a whole federation run on one machine? Real processes, real mTLS, on loopback.

The commands are the ones that people type; whoever holds a :class:`LocalFederation` can kill and
restart any of them. Leaving it ends every process.
"""

import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn, Self

import tomli_w

from coordinator.client import admin_of
from coordinator.folders import Folders
from fedreid.errors import RunError
from fedreid.v1 import admin_pb2

if TYPE_CHECKING:
    from fedreid.v1.admin_pb2_grpc import AdminStub

_POLL_S = 0.2
_START_S = 60.0
_STOP_S = 20.0


class Program:
    """One process with its log; restartable."""

    def __init__(
        self, arguments: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.arguments = tuple(arguments)
        """Module and arguments of the next start."""
        self._log = log
        self._environment = {} if environment is None else environment
        self._process: subprocess.Popen[bytes] | None = None
        self._log_at_start = 0

    @property
    def pid(self) -> int:
        """Process id of the running process."""
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        """Everything that it printed, over all its starts."""
        return self._log.read_text("utf-8", errors="replace") if self._log.exists() else ""

    def start(self) -> None:
        """Start it in a session of its own, so that Ctrl-C reaches it only through its owner."""
        self._log_at_start = len(self.log)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **self._environment},
            )

    @property
    def log_of_this_start(self) -> str:
        """What it printed since it was started last."""
        return self.log[self._log_at_start :]

    def exit_code(self) -> int | None:
        """Its exit code, or None while it runs."""
        return None if self._process is None else self._process.poll()

    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """Kill −9 for it and its children, as a crash of the machine would."""
        if self._process is not None:
            _signal_session(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def stop(self) -> None:
        """Ask it to end; if it does not, end it."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def wait(self, timeout_s: float) -> int:
        """Wait until it ends by itself; its exit code."""
        assert self._process is not None
        return self._process.wait(timeout_s)


class LocalFederation:
    """A coordinator and silo agents below one folder."""

    def __init__(
        self,
        root: Path,
        *,
        federation: str,
        silos: Mapping[str, Path],
        flags: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """Nothing is started yet; ``silos`` gives each silo's folder of images.

        ``flags`` are what a silo's agent is told beside when it joins.
        """
        self._flags = flags or {}
        self.root = root
        self.silos = dict(silos)
        self._federation = federation
        self.data = root / "coordinator"
        self.environments: dict[str, dict[str, str]] = {
            name: {} for name in ("coordinator", *silos)
        }
        """What the coordinator, and each silo's agent, finds in its environment at its start."""
        self.coordinator = Program(
            self._serving("127.0.0.1:0"),
            root / "coordinator.log",
            self.environments["coordinator"],
        )
        self.agents: dict[str, Program] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def initialise(self, **settings: object) -> None:
        """Make the coordinator's data folder, with ``settings`` of its own, and start it."""
        self.make_folder(**settings)
        self.open()

    def make_folder(self, **settings: object) -> None:
        """Make the coordinator's data folder, with ``settings`` of its own."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.command(
            "coordinator", "init", "--data", str(self.data), "--federation", self._federation,
            "--hostname", "localhost", "--listen", "127.0.0.1:0",
        )  # fmt: skip
        config = Folders(self.data).config
        known = tomllib.loads(config.read_text("utf-8"))
        config.write_text(tomli_w.dumps({**known, **settings}), "utf-8")

    def open(self) -> None:
        """Start the coordinator for the first time."""
        self.coordinator.start()
        self._wait_for_coordinator()
        # From now on the same port, so that agents find a restarted coordinator again.
        self.coordinator.arguments = self._serving(Folders(self.data).endpoint.read_text().strip())

    @property
    def endpoint(self) -> str:
        """Where agents dial."""
        port = Folders(self.data).endpoint.read_text("ascii").strip().rpartition(":")[2]
        return f"localhost:{port}"

    def restart_coordinator(self) -> None:
        """Start the coordinator after it was killed or stopped, and wait until it answers."""
        self.coordinator.start()
        self._wait_for_coordinator()

    def token(self, silo: str) -> Path:
        """A file with a fresh join token for a silo."""
        path = self.root / f"{silo}.token"
        self.command(
            "coordinator", "token", "create", "--data", str(self.data), "--silo", silo,
            "--out", str(path),
        )  # fmt: skip
        return path

    def join_arguments(self, silo: str) -> tuple[str, ...]:
        """The command by which a silo joins, with a fresh token."""
        return (
            "silo_agent", "join", "--coordinator", self.endpoint,
            "--token-file", str(self.token(silo)), "--dataset", str(self.silos[silo]),
            "--data", str(self.agent_data(silo)), *self._flags.get(silo, ()),
        )  # fmt: skip

    def join(self, silo: str) -> Program:
        """Start a silo's agent with a fresh token."""
        return self._start_agent(silo, self.join_arguments(silo))

    def join_without_training(self, silo: str) -> Program:
        """Start an agent that moves real tensors but trains nothing: the null round."""
        self.command(*self.join_arguments(silo), "--enrol-only")
        return self.start_null_agent(silo)

    def start_agent(self, silo: str) -> Program:
        """Start the agent of a silo that has enrolled, or was stopped."""
        return self._start_agent(silo, ("silo_agent", "run", "--data", str(self.agent_data(silo))))

    def start_null_agent(self, silo: str) -> Program:
        """Start the null agent of a silo that has enrolled."""
        return self._start_agent(silo, ("benchmark.null_agent", str(self.agent_data(silo))))

    def agent_data(self, silo: str) -> Path:
        """The data folder of a silo's agent."""
        return self.root / silo

    def start_run(self, plan: Path) -> None:
        """Start a run."""
        self.command("coordinator", "run", "start", str(plan), "--data", str(self.data))

    @contextmanager
    def admin(self) -> "Iterator[AdminStub]":
        """A connection to the coordinator's Admin service."""
        with admin_of(self.data) as admin:
            yield admin

    def wait_until(
        self,
        reached: Callable[[admin_pb2.GetRunResponse], bool],
        *,
        timeout_s: float,
        tell: "Callable[[AdminStub, admin_pb2.GetRunResponse], None]" = lambda admin, run: None,
    ) -> admin_pb2.GetRunResponse:
        """Poll the run until a condition holds.

        Raises:
            RunError: it did not in time, the run failed, or a process died; with its last words.
        """
        until_s = time.monotonic() + timeout_s
        with self.admin() as admin:
            while True:
                run = admin.GetRun(admin_pb2.GetRunRequest())
                tell(admin, run)
                if reached(run):
                    return run
                self.check_alive()
                if run.state == "failed" or time.monotonic() > until_s:
                    raise RunError(
                        f"The run is {run.state} in round {run.round.number} "
                        f"({run.round.phase}) after {timeout_s:g} s at most",
                        why=run.reason,
                        next_step=f"The logs lie in {self.root}.",
                    )
                time.sleep(_POLL_S)

    def stop(self) -> None:
        """End every process, agents first."""
        for agent in self.agents.values():
            agent.stop()
        self.coordinator.stop()

    def command(self, *arguments: str) -> str:
        """Run one command to its end; what it printed.

        Raises:
            RunError: it failed; its words are in the message.
        """
        done = subprocess.run(
            [sys.executable, "-m", *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RunError(f"{' '.join(arguments[:3])} failed", why=done.stderr.strip()[-2000:])
        return done.stdout

    def _start_agent(self, silo: str, arguments: Sequence[str]) -> Program:
        log, environment = self.root / f"{silo}.log", self.environments[silo]
        self.agents[silo] = Program(arguments, log, environment)
        self.agents[silo].start()
        return self.agents[silo]

    def _serving(self, listen: str) -> tuple[str, ...]:
        return (
            "coordinator", "serve", "--data", str(self.data), "--listen", listen,
            "--metrics", "127.0.0.1:0",
        )  # fmt: skip

    def _wait_for_coordinator(self) -> None:
        until_s = time.monotonic() + _START_S
        while "serving the federation" not in self.coordinator.log_of_this_start:
            self.check_alive()
            if time.monotonic() > until_s:
                raise RunError("The coordinator does not start", why=self.coordinator.log[-500:])
            time.sleep(_POLL_S)

    def check_alive(self) -> None:
        """Check that no process has ended by itself.

        Raises:
            RunError: one has; with its last words.
        """
        for name, program in {"coordinator": self.coordinator, **self.agents}.items():
            if program.exit_code() not in (None, -signal.SIGKILL, 0):
                raise RunError(
                    f"The {name} ended with exit code {program.exit_code()}",
                    why=program.log.strip()[-1000:],
                )


def _signal_session(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return


@contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, so that no process is left behind."""

    def stop(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
