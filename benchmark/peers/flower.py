"""How long does Flower take for a null round? Its own programs, started and asked here.

One ``flower-superlink``, a ``flower-supernode`` for each silo, and ``flwr run``, which sends them
``flower_app``. Flower 1.41 speaks HTTP/1.1 through uvicorn, no longer gRPC. TLS is the server's
alone (Flower has no client certificates); nodes sign each request with a registered key of their
own, which is Flower's authentication of nodes. The link between a node and its own app stays on its
machine and is plain, which is Flower's default. Everything is kept in memory, its default too.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmark.peers.driving import START_S, Programs, drive, free_port, installed, listens, tell

_OLDEST = (1, 41)
"""Before it, the three services of a SuperLink had a port and a protocol each."""
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


def check() -> dict[str, str]:
    """Its ``version``, or as ``missing`` what is."""
    return installed(("flwr", "numpy"), oldest=_OLDEST)


class Flower:
    """One run."""

    def __init__(self, task_path: Path) -> None:
        self._task_path = task_path
        self._task: dict[str, Any] = json.loads(task_path.read_text("utf-8"))
        self._folder = task_path.parent
        self._report = self._folder / "rounds.jsonl"
        home = self._folder / "home"
        home.mkdir()
        self._programs = Programs(self._folder, {**_QUIET, "FLWR_HOME": str(home)})
        self._port = free_port()
        self._address = f"localhost:{self._port}"  # the certificate has no numbers
        (home / "config.toml").write_text(
            _CONNECTION.format(address=self._address, root=json.dumps(self._task["root"]))
        )

    def run(self) -> None:
        """See ``driving.Rounds``."""
        self._start_superlink()
        keys = [self._register(index) for index in range(self._task["silos"])]
        for index, key in enumerate(keys):
            self._start_node(index, key)
        self._command("run", str(self._pack()))
        for number in range(self._task["rounds"]):
            line = self._programs.line(
                self._report,
                number,
                over=lambda: _APP_ENDED in self._programs.words("superlink"),
                within_s=self._task["round_s"],
                server="superlink",
            )
            tell({"seconds": line["seconds"]})
        # The server is two processes that hold the model: Flower's, and the app's.
        superlink_mb = self._programs.peak_mb("superlink")
        tell({"server_peak_mb": superlink_mb + line["serverapp_peak_mb"]})

    def stop(self) -> None:
        """See ``driving.Rounds``."""
        self._programs.stop()

    def _start_superlink(self) -> None:
        self._programs.start(
            "superlink", _program("flower-superlink"), "--host", "localhost",
            "--port", str(self._port), "--ssl-certfile", self._task["certificate"],
            "--ssl-keyfile", self._task["key"], "--ssl-ca-certfile", self._task["root"],
            "--enable-supernode-auth",
        )  # fmt: skip
        self._programs.until(lambda: listens(self._port), within_s=START_S, server="superlink")

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
        self._programs.start(
            f"supernode-{index}", _program("flower-supernode"), "--superlink", self._address,
            "--root-certificates", self._task["root"],
            "--auth-supernode-private-key", str(key), "--port", str(free_port()),
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

    def _command(self, *arguments: str) -> None:
        self._programs.run(_program("flwr"), *arguments, "local")


def _program(name: str) -> str:
    """One of the environment's own."""
    return str(Path(sys.executable).with_name(name))


if __name__ == "__main__":
    drive(check, Flower)
