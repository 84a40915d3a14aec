"""Do the charts run? Their pods' commands start the real programs, until a round is published."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.deploy.cluster import Cluster, ContainerFailed, Pod, free_port
from tests.deploy.rendering import ROOT, Manifest, helm
from tests.parties import Federation

pytestmark = pytest.mark.timeout(600)
_ROUND_S = 300.0
PLAN = """
name = "first"
rounds = 1
backbone = {name = "resnet18", height_px = 64, width_px = 32}
training = {threads = 1, batch_size = 16}
quorum = {min_silos = 1, deadline_s = 240.0, phase_deadline_s = 120.0}
"""
POLICY = 'coordinators = ["federation-coordinator:443"]\nminimum_images = 3\n'


def release(name: str, chart: str, values: Manifest, folder: Path) -> list[Manifest]:
    """The manifests of a release."""
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(values))
    done = helm("template", name, str(ROOT / "helm" / chart), "--values", str(file))
    assert done.returncode == 0, done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def notes(name: str, chart: str, values: Manifest, folder: Path) -> str:
    """What helm prints after installing; a template of its own shows it without a cluster."""
    copy = folder / f"{chart}-notes"
    shutil.copytree(ROOT / "helm" / chart, copy)
    text = (copy / "templates/NOTES.txt").read_text()
    (copy / "templates/notes.yaml").write_text(
        f'{{{{- define "notes" }}}}{text}{{{{ end }}}}\nkind: Notes\n'
        'metadata: {name: notes}\ntext: {{ include "notes" . | toJson }}\n'
    )
    file = folder / f"{name}-notes.yaml"
    file.write_text(yaml.safe_dump(values))
    done = helm("template", name, str(copy), "--values", str(file), "-s", "templates/notes.yaml")
    assert done.returncode == 0, done.stderr
    return str(yaml.safe_load(done.stdout)["text"])


def commands(text: str) -> dict[str, list[str]]:
    """The programs' own commands in the notes, by what they do."""
    found = re.findall(r"kubectl -n \S+ exec \S+-0 -c \S+ -- (.+)", text)
    return {" ".join(shlex.split(line)[1:3]): shlex.split(line) for line in found}


@pytest.fixture
def cluster(tmp_path: Path, federation: Federation) -> Iterator[Cluster]:
    """A cluster on this machine."""
    made = Cluster(tmp_path / "node", federation)
    made.root.mkdir()
    with made.serving():
        yield made


@pytest.fixture
def started() -> Iterator[list[Pod]]:
    """Pods that end with the test."""
    pods: list[Pod] = []
    yield pods
    for pod in reversed(pods):
        pod.stop()


def installed(cluster: Cluster, manifests: list[Manifest], started: list[Pod]) -> Pod:
    """Install a release as helm does: hooks, objects, the pod until it is ready, hooks."""
    cluster.apply(manifests)
    for job in cluster.pods(manifests, "pre-install"):
        job.run_to_its_end()
    (pod,) = cluster.pods(manifests)
    started.append(pod)
    pod.start()
    pod.wait_until_ready()
    for job in cluster.pods(manifests, "post-install"):
        job.run_to_its_end()
    return pod


def test_both_charts_run_until_a_round_is_published(
    cluster: Cluster, started: list[Pod], tmp_path: Path, silo_folders: dict[str, Path]
) -> None:
    values: Manifest = {
        "federation": {"name": "harbour", "hostnames": ["coordinator.example"]},
        "run": {"plan": PLAN},
        "metrics": {"port": free_port()},
    }
    manifests = release("federation", "coordinator", values, tmp_path)
    coordinator = installed(cluster, manifests, started)
    kept = dict(cluster.secrets)
    for again in cluster.pods(manifests, "pre-upgrade"):
        assert again.run_to_its_end().count("stays as it is") == 2
    assert cluster.secrets == kept and set(kept) == {
        "federation-coordinator-keys", "federation-coordinator-admin",
    }  # fmt: skip
    told = commands(notes("federation", "coordinator", values, tmp_path))
    token = coordinator.execute([w.replace("NAME", "north") for w in told["token create"]])
    (test,) = cluster.pods(manifests, "test")
    assert "the coordinator answers" in test.run_to_its_end()

    name, images = next(iter(silo_folders.items()))
    cluster.claims["images"] = Path(shutil.copytree(images, tmp_path / name))
    cluster.secrets["join-token"] = {"token": token.encode()}
    values = {
        "coordinator": "federation-coordinator:443",
        "token": {"existingSecret": "join-token"},
        "dataset": {"existingClaim": "images"},
        "policy": POLICY.replace("federation-coordinator:443", f"localhost:{cluster.port}"),
        "metrics": {"port": free_port()},
    }
    manifests = release("north", "silo-agent", values, tmp_path)
    agent = installed(cluster, manifests, started)
    del cluster.secrets["join-token"]
    status = ["coordinator", "run", "status", "--data=/var/lib/fedreid/coordinator"]
    coordinator.execute([*status, "--watch"], timeout_s=_ROUND_S)
    assert json.loads(coordinator.execute([*status, "--json"]))["rounds_published"] == "1"
    told = commands(notes("north", "silo-agent", values, tmp_path))
    assert "last trained round 1 of first" in agent.execute(told["status --data"])
    assert "tensors" in agent.execute(told["egress show"])
    (test,) = cluster.pods(manifests, "test")
    assert "the coordinator answers" in test.run_to_its_end()

    agent.stop()
    agent.start()  # without the token, and mounted a second time
    agent.wait_until_ready()
    coordinator.stop()
    with pytest.raises(ContainerFailed):
        test.run_to_its_end()
