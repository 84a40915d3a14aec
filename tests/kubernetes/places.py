"""Where is the story told? On the cluster of ``KUBECONFIG``, or on a node made for it here."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.kubernetes.cluster import Cluster, Manifest
from tests.kubernetes.images import Image, build
from tests.kubernetes.needs import CACHE, check_node_can_be_made
from tests.kubernetes.node import NAME, one_machine_node
from tests.kubernetes.steps import Steps

_IMAGES = {"coordinator": "FEDREID_COORDINATOR_IMAGE", "silo-agent": "FEDREID_SILO_AGENT_IMAGE"}
"""Variables that name the images for a given cluster, REPOSITORY:TAG."""
_TORCH = {"coordinator": "none", "silo-agent": "yes"}
"""The story's plan needs no torch at the coordinator: one image of each kind is tried."""
_VOLUMES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A cluster that can run the images."""

    cluster: Cluster
    images: dict[str, Manifest]
    """The charts' value ``image`` for each program."""


@contextmanager
def place(steps: Steps) -> Iterator[Place]:
    """The given cluster, or a node that ends with the block."""
    given = os.environ.get("KUBECONFIG", "")
    if given:
        cluster = Cluster(Path(given))
        steps.note("cluster", f"given, Kubernetes {cluster.version()}")
        yield Place(cluster=cluster, images=_named_images())
        return
    check_node_can_be_made()
    built = {program: _built(program, steps) for program in _IMAGES}
    state = CACHE / "node"
    with ExitStack() as stack:
        with steps.step("a node of this machine is ready"):
            node = stack.enter_context(one_machine_node(state))
            node.cluster.apply(*(_volume(state, number) for number in range(_VOLUMES)))
        for name, version in node.versions().items():
            steps.note(name, version)
        for image in built.values():
            with steps.step(f"{image.name} goes to the node"):
                node.take_image(image.name)
        values = {
            program: {"repository": image.repository, "tag": image.tag, "pullPolicy": "Never"}
            for program, image in built.items()
        }
        yield Place(cluster=node.cluster, images=values)


def _named_images() -> dict[str, Manifest]:
    images = {}
    for program, variable in _IMAGES.items():
        repository, _, tag = os.environ.get(variable, "").rpartition(":")
        if not repository:
            pytest.fail(f"with KUBECONFIG, {variable} must say REPOSITORY:TAG of {program}'s image")
        images[program] = {"repository": repository, "tag": tag}
    return images


def _built(program: str, steps: Steps) -> Image:
    image = build(program, torch=_TORCH[program])
    steps.note(
        f"image of the {program}, TORCH={_TORCH[program]}",
        f"{image.size}, built in {image.seconds:.0f} s",
    )
    return image


def _volume(state: Path, number: int) -> Manifest:
    """A folder as a volume: of the kind whose group the kubelet sets, as it does a disk's."""
    folder = state / f"volumes/{number}"
    folder.mkdir(parents=True)
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [NAME]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"fedreid-{number}"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "capacity": {"storage": "2Gi"},
            "persistentVolumeReclaimPolicy": "Retain",
            "local": {"path": str(folder)},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
        },
    }
