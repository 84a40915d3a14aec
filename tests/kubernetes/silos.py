"""Which images do the silos hold? Generated ones, drawn in the cluster by the agent's own image.

The same job writes the model that the run starts from, for the coordinator's image has no torch.
"""

from collections.abc import Sequence

from tests.kubernetes.cluster import Manifest

SILOS = ("mall", "station")
START = "start"
"""The claim of the model that the run starts from; its file is ``start.safetensors``."""
_USER = 10001
_SCRIPT = f"""
import shutil
from pathlib import Path

from fedreid.datasets.synthetic import SyntheticSpec, render
from fedreid.plan import BackbonePlan
from fedreid.reid.backbone import build_backbone, initialise, shared_tensors
from fedreid.wire.tensors import save_tensors

spec = SyntheticSpec(
    silos=2, ratio=(3, 2), unit_identities=24, test_identities=6, public_images=8,
    height_px=64, width_px=32,
)
render(Path("/tmp/silos"), spec, workers=1)
for silo in {SILOS}:
    shutil.copytree(Path("/tmp/silos") / silo, Path("/volumes") / silo / "images")
backbone = build_backbone(BackbonePlan(name="resnet18", height_px=64, width_px=32))
initialise(backbone, 7)
save_tensors(Path("/volumes/{START}/start.safetensors"), shared_tensors(backbone))
"""


def claim(name: str) -> Manifest:
    """A claim for what is generated."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }


def generation(image: Manifest) -> Manifest:
    """The job that fills the claims, confined as the charts' pods are."""
    names = (*SILOS, START)
    container = {
        "name": "generate",
        "image": f"{image['repository']}:{image['tag']}",
        "imagePullPolicy": image.get("pullPolicy", "IfNotPresent"),
        "command": ["python", "-c", _SCRIPT],
        "env": [{"name": "HOME", "value": "/tmp"}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": _mounts(names),
    }
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "fsGroupChangePolicy": "OnRootMismatch",
        },
        "containers": [container],
        "volumes": [
            {"name": "tmp", "emptyDir": {}},
            *({"name": name, "persistentVolumeClaim": {"claimName": name}} for name in names),
        ],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "generate"},
        "spec": {"backoffLimit": 0, "template": {"spec": pod}},
    }


def _mounts(names: Sequence[str]) -> list[Manifest]:
    volumes = [{"name": name, "mountPath": f"/volumes/{name}"} for name in names]
    return [{"name": "tmp", "mountPath": "/tmp"}, *volumes]
