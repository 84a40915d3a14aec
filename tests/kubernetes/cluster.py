"""How is a cluster asked? By kubectl and helm, as its operators do."""

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.kubernetes.needs import client
from tests.kubernetes.processes import done

Manifest = dict[str, Any]


class Cluster:
    """A cluster, seen through its kubeconfig."""

    def __init__(self, kubeconfig: Path) -> None:
        self._flag = f"--kubeconfig={kubeconfig}"

    def kubectl(self, *arguments: str, given: str = "", timeout_s: float = 120.0) -> str:
        """What kubectl prints; it must succeed."""
        return done([client("kubectl"), self._flag, *arguments], given=given, timeout_s=timeout_s)

    def helm(self, *arguments: str, timeout_s: float = 600.0) -> str:
        """What helm prints; it must succeed."""
        return done([client("helm"), self._flag, *arguments], timeout_s=timeout_s)

    def answers(self, *arguments: str) -> bool:
        """Whether kubectl succeeds now."""
        command = [client("kubectl"), self._flag, "--request-timeout=5s", *arguments]
        return subprocess.run(command, capture_output=True).returncode == 0

    def apply(self, *manifests: Manifest) -> None:
        """Make objects, or change them."""
        listed = {"apiVersion": "v1", "kind": "List", "items": manifests}
        self.kubectl("apply", "--filename=-", given=json.dumps(listed))

    def items(self, kind: str, *arguments: str) -> list[Manifest]:
        """Objects of a kind."""
        found = json.loads(self.kubectl("get", kind, "--output=json", *arguments))
        return list(found["items"])

    def version(self) -> str:
        """Version of the cluster's API."""
        told = json.loads(self.kubectl("version", "--output=json"))
        return str(told["serverVersion"]["gitVersion"])

    def delete_all_pods(self) -> None:
        """Delete whatever would start pods again, then the pods."""
        kinds = "statefulsets,jobs,pods"
        self.kubectl("delete", kinds, "--all", "--all-namespaces", "--grace-period=1")
