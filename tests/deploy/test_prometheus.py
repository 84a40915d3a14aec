"""Do Prometheus and Alertmanager take our files, and does each alert fire when it should?"""

import re
import subprocess
from pathlib import Path

import pytest

from tests.tools import tool

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy/prometheus"
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))
CASES = PROMETHEUS / "tests/fedreid-rules-test.yml"
ALERTS = re.split(r"\n      - alert: ", (PROMETHEUS / "rules/fedreid-alerts.yml").read_text())[1:]
NAMES = [alert.split("\n")[0] for alert in ALERTS]


def passes(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_configuration_and_rules() -> None:
    passes(tool("promtool"), "check", "config", "--lint=all", str(PROMETHEUS / "prometheus.yml"))
    passes(tool("promtool"), "check", "rules", "--lint-fatal", *map(str, RULES))


def test_alertmanager_takes_its_example() -> None:
    passes(tool("amtool"), "check-config", str(ROOT / "deploy/alertmanager/alertmanager.yml"))


def test_each_alert_fires_and_stays_quiet_when_it_should() -> None:
    passes(tool("promtool"), "test", "rules", str(CASES))


@pytest.mark.parametrize("name", NAMES)
def test_each_alert_has_both_cases(name: str) -> None:
    text = CASES.read_text("utf-8")
    assert re.search(rf"alertname: {name}\n\s+exp_alerts: \[\]\n", text)
    assert re.search(rf"alertname: {name}\n\s+exp_alerts:\n\s+- exp_labels", text)


@pytest.mark.parametrize("alert", ALERTS, ids=NAMES)
def test_each_alert_says_what_whoever_is_woken_needs(alert: str) -> None:
    name = alert.split("\n")[0]
    assert re.search(r"\n        for: \d+[mhd]\n", alert)
    assert re.search(r"\n          severity: (warning|critical)\n", alert)
    assert re.search(r'\n          summary: "\S', alert)
    assert re.search(r'\n          description: ".*\$value', alert)
    found = re.search(r"\n          runbook_url: (\S+)", alert)
    assert found is not None and found[1] == f"deploy/runbooks/{name}.md"
    assert (ROOT / found[1]).is_file()


def test_there_are_thirteen_alerts() -> None:
    assert len(NAMES) == len(set(NAMES)) == 13
