"""Are the charts strict, valid for clusters old and new, and confined?"""

import functools
import itertools
import json
import os
import subprocess
import warnings
from pathlib import Path

import pytest
import yaml

from tests.deploy.chart_docs import CHARTS, written
from tests.deploy.rendering import (
    CASES,
    GOLDEN,
    ROOT,
    Manifest,
    chart_of,
    golden_texts,
    helm,
    pod_specs,
    rendered,
    tool,
)
from tests.deploy.typescript import type_faults

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import kubernetes_validate

VERSIONS = ("1.29", "1.33", "1.37")
CUSTOM = {
    "monitoring.coreos.com": "@kubernetes-models/prometheus-operator",
    "cert-manager.io": "@kubernetes-models/cert-manager",
    "gateway.networking.k8s.io": "@kubernetes-models/gateway-api",
}
"""Groups of custom resources, and what carries their definitions."""
RESTRICTED_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
    "projected", "secret",
}  # fmt: skip
each_case = pytest.mark.parametrize(
    "values", CASES, ids=lambda path: f"{path.parents[1].name}-{path.name[:-12]}"
)


def is_custom(manifest: Manifest) -> bool:
    """Whether Kubernetes itself does not know the kind."""
    return manifest["apiVersion"].split("/")[0] in CUSTOM


@each_case
def test_lint_has_nothing_to_say(values: Path) -> None:
    done = helm("lint", "--strict", str(chart_of(values)), "--values", str(values))
    assert done.returncode == 0, done.stdout


@each_case
def test_manifests_are_valid_for_three_versions_of_kubernetes(values: Path) -> None:
    ours = [each for each in rendered(values) if not is_custom(each)]
    assert len(ours) >= 5
    for version, manifest in itertools.product(VERSIONS, ours):
        validate(version, json.dumps(manifest))


def test_an_unknown_field_is_seen_by_the_validation() -> None:
    manifest = rendered(CASES[0])[0]
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(VERSIONS[0], json.dumps({**manifest, "unheardOf": True}))


@functools.cache
def validate(version: str, manifest: str) -> None:
    """Validate a manifest once; most are the same in every case."""
    kubernetes_validate.validate(json.loads(manifest), version, strict=True)


def custom_faults(manifests: list[Manifest], folder: Path) -> list[str]:
    """What the definitions of custom resources say against manifests: values, then fields."""
    npm = tool("npm")
    values = subprocess.run(
        ["node", str(Path(__file__).parent / "validate_crds.mjs"), npm],
        input=json.dumps(manifests),
        capture_output=True,
        text=True,
    )
    assert values.returncode == 0, values.stderr
    fields = type_faults("\n".join(_typed(n, each) for n, each in enumerate(manifests)), folder)
    return [*values.stdout.splitlines(), *fields]


def _typed(number: int, manifest: Manifest) -> str:
    group, kind = manifest["apiVersion"], manifest["kind"]
    package = CUSTOM[group.split("/")[0]]
    return (
        f'import {{ I{kind} as T{number} }} from "{package}/{group}/{kind}";\n'
        f"const m{number}: T{number} = {json.dumps(manifest)};"
    )


def test_custom_resources_are_as_their_definitions_say(tmp_path: Path) -> None:
    customs = [each for case in CASES for each in rendered(case) if is_custom(each)]
    kinds = {each["kind"] for each in customs}
    assert kinds >= {"ServiceMonitor", "PodMonitor", "Certificate", "TLSRoute"}
    known = next(each for each in customs if each["kind"] == "Certificate")
    spec = known["spec"]
    more = {**known, "spec": {**spec, "unheardOf": True}}
    less = {**known, "spec": {key: spec[key] for key in spec if key != "issuerRef"}}
    told = custom_faults([*customs, more, less], tmp_path)
    # One of values, two of fields: the definitions do refuse, and nothing else.
    assert len([line for line in told if not line.startswith(" ")]) == 3, told
    assert all("unheardOf" in line or "issuerRef" in line for line in told[:3]), told


@each_case
def test_pods_meet_the_restricted_pod_security_level(values: Path) -> None:
    for name, spec in pod_specs(rendered(values)):
        pod = spec["securityContext"]
        assert pod["runAsNonRoot"] is True and pod["runAsUser"] > 0, name
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys(), name
        kinds = {kind for volume in spec["volumes"] for kind in volume if kind != "name"}
        assert kinds <= RESTRICTED_VOLUMES | ({"hostPath"} if "host-path" in values.name else set())
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert {"requests", "limits"} <= container["resources"].keys(), name


@each_case
def test_private_keys_are_never_opened_to_the_group(values: Path) -> None:
    """A mount whose root Kubernetes finds as it left it is not walked, and no program owns it."""
    for name, spec in pod_specs(rendered(values)):
        assert spec["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch", name
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            (data,) = [a for a in container["args"] if a.startswith("--data=")] or ["--data=/etc/"]
            mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
            assert data.startswith("--data=/etc/") or data.removeprefix("--data=") not in mounts


@each_case
def test_every_label_and_annotation_is_a_string(values: Path) -> None:
    def texts(node: object) -> None:
        if isinstance(node, dict):
            for key in ("labels", "matchLabels", "annotations"):
                for name, value in (node.get(key) or {}).items():
                    assert isinstance(value, str), (name, value)
            for value in node.values():
                texts(value)
        elif isinstance(node, list):
            for value in node:
                texts(value)

    texts(rendered(values))


def test_manifests_are_the_golden_ones() -> None:
    golden = {path.name: path.read_text() for path in GOLDEN.iterdir()}
    assert golden == golden_texts(), "python -m tests.deploy.rendering . writes them anew"


@pytest.mark.parametrize("name", CHARTS)
def test_readme_and_schema_are_those_of_the_values(name: str) -> None:
    chart = ROOT / "helm" / name
    for file, text in written(chart).items():
        assert (chart / file).read_text("utf-8") == text, "python -m tests.deploy.chart_docs ."


@pytest.mark.parametrize("name", CHARTS)
def test_every_value_says_what_it_means(name: str) -> None:
    readme = (ROOT / "helm" / name / "README.md").read_text()
    rows = [line for line in readme.splitlines() if line.startswith("| `")]
    assert len(rows) > 50
    assert not [row for row in rows if row.endswith("|  |")]


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("federation.hostname=x", "hostname"),
        ("metrics.serviceMonitor.enable=true", "enable"),
        ("service.type=Ingress", "service"),
        ("federation.approval=perhaps", "approval"),
        ("image.digest=latest", "digest"),
    ],
)
def test_a_value_that_cannot_be_is_refused(setting: str, told: str) -> None:
    chart = ROOT / "helm/coordinator"
    done = helm("template", "x", str(chart), "--set", "federation.hostnames={a}", "--set", setting)
    assert done.returncode != 0 and told in done.stderr


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("coordinator", "federation.hostnames is required"),
        ("coordinator --set federation.hostnames={a} --set gateway.enabled=true", "parentRefs"),
        ("silo-agent --set token.existingSecret=t --set dataset.existingClaim=d", "HOST:PORT"),
        ("silo-agent --set coordinator=a:1 --set dataset.existingClaim=d", "token.existingSecret"),
        ("silo-agent --set coordinator=a:1 --set token.existingSecret=t", "exactly one of"),
        (
            "silo-agent --set coordinator=a:1 --set token.existingSecret=t "
            "--set dataset.existingClaim=d --set dataset.hostPath=/d",
            "exactly one of",
        ),
        (
            "silo-agent --set coordinator=a:1 --set identity.existingSecret=t "
            "--set dataset.existingClaim=d",
            "identity.modelKey is required",
        ),
    ],
)
def test_what_is_missing_is_named(flags: str, told: str) -> None:
    name, *rest = flags.split()
    done = helm("template", "x", str(ROOT / "helm" / name), *rest)
    assert done.returncode != 0 and told in done.stderr


def test_rules_and_boards_in_the_chart_are_those_of_deploy() -> None:
    """A chart can only read files below it, so it has copies."""
    for source, suffix, copies in (
        ("deploy/prometheus/rules", "*.yml", "rules"),
        ("deploy/grafana/dashboards", "*.json", "dashboards"),
    ):
        ours = {path.name: path.read_text() for path in (ROOT / source).glob(suffix)}
        files = ROOT / "helm/coordinator/files" / copies
        assert {path.name: path.read_text() for path in files.glob(suffix)} == ours, "make charts"


def test_the_chart_takes_the_version_of_the_programs() -> None:
    from fedreid import __version__

    for name in CHARTS:
        about = yaml.safe_load((ROOT / "helm" / name / "Chart.yaml").read_text())
        assert about["appVersion"] == __version__


@pytest.mark.slow
def test_checkov_finds_nothing(tmp_path: Path) -> None:
    """Its checks that do not fit are named here, each with its reason."""
    checkov = tool("checkov/bin/checkov")
    skipped = {
        "CKV_K8S_35": "the token, good once, is for the first container alone; a Secret's file is "
        "its group's too, which the agent refuses",
        "CKV_K8S_38": "the job that makes Secrets needs the token of its service account",
        "CKV_K8S_43": "a digest is a value; the default is a tag",
        "CKV_K8S_15": "a tag of a release does not change; pullPolicy is a value",
        "CKV2_K8S_6": "jobs and tests end by themselves; the pod that stays has its policy",
        "CKV_K8S_21": "rendered without a namespace on purpose: helm gives it",
        "CKV_K8S_8": "hooks end by themselves: no liveness",
        "CKV_K8S_9": "hooks end by themselves: no readiness",
    }
    for values in CASES:
        (tmp_path / f"{values.parents[1].name}-{values.name}").write_text(
            yaml.safe_dump_all(rendered(values))
        )
    done = subprocess.run(
        [
            checkov, "--skip-download", "--framework", "kubernetes", "--compact", "--quiet",
            "--skip-check", ",".join(skipped), "--directory", str(tmp_path),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "LOG_LEVEL": "ERROR"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
