"""What do operators do with a federation on a cluster? Each thing by helm or kubectl."""

import json
import tempfile
from typing import Any

import yaml

from tests.deploy.rendering import ROOT
from tests.kubernetes.cluster import Manifest
from tests.kubernetes.places import Place
from tests.kubernetes.processes import wait_until
from tests.kubernetes.silos import SILOS, START, claim, generation

NAMESPACE = "fedreid-test"
COORDINATOR = "federation-coordinator"
_POD = f"{COORDINATOR}-0"
_HOST = f"{COORDINATOR}.{NAMESPACE}.svc"
_DATA = "--data=/var/lib/fedreid/coordinator"
_START_FOLDER = "/var/lib/fedreid-start"
_WAIT_S = 400.0
PLAN = f"""
name = "first"
rounds = 1000  # one is always under way
training = {{epochs = 2, threads = 1, batch_size = 16}}
quorum = {{min_silos = 2, deadline_s = 600.0, phase_deadline_s = 300.0}}
[backbone]
name = "resnet18"
height_px = 64
width_px = 32
start = "{_START_FOLDER}/start.safetensors"
"""


class Installed:
    """The federation in its namespace."""

    def __init__(self, place: Place) -> None:
        self.cluster = place.cluster
        self._images = place.images

    def kubectl(self, *arguments: str) -> str:
        """What kubectl says about the namespace."""
        return self.cluster.kubectl(f"--namespace={NAMESPACE}", *arguments, timeout_s=_WAIT_S)

    def generate_silos(self) -> None:
        """Make the namespace, and claims with the silos' images and the start model."""
        self.cluster.kubectl("create", "namespace", NAMESPACE)
        manifests = [*map(claim, (*SILOS, START)), generation(self._images["silo-agent"])]
        for each in manifests:
            each["metadata"]["namespace"] = NAMESPACE
        self.cluster.apply(*manifests)
        self.kubectl("wait", "--for=condition=complete", "--timeout=5m", "job/generate")
        self.kubectl("delete", "job", "generate")

    def install_coordinator(self, *flags: str) -> None:
        """Install the coordinator's chart, or upgrade it with more flags."""
        volume = {"name": "start", "persistentVolumeClaim": {"claimName": START, "readOnly": True}}
        mount = {"name": "start", "mountPath": _START_FOLDER, "readOnly": True}
        values = {
            "image": self._images["coordinator"],
            "federation": {"name": "harbour", "hostnames": [_HOST]},
            "service": {"type": "ClusterIP"},
            "run": {"plan": PLAN},
            "persistence": {"size": "1Gi"},
            "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}},
            "extraVolumes": [volume],
            "extraVolumeMounts": [mount],
        }
        self._install("federation", "coordinator", values, flags)

    def install_agent(self, silo: str, *flags: str) -> None:
        """Install a silo's chart, or upgrade it with more flags."""
        values = {
            "image": self._images["silo-agent"],
            "coordinator": f"{_HOST}:443",
            "token": {"existingSecret": f"{silo}-token"},
            "dataset": {"existingClaim": silo, "subPath": "images"},
            "persistence": {"size": "1Gi"},
            "resources": {"requests": {"cpu": "100m", "memory": "512Mi"}},
            # Threads of torch in two agents would only fight for the cores.
            "extraEnv": [{"name": "OMP_NUM_THREADS", "value": "1"}],
        }
        self._install(silo, "silo-agent", values, flags)

    def invite(self, silo: str) -> None:
        """Make a join token and keep it as the Secret that the silo's chart asks for."""
        token = self._coordinator("token", "create", f"--silo={silo}")
        literal = f"--from-literal=token={token.strip()}"
        self.kubectl("create", "secret", "generic", f"{silo}-token", literal)

    def forget_token(self, silo: str) -> None:
        """Delete the Secret of a token that was used."""
        self.kubectl("delete", "secret", f"{silo}-token")

    def secrets(self) -> dict[str, Any]:
        """The federation's keys."""
        names = (f"{COORDINATOR}-keys", f"{COORDINATOR}-admin")
        return {name: json.loads(self.kubectl("get", "secret", name, "-ojson")) for name in names}

    def test(self, release: str) -> None:
        """``helm test``."""
        self.cluster.helm("test", release, f"--namespace={NAMESPACE}", "--timeout=5m")

    def run_status(self) -> dict[str, Any]:
        """What the run is doing."""
        return dict(json.loads(self._coordinator("run", "status", "--json")))

    def round(self, number: int) -> dict[str, Any]:
        """One round."""
        return dict(json.loads(self._coordinator("round", "show", str(number))))

    def published(self) -> int:
        """How many models the run has published."""
        return int(self.run_status()["rounds_published"])

    def wait_until_published(self, rounds: int) -> None:
        """Wait for so many models of the run."""
        wait_until(f"{rounds} published", lambda: self.published() >= rounds, _WAIT_S)

    def wait_until_under_way(self) -> int:
        """The number of a round that has just begun."""
        numbers: list[int] = []

        def begun() -> bool:
            round_ = self.run_status()["round"]
            numbers.append(int(round_["number"]))
            return round_["phase"] == "collecting" and not round_["participants"]

        wait_until("a round has just begun", begun, _WAIT_S)
        return numbers[-1]

    def delete_coordinator(self) -> None:
        """Delete the pod, and wait until another answers in its place."""
        before = self._identity_of_pod()
        self.kubectl("delete", "pod", _POD)
        wait_until("another pod", lambda: self._identity_of_pod() not in ("", before), _WAIT_S)
        self.kubectl("wait", "--for=condition=Ready", "--timeout=5m", f"pod/{_POD}")

    def uninstall(self) -> None:
        """Uninstall all releases; no pod is left, and the keys are."""
        for release in (*SILOS, "federation"):
            self.cluster.helm("uninstall", release, f"--namespace={NAMESPACE}", "--wait")
        wait_until("no pod is left", lambda: not self._pods(), _WAIT_S)

    def remove(self) -> None:
        """Delete the namespace with all that is in it."""
        self.cluster.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", timeout_s=300)

    def _coordinator(self, *command: str) -> str:
        return self.kubectl("exec", _POD, "-c", "coordinator", "--", "coordinator", *command, _DATA)

    def _pods(self) -> list[Manifest]:
        return self.cluster.items("pods", f"--namespace={NAMESPACE}")

    def _identity_of_pod(self) -> str:
        return "".join(
            each["metadata"]["uid"] for each in self._pods() if each["metadata"]["name"] == _POD
        )

    def _install(self, release: str, chart: str, values: Manifest, flags: tuple[str, ...]) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
            yaml.safe_dump(values, file)
            file.flush()
            self.cluster.helm(
                "upgrade", "--install", release, str(ROOT / "helm" / chart),
                f"--namespace={NAMESPACE}", f"--values={file.name}", "--wait", "--timeout=6m",
                *flags,
            )  # fmt: skip
