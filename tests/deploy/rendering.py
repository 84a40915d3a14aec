"""What does a chart render to, by the real helm that ``.ci/tools`` installs?

``python -m tests.deploy.rendering .`` writes the golden manifests.
"""

import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / ".tools"
GOLDEN = Path(__file__).parent / "golden"
CASES = sorted((ROOT / "helm").glob("*/ci/*-values.yaml"))
"""One file of values for each feature of a chart."""
GOLDEN_CASES = (
    "coordinator/ci/minimal", "coordinator/ci/cert-manager", "coordinator/ci/scheduling",
    "silo-agent/ci/minimal", "silo-agent/ci/gpu", "silo-agent/ci/own-pki",
)  # fmt: skip

Manifest = dict[str, Any]


def tool(name: str) -> str:
    """Path of a tool; in CI a missing one is a failure, elsewhere the test is skipped."""
    path = TOOLS / name
    if not path.exists():
        told = f"{name} is missing: run .ci/tools"
        if os.environ.get("CI"):
            pytest.fail(told)
        pytest.skip(told)
    return str(path)


def chart_of(values: Path) -> Path:
    """The chart that a file of values is for."""
    return values.parents[1]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run helm."""
    return subprocess.run([tool("helm"), *arguments], capture_output=True, text=True)


@functools.cache
def rendered_text(chart: Path, *flags: str, release: str = "x") -> str:
    """What ``helm template`` prints."""
    done = helm("template", release, str(chart), *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rendered(values: Path) -> list[Manifest]:
    """The manifests of a file of values."""
    text = rendered_text(chart_of(values), "--values", str(values))
    return [each for each in yaml.safe_load_all(text) if each]


def pod_specs(manifests: list[Manifest]) -> list[tuple[str, Manifest]]:
    """Every pod that the manifests lead to, by the name of what makes it."""
    found = []
    for each in manifests:
        name = f"{each['kind']}/{each['metadata']['name']}"
        if each["kind"] == "Pod":
            found.append((name, each["spec"]))
        elif each["kind"] in ("StatefulSet", "Job"):
            found.append((name, each["spec"]["template"]["spec"]))
    return found


def golden_texts() -> dict[str, str]:
    """The golden manifests by file name, as they are rendered now."""
    return {
        f"{case.replace('/ci/', '-')}.yaml": rendered_text(
            ROOT / "helm" / case.split("/")[0],
            "--values", str(ROOT / "helm" / f"{case}-values.yaml"),
        )
        for case in GOLDEN_CASES
    }  # fmt: skip


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for file, text in golden_texts().items():
        (Path(sys.argv[1]) / "tests/deploy/golden" / file).write_text(text)
