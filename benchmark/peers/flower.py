"""How long does Flower take for a null round? Its own programs, started and asked here.

This runs in the virtual environment of Flower and imports the standard library alone, so that it
can say what is missing. It starts what Flower's documents have people deploy: one
``flower-superlink``, a ``flower-supernode`` for each silo, all processes of their own on loopback,
and ``flwr run``, which sends them ``flower_app``. Flower 1.41 speaks HTTP/1.1 through uvicorn, no
longer gRPC. TLS is the server's alone (Flower has no client certificates); nodes sign each request
with a registered key of their own, which is Flower's authentication of nodes. The link between a
node and its own app stays on its machine and is plain, which is Flower's default. Everything is
kept in memory, its default too.

``python flower.py check`` says which Flower is there; ``python flower.py run TASK.json`` does the
rounds: a line of JSON for each, then one with ``server_peak_mb``; or one with ``failed``. It stays
until its input ends, and ends what it started then: whoever started it can see and end all
processes, and none is left behind by one who was killed.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_OLDEST = (1, 41)
"""Before it, the three services of a SuperLink had a port and a protocol each."""
_POLL_S = 0.05
_START_S = 120.0
_STOP_S = 10.0
_TAIL = 2000
_APP_ENDED = "Finished task"
"""The SuperLink says so of the server's app, also of one that failed."""

_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    # Else each app's dependencies are asked of a package registry before it runs.
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
"""Nothing of a measurement is told to the outside, or asked of it."""

_APP = """
[project]
name = "null-round"
version = "1.0.0"
description = "A round without learning"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedreid"

[tool.flwr.app.components]
serverapp = "flower_app:server"
clientapp = "flower_app:client"

[tool.flwr.app.config]
task = {task}
report = {report}
"""

_CONNECTION = """
[superlink]
default = "local"

[superlink.local]
address = "{address}"
root-certificates = {root}
"""


class Failed(Exception):
    """What Flower was asked to do, it did not; the message has its last words."""


def check() -> dict[str, str]:
    """Its ``version``, or as ``missing`` what is."""
    absent = [name for name in ("flwr", "numpy") if find_spec(name) is None]
    if absent:
        return {"missing": f"not installed: {', '.join(absent)}"}
    version = metadata.version("flwr")
    if tuple(map(int, version.split(".")[:2])) < _OLDEST:
        return {"missing": f"flwr {version} is older than {'.'.join(map(str, _OLDEST))}"}
    return {"version": version}


class Flower:
    """The processes of one run, each with its log below one folder."""

    def __init__(self, task_path: Path) -> None:
        self._task_path = task_path
        self._task: dict[str, Any] = json.loads(task_path.read_text("utf-8"))
        self._folder = task_path.parent
        self._report = self._folder / "rounds.jsonl"
        self._bin = Path(sys.executable).parent
        home = self._folder / "home"
        home.mkdir()
        self._environment = {
            **os.environ,
            **_QUIET,
            "FLWR_HOME": str(home),
            # Flower starts its own programs by their names.
            "PATH": os.pathsep.join([str(self._bin), os.environ.get("PATH", os.defpath)]),
        }
        self._address = f"localhost:{_free_port()}"  # the certificate has no numbers
        (home / "config.toml").write_text(
            _CONNECTION.format(address=self._address, root=json.dumps(self._task["root"]))
        )
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._changing = threading.Lock()
        """Held while something starts, and while all is stopped: nothing starts after that."""

    def run(self) -> None:
        """Print a line after each round, and one after all.

        Raises:
            Failed: a program of Flower's ended, or a round took too long.
        """
        self._start_superlink()
        keys = [self._register(index) for index in range(self._task["silos"])]
        for index, key in enumerate(keys):
            self._start_node(index, key)
        self._command("run", str(self._pack()))
        for number in range(self._task["rounds"]):
            line = self._wait_for_line(number)
            _tell({"seconds": line["seconds"]})
        # The server is two processes that hold the model: Flower's, and the app's.
        superlink_mb = _peak_mb(self._started["superlink"].pid)
        _tell({"server_peak_mb": superlink_mb + line["serverapp_peak_mb"]})

    def stop(self) -> None:
        """End every process; what they started in turn watches for that."""
        with self._changing:
            for process in self._started.values():
                process.terminate()
            for process in self._started.values():
                try:
                    process.wait(_STOP_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def _start_superlink(self) -> None:
        host, _, port = self._address.partition(":")
        self._start(
            "superlink", "flower-superlink", "--host", host, "--port", port,
            "--ssl-certfile", self._task["certificate"], "--ssl-keyfile", self._task["key"],
            "--ssl-ca-certfile", self._task["root"], "--enable-supernode-auth",
        )  # fmt: skip
        until_s = time.monotonic() + _START_S
        while not _listens(self._address):
            self._check_alive(until_s)
            time.sleep(_POLL_S)

    def _register(self, index: int) -> Path:
        """A key for a node, known to the SuperLink."""
        from cryptography.hazmat.primitives import serialization  # Flower brings it along
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP384R1())
        private, public = (self._folder / f"node-{index}.{name}" for name in ("key", "pub"))
        private.touch(0o600)
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.OpenSSH,
                serialization.NoEncryption(),
            )
        )
        public.write_bytes(
            key.public_key().public_bytes(
                serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
            )
        )
        self._command("supernode", "register", str(public))
        return private

    def _start_node(self, index: int, key: Path) -> None:
        self._start(
            f"supernode-{index}", "flower-supernode", "--superlink", self._address,
            "--root-certificates", self._task["root"],
            "--auth-supernode-private-key", str(key), "--port", str(_free_port()),
            "--node-config", f"silo={index}",
        )  # fmt: skip

    def _pack(self) -> Path:
        """A folder with the app."""
        app = self._folder / "app"
        app.mkdir()
        paths = {"task": self._task_path, "report": self._report}
        words = {name: json.dumps(str(path.resolve())) for name, path in paths.items()}
        (app / "pyproject.toml").write_text(_APP.format(**words))
        shutil.copy(Path(__file__).with_name("flower_app.py"), app)
        return app

    def _wait_for_line(self, number: int) -> dict[str, Any]:
        """What the server's app wrote after its ``number``-th round, from 0 on."""
        until_s = time.monotonic() + self._task["round_s"]
        while True:
            over = _APP_ENDED in self._words("superlink")  # asked first: all is written by then
            written = self._report.read_text("utf-8") if self._report.exists() else ""
            lines = written.splitlines(keepends=True)
            if len(lines) > number and lines[number].endswith("\n"):
                line: dict[str, Any] = json.loads(lines[number])
                if "failed" in line:
                    raise Failed(line["failed"])
                return line
            if over:
                raise Failed("the server's app has ended early")
            self._check_alive(until_s)
            time.sleep(_POLL_S)

    def _start(self, name: str, program: str, *arguments: str) -> None:
        with self._changing, self._log(name).open("wb") as log:
            self._started[name] = subprocess.Popen(
                [self._bin / program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment,
            )

    def _command(self, *arguments: str) -> None:
        done = subprocess.run(
            [self._bin / "flwr", *arguments, "local"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self._environment,
            timeout=_START_S,
        )
        if done.returncode != 0:
            raise Failed(f"flwr {arguments[0]} failed: {(done.stdout + done.stderr)[-_TAIL:]}")

    def _check_alive(self, until_s: float) -> None:
        for name, process in self._started.items():
            if process.poll() is not None:
                raise Failed(f"{name} ended with {process.returncode}: {self._words(name)}")
        if time.monotonic() > until_s:
            raise Failed(f"nothing happens any more: {self._words('superlink')}")

    def _words(self, name: str) -> str:
        """The last that a process printed."""
        return self._log(name).read_text("utf-8", "replace")[-_TAIL:]

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"


def _free_port() -> int:
    """A port that nothing listens on, for a program which must be told one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def _peak_mb(pid: int) -> float:
    """The most that a process has held, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _listens(address: str) -> bool:
    host, _, port = address.partition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def _tell(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def _run(task_path: Path) -> None:
    flower = Flower(task_path)

    def end_with_input() -> None:
        sys.stdin.read()
        flower.stop()
        os._exit(0)

    watch = threading.Thread(target=end_with_input, daemon=True)
    watch.start()
    try:
        flower.run()
    except (Failed, OSError, subprocess.SubprocessError) as error:
        _tell({"failed": str(error)})
    except BaseException:
        flower.stop()
        raise
    watch.join()


if __name__ == "__main__":
    if sys.argv[1] == "check":
        _tell(check())
    else:
        _run(Path(sys.argv[2]))
