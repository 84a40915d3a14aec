"""What would a cluster do with manifests? As much of it as one machine can do with real processes.

Volumes are folders, with the modes that a kubelet gives them; a container is a process with the
pod's command, arguments and environment, in which the paths of mounts are those of the folders. The
name of a Service is the loopback with the port that the pod serves. Secrets that a job makes
through the cluster's API are kept by a small API of our own, which asks the rendered role.
"""

import base64
import http.client
import http.server
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmark.federation import Program
from tests.deploy.rendering import Manifest
from tests.parties import Federation

NAMESPACE = "default"
_PROGRAMS = {"coordinator": "coordinator", "silo-agent": "silo_agent"}
_GROUP = 0o2770
"""Of the root of a volume with an fsGroup, as the kubelet leaves it."""
_START_S = 120.0
_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Pod:
    """One pod's processes."""

    def __init__(self, name: str, spec: Manifest, cluster: "Cluster") -> None:
        self.name = name
        self._spec = spec
        self._cluster = cluster
        self._paths: dict[str, str] = {}
        self.main: Program | None = None

    def start(self) -> None:
        """Mount, run the init containers to their end, start the container."""
        self._mount()
        for container in self._spec.get("initContainers", []):
            self.run(container)
        (container,) = self._spec["containers"]
        log = self._cluster.root / f"{self.name}.log"
        module, *arguments = self._command([*container["command"], *container.get("args", [])])
        self.main = Program([module, *arguments], log, self._environment(container))
        self.main.start()

    def run_to_its_end(self) -> str:
        """What a job's or a test's container prints; it must succeed."""
        self._mount()
        (container,) = self._spec["containers"]
        return self.run(container)

    def run(self, container: Manifest) -> str:
        """Run a container to its end."""
        return self._ended(
            [*container["command"], *container.get("args", [])], self._environment(container)
        )

    def execute(self, command: Sequence[str], timeout_s: float = _START_S) -> str:
        """``kubectl exec``."""
        return self._ended(command, self._environment(self._spec["containers"][0]), timeout_s)

    def passes(self, probe: str) -> bool:
        """Whether a probe of the container succeeds now."""
        (container,) = self._spec["containers"]
        get = container[probe]["httpGet"]
        (port,) = (p["containerPort"] for p in container["ports"] if p["name"] == get["port"])
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", get["path"])
            return 200 <= connection.getresponse().status < 400
        except OSError:
            return False
        finally:
            connection.close()

    def wait_until_ready(self) -> None:
        """Wait as long as the startup probe would, then for readiness."""
        assert self.main is not None
        until_s = time.monotonic() + _START_S
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            while not self.passes(probe):
                assert self.main.exit_code() is None, self.main.log
                assert time.monotonic() < until_s, f"{probe} fails: {self.main.log}"
                time.sleep(0.2)

    def stop(self) -> None:
        """Delete the pod; what it has on volumes stays."""
        if self.main is not None:
            self.main.stop()

    def _ended(
        self, command: Sequence[str], environment: dict[str, str], timeout_s: float = _START_S
    ) -> str:
        done = subprocess.run(
            [sys.executable, "-m", *self._command(command)],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        if done.returncode != 0:
            raise ContainerFailed(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        return done.stdout

    def _mount(self) -> None:
        group = self._spec["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
        volumes = {volume["name"]: volume for volume in self._spec["volumes"]}
        mounted = [
            mount
            for container in [*self._spec.get("initContainers", []), *self._spec["containers"]]
            for mount in container.get("volumeMounts", [])
        ]
        for mount in mounted:
            volume = volumes.get(mount["name"], {"claim": f"{mount['name']}-{self.name}"})
            place = self._cluster.volume(self.name, mount["name"], volume)
            if "configMap" not in volume:
                set_group(place, on_root_mismatch=group)
            self._paths[mount["mountPath"]] = str(place)
        if self._spec["automountServiceAccountToken"]:
            account = self._spec["serviceAccountName"]
            self._paths[_ACCOUNT] = str(self._cluster.account(account))
        for mount in mounted:
            if "configMap" in volumes.get(mount["name"], {}):
                for file in Path(self._paths[mount["mountPath"]]).iterdir():
                    file.write_text(self._here(file.read_text()))

    def _here(self, text: str) -> str:
        """The text with paths, ports and names of this machine."""
        paths = "|".join(map(re.escape, sorted(self._paths, key=len, reverse=True)))
        if paths:
            text = re.sub(rf"(?<!\w)({paths})(?![\w-])", lambda p: self._paths[p[0]], text)
        for name, port in self._cluster.services.items():
            text = re.sub(rf"(?<![\w-]){re.escape(name)}(?!\w)", f"localhost:{port}", text)
        return text.replace("0.0.0.0:8443", f"127.0.0.1:{self._cluster.port}")

    def _command(self, command: Sequence[str]) -> list[str]:
        program, *arguments = command
        return [_PROGRAMS[program], *map(self._here, arguments)]

    def _environment(self, container: Manifest) -> dict[str, str]:
        environment = dict(self._cluster.environment)
        for variable in container.get("env", []):
            if "value" in variable:
                environment[variable["name"]] = self._here(variable["value"])
                continue
            reference = variable["valueFrom"]["secretKeyRef"]
            found = self._cluster.secrets.get(reference["name"])
            if found is not None:
                environment[variable["name"]] = found[reference["key"]].decode()
            else:
                assert reference["optional"]
        return environment


class ContainerFailed(AssertionError):
    """A container ended with another exit code than 0."""


class Cluster:
    """Volumes, Secrets and Services of one namespace."""

    def __init__(self, root: Path, authority: Federation) -> None:
        self.root = root
        self.secrets: dict[str, dict[str, bytes]] = {}
        self.config_maps: dict[str, dict[str, str]] = {}
        self.claims: dict[str, Path] = {}
        """Folders of claims that are there already."""
        self.port = free_port()
        """Where the coordinator's pod serves."""
        self.services: dict[str, int] = {}
        """Port on this machine by NAME:PORT of a Service."""
        self.environment: dict[str, str] = {}
        """What the kubelet tells every container."""
        self._authority = authority
        self._roles: dict[str, list[Manifest]] = {}

    def apply(self, manifests: list[Manifest]) -> None:
        """Take up what pods refer to."""
        for each in manifests:
            name = each["metadata"]["name"]
            if each["kind"] == "ConfigMap":
                self.config_maps[name] = each["data"]
            elif each["kind"] == "Role":
                self._roles[name] = each["rules"]
            elif each["kind"] == "Service":
                for port in each["spec"]["ports"]:
                    if port["name"] == "grpc" and each["spec"].get("clusterIP") != "None":
                        for host in (f"{name}.{NAMESPACE}.svc", name):
                            self.services[f"{host}:{port['port']}"] = self.port

    def pods(self, manifests: list[Manifest], hook: str = "") -> list[Pod]:
        """The pods of a release, or those of one of its hooks."""
        found = []
        for each in manifests:
            hooks = each["metadata"].get("annotations", {}).get("helm.sh/hook", "").split(",")
            if each["kind"] not in ("Pod", "Job", "StatefulSet") or hook not in hooks:
                continue
            spec = each["spec"] if each["kind"] == "Pod" else each["spec"]["template"]["spec"]
            suffix = "-0" if each["kind"] == "StatefulSet" else ""
            found.append(Pod(each["metadata"]["name"] + suffix, spec, self))
        return found

    def volume(self, pod: str, name: str, volume: Manifest) -> Path:
        """The folder of a volume, with what it is to hold."""
        claim: str = volume.get("persistentVolumeClaim", {}).get(
            "claimName", volume.get("claim", "")
        )
        if claim:
            held = self.claims.setdefault(claim, self.root / "claims" / claim)
            held.mkdir(parents=True, exist_ok=True)
            return held
        place = self.root / pod / name
        place.mkdir(parents=True, exist_ok=True)
        for file, content in self._content(volume).items():
            target = place / file
            target.write_bytes(content)
            target.chmod(0o440)
        return place

    def account(self, name: str) -> Path:
        """What a pod finds of its service account."""
        place = self.root / "accounts" / name
        place.mkdir(parents=True, exist_ok=True)
        (place / "token").write_text(name)
        (place / "namespace").write_text(NAMESPACE)
        (place / "ca.crt").write_bytes(self._authority.authority.certificate_pem)
        return place

    def _content(self, volume: Manifest) -> dict[str, bytes]:
        if "configMap" in volume:
            return {k: v.encode() for k, v in self.config_maps[volume["configMap"]["name"]].items()}
        if "secret" in volume:
            return self.secrets[volume["secret"]["secretName"]]
        if "projected" in volume:
            return {
                item["path"]: self.secrets[source["secret"]["name"]][item["key"]]
                for source in volume["projected"]["sources"]
                for item in source["secret"]["items"]
            }
        return {}

    def allows(self, account: str, verb: str, name: str) -> bool:
        """Whether the role of a service account allows something with a Secret."""
        return any(
            "secrets" in rule["resources"]
            and verb in rule["verbs"]
            and ("resourceNames" not in rule or name in rule["resourceNames"])
            for rule in self._roles.get(account, [])
        )

    @contextmanager
    def serving(self) -> Iterator[None]:
        """The part of the cluster's API that is asked for Secrets."""
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        identity = self._authority.server()
        pem = self.root / "api.pem"
        pem.write_bytes(identity.key_pem + identity.certificate_pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        self.environment["KUBERNETES_SERVICE_HOST"] = "127.0.0.1"
        self.environment["KUBERNETES_SERVICE_PORT"] = str(server.server_port)
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def set_group(place: Path, *, on_root_mismatch: bool) -> None:
    """Open a volume to the pod's group, as a kubelet does at each mount."""
    if on_root_mismatch and place.stat().st_mode & 0o7777 == _GROUP:
        return
    for path in place.rglob("*"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o2770 if path.is_dir() else 0o660))
    place.chmod(_GROUP)


def _handler(cluster: Cluster) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        _secrets = f"/api/v1/namespaces/{NAMESPACE}/secrets"

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing."""

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name = body["metadata"]["name"]
            if self.path != self._secrets or not self._may("create", name):
                self._answer(403, {})
            elif name in cluster.secrets:
                self._answer(409, {})
            else:
                data = {key: base64.b64decode(value) for key, value in body["data"].items()}
                cluster.secrets[name] = data
                self._answer(201, body)

        def do_GET(self) -> None:
            name = self.path.removeprefix(f"{self._secrets}/")
            if not self._may("get", name):
                self._answer(403, {})
            elif name not in cluster.secrets:
                self._answer(404, {})
            else:
                data = cluster.secrets[name].items()
                self._answer(
                    200, {"data": {key: base64.b64encode(value).decode() for key, value in data}}
                )

        def _may(self, verb: str, name: str) -> bool:
            account = self.headers["Authorization"].removeprefix("Bearer ")
            return cluster.allows(account, verb, name)

        def _answer(self, status: int, body: object) -> None:
            text = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    return Handler
