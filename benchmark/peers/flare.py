"""How long does NVIDIA FLARE take for a null round? Its own programs, started and asked here.

``nvflare provision`` makes a project with its own authority and a startup kit for the server, each
client and an administrator; the server and the clients are started by the script in their kits,
``--once`` (else it would start them again whenever they end), and ``nvflare job submit`` sends them
``flare_app``. All of them speak gRPC over mutual TLS, as the kits have it. Each starts a process
for the job, which speaks through its parent, on the same machine over plain TCP: FLARE's default.
Models and updates are kept in memory, its default too.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from benchmark.peers.driving import START_S, Programs, drive, free_port, installed, listens, tell

_OLDEST = (2, 8)
"""Before it, a client's training script took another executor's settings."""
_SERVER = "localhost"
"""The server is known by this name, so its certificate is for it."""
_ADMIN = "admin@null-round.example"
_APP_ENDED = "Server runner finished"
"""The server's log has it also of a job that failed."""

_PROJECT = """
api_version: 3
name: null_round
description: A round without learning
participants:
  - {{name: localhost, type: server, org: org, fed_learn_port: {port}, admin_port: {port}}}
  - {{name: admin@null-round.example, type: admin, org: org, role: lead}}
{clients}
builders:
  - path: nvflare.lighter.impl.workspace.WorkspaceBuilder
  - path: nvflare.lighter.impl.static_file.StaticFileBuilder
    args: {{config_folder: config, scheme: grpc}}
  - path: nvflare.lighter.impl.cert.CertBuilder
  - path: nvflare.lighter.impl.signature.SignatureBuilder
"""


def check() -> dict[str, str]:
    """Its ``version``, or as ``missing`` what is."""
    return installed(("nvflare", "numpy"), oldest=_OLDEST)


class Flare:
    """One run."""

    def __init__(self, task_path: Path) -> None:
        self._task_path = task_path
        self._task: dict[str, Any] = json.loads(task_path.read_text("utf-8"))
        self._folder = task_path.parent
        self._report = self._folder / "rounds.jsonl"
        self._clients = [f"site-{index}" for index in range(self._task["silos"])]
        home = self._folder / "home"
        home.mkdir()
        self._programs = Programs(self._folder, {"HOME": str(home)})
        self._nvflare = str(Path(sys.executable).with_name("nvflare"))
        self._port = free_port()
        self._kits = self._folder / "provisioned" / "null_round" / "prod_00"

    def run(self) -> None:
        """See ``driving.Rounds``."""
        self._provision()
        self._start(_SERVER)
        self._programs.until(lambda: listens(self._port), within_s=START_S, server=_SERVER)
        for client in self._clients:
            self._start(client)
        job = self._pack()
        kit = ("--startup-kit", str(self._kits / _ADMIN))
        self._programs.run(self._nvflare, "job", "submit", "-j", str(job), *kit)
        for number in range(self._task["rounds"]):
            line = self._programs.line(
                self._report,
                number,
                over=lambda: _APP_ENDED in self._programs.words(_SERVER),
                within_s=self._task["round_s"],
                server=_SERVER,
            )
            tell({"seconds": line["seconds"]})
        # The server is two processes: what clients speak to, and the job's, which holds the model.
        tell({"server_peak_mb": self._programs.peak_mb(_SERVER) + line["job_peak_mb"]})

    def stop(self) -> None:
        """See ``driving.Rounds``."""
        self._programs.stop()

    def _provision(self) -> None:
        """Make the certificates and the kits."""
        clients = "".join(
            f"  - {{name: {name}, type: client, org: org}}\n" for name in self._clients
        )
        project = self._folder / "project.yml"
        project.write_text(_PROJECT.format(port=self._port, clients=clients))
        self._programs.run(
            self._nvflare, "provision", "-p", str(project), "-w", str(self._folder / "provisioned")
        )

    def _start(self, name: str) -> None:
        script = self._kits / name / "startup" / "sub_start.sh"
        self._programs.start(name, "bash", str(script), "--once")

    def _pack(self) -> Path:
        """A folder with the job: one app for the server and all clients."""
        job = self._folder / "job"
        config, code = job / "app" / "config", job / "app" / "custom"
        config.mkdir(parents=True)
        code.mkdir()
        shutil.copy(Path(__file__).with_name("flare_app.py"), code)
        meta = {
            "name": "null_round",
            "resource_spec": {},
            "min_clients": len(self._clients),
            "deploy_map": {"app": ["@ALL"]},
        }
        rounds = {
            "id": "controller",
            "path": "flare_app.NullRounds",
            "args": {
                "task": str(self._task_path.resolve()),
                "report": str(self._report.resolve()),
            },
        }
        training = {
            "path": "nvflare.app_common.executors.client_api_executor.ClientAPIExecutor",
            "args": {
                "execution_mode": "in_process",
                "task_script_path": "flare_app.py",
                "params_exchange_format": "numpy",
                "server_expected_format": "numpy",
                "params_transfer_type": "FULL",
            },
        }
        executors = [{"tasks": ["*"], "executor": training}]
        files: dict[Path, dict[str, object]] = {
            job / "meta.json": meta,
            config / "config_fed_server.json": {"format_version": 2, "workflows": [rounds]},
            config / "config_fed_client.json": {"format_version": 2, "executors": executors},
        }
        for path, content in files.items():
            path.write_text(json.dumps(content))
        return job


if __name__ == "__main__":
    drive(check, Flare)
