"""Does every panel and every alert have something to say about a federation that lives?

One coordinator and its agents, scraped by a real Prometheus with our rules: rounds are published, a
silo's update is refused, a silo joins, one dies and one is revoked. Then every query is asked.
"""

import asyncio
import json
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmark.federation import LocalFederation, Program
from deploy.grafana.generate import FOLDER
from fedreid.errors import UpdateRefused
from tests.federation.conftest import write_plan
from tests.federation.drawn_boards import draw
from tests.federation.rogue import Rogue
from tests.federation.scraped import Prometheus
from tests.federation.test_rogue_silo import deliver
from tests.tools import tool

pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("observed")]
_WAIT_S = 90.0
_DEADLINE_S = 4.0
BOARDS = [json.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob("*.json"))]


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What is left once everything has happened."""

    local: LocalFederation
    prometheus: Prometheus
    since_s: float
    agent: str
    """A silo whose agent still runs, and writes a text file."""
    textfile: Path
    revoked: str


@pytest.fixture(scope="module")
def observed(
    tmp_path_factory: pytest.TempPathFactory, silo_folders: dict[str, Path]
) -> Iterator[Observed]:
    """A federation to which everything has happened that boards and alerts are about."""
    tool("prometheus"), tool("promtool")
    root = tmp_path_factory.mktemp("observed")
    names = list(silo_folders)
    port = ("--metrics", "127.0.0.1:0")
    textfile = root / "fedreid.prom"
    flags: dict[str, tuple[str, ...]] = dict.fromkeys(names, port)
    flags[names[0]] = (*port, "--metrics-textfile", str(textfile))
    local = LocalFederation(root / "fed", federation="harbour", silos=silo_folders, flags=flags)
    prometheus = None
    try:
        local.initialise()
        prometheus = Prometheus(root / "prometheus", free_port())
        began_s = time.time()
        live(local, prometheus, names)
        yield Observed(
            local=local, prometheus=prometheus, since_s=began_s, agent=names[0],
            textfile=textfile, revoked=names[2],
        )  # fmt: skip
    finally:
        if prometheus is not None:
            prometheus.close()
        local.stop()


def live(local: LocalFederation, prometheus: Prometheus, names: list[str]) -> None:
    """Let everything happen, each once."""
    staying, dying, bad, joining = names
    prometheus.scrape("coordinator", port_of(local.coordinator))
    prometheus.wait_for('up{job="fedreid-coordinator"} == 1')
    rogue = Rogue(local, bad)
    asyncio.run(rogue.enrol())
    agents = [start(local, silo) for silo in (staying, dying)]
    ports = [port_of(agent) for agent in agents]
    prometheus.scrape("agents", *ports)
    quorum = {"min_silos": 1, "deadline_s": _DEADLINE_S, "phase_deadline_s": 60.0}
    small = {"name": "mobilenet_v3_small", "height_px": 64, "width_px": 32}
    plan = write_plan(local.root / "plan.toml", rounds=10_000, backbone=small, quorum=quorum)
    local.start_run(plan)
    asyncio.run(misbehave(rogue))
    agents.append(start(local, joining))
    prometheus.scrape("agents", *ports, port_of(agents[-1]))
    taking_part(local, staying, dying, joining)
    agents[1].kill()
    local.command("coordinator", "silo", "revoke", bad, "--data", str(local.data))
    round_now = taking_part(local, staying, joining)
    local.wait_until(lambda run: run.round.number > round_now + 1, timeout_s=_WAIT_S)
    # what every query below asks about has been scraped by now, and rules have followed it
    prometheus.wait_for('fedreid_silos{state="revoked"} == 1')
    prometheus.wait_for(f'fedreid_silo_map_ratio{{silo="{joining}"}}')
    prometheus.wait_for('up{job="fedreid-agent"} == 0')
    prometheus.wait_for("count(fedreid_agent_images_per_second > 0) >= 2")


async def misbehave(rogue: Rogue) -> None:
    """Send an update with a value that is no number."""
    async with rogue.connected():
        task = await rogue.next_round(0)
        tensors = await rogue.base(task)
        name = sorted(tensors)[0]
        wrong = np.full_like(tensors[name], np.nan)
        with pytest.raises(UpdateRefused):
            await deliver(rogue, task, {**tensors, name: wrong})


def taking_part(local: LocalFederation, *silos: str) -> int:
    """Wait for a published round of at least these silos; its number."""

    def reached(run: Any) -> bool:
        return set(silos) <= {part.silo for part in run.round.participants}

    return int(local.wait_until(reached, timeout_s=_WAIT_S).round.number)


def start(local: LocalFederation, silo: str) -> Program:
    """Enrol and start an agent that tells figures."""
    local.command(*local.join_arguments(silo), "--enrol-only")
    agent = Program(
        ("tests.federation.measuring_agent", str(local.agent_data(silo))),
        local.root / f"{silo}.log",
    )
    local.agents[silo] = agent
    agent.start()
    return agent


def port_of(program: Program) -> int:
    """Where a program serves its metrics."""
    until_s = time.monotonic() + _WAIT_S
    while (found := re.search(r"health and metrics on port (\d+)", program.log)) is None:
        assert time.monotonic() < until_s and program.running(), program.log
        time.sleep(0.1)
    return int(found[1])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def exposition(program: Program) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port_of(program)}/metrics") as answer:
        return str(answer.read().decode())


def asked(expr: str) -> str:
    """A panel's query as Grafana sends it."""
    for variable, chosen in (
        ("$job", "fedreid-coordinator"),
        ("$agent", "fedreid-agent"),
        ("$silo", ".*"),
        ("$__rate_interval", "15s"),
    ):
        expr = expr.replace(variable, chosen)
    assert "$" not in expr, expr
    return expr


def test_the_exposition_of_both_programs_passes_promtool(observed: Observed) -> None:
    agent = observed.local.agents[observed.agent]
    texts = [exposition(observed.local.coordinator), exposition(agent)]
    for text in (*texts, observed.textfile.read_text()):
        done = subprocess.run(
            [tool("promtool"), "check", "metrics"],
            input=text, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
    assert "fedreid_agent_outbox_depth" in observed.textfile.read_text()


def test_labels_stay_bounded_and_name_no_silo_that_is_gone(observed: Observed) -> None:
    for program in (observed.local.coordinator, observed.local.agents[observed.agent]):
        families = list(text_string_to_metric_families(exposition(program)))
        samples = [sample for family in families for sample in family.samples]
        mine = [s for s in samples if s.name.startswith(("fedreid_", "grpc_"))]
        silos = {s.labels["silo"] for s in mine if "silo" in s.labels}
        assert silos <= observed.local.silos.keys() - {observed.revoked}
        values = {(name, text) for s in mine for name, text in s.labels.items()}
        secrets = re.compile(r"[0-9a-f]{16}|\.jpg|\.png|/|\d+\.\d+\.\d+\.\d+")
        assert [text for name, text in values if name != "le" and secrets.search(text)] == []
        assert not {"round", "run", "digest"} & {name for name, _ in values}


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board["uid"])
def test_every_panel_shows_something_or_says_why_not(
    observed: Observed, board: dict[str, Any]
) -> None:
    empty = []
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            found = observed.prometheus.over(asked(target["expr"]), since_s=observed.since_s)
            if not found:
                empty.append((panel["title"], panel["fieldConfig"]["defaults"].get("noValue", "")))
    assert [title for title, reason in empty if not reason] == []
    # what this federation does not do: the rest of the panels have data
    assert {title for title, _ in empty} <= {"Distillation", "Privacy loss"}


def test_every_choice_of_a_board_has_values(observed: Observed) -> None:
    for board in BOARDS:
        for variable in board["templating"]["list"]:
            if variable["type"] != "query":
                continue
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
            assert found is not None
            series = observed.prometheus.at_once(asked(found[1]))
            assert {one["metric"].get(found[2]) for one in series} - {None}


def test_published_models_and_silos_that_come_and_go_are_marked(observed: Observed) -> None:
    for annotation in BOARDS[0]["annotations"]["list"]:
        assert observed.prometheus.over(asked(annotation["expr"]), since_s=observed.since_s), (
            annotation["name"]
        )


def test_every_rule_is_healthy_and_every_recording_has_series(observed: Observed) -> None:
    rules = observed.prometheus.rules()
    assert len(rules) == 13 + 7
    for rule in rules:
        assert rule["health"] == "ok", rule
        if rule["type"] == "recording":
            assert observed.prometheus.at_once(rule["name"]), rule["name"]


def test_what_every_alert_looks_at_is_there(observed: Observed) -> None:
    # an alert that is quiet has an empty answer; what it compares must not be empty
    alerts = [rule for rule in observed.prometheus.rules() if rule["type"] == "alerting"]
    for alert in alerts:
        observed.prometheus.at_once(alert["query"])
        looked_at = re.findall(r"((?:fedreid[\w:]*|up)\b(?:\{[^}]*\})?)", alert["query"])
        assert looked_at, alert["name"]
        for selector in looked_at:
            assert observed.prometheus.at_once(selector), (alert["name"], selector)


def test_the_refused_update_and_nothing_else_is_alerted(observed: Observed) -> None:
    alerts = [rule for rule in observed.prometheus.rules() if rule["type"] == "alerting"]
    raised = {alert["name"]: alert["alerts"] for alert in alerts if alert["alerts"]}
    raised.pop("FedreidDiskFilling", None)  # of this machine's own disk
    assert raised.keys() == {"FedreidUpdatesRejected"}, raised


@pytest.mark.slow
def test_every_board_can_be_seen(observed: Observed) -> None:
    out = Path("runs/boards")
    out.mkdir(parents=True, exist_ok=True)
    here = observed.local.wait_until(lambda run: True, timeout_s=_WAIT_S).round.number
    observed.local.wait_until(lambda run: run.round.number > here + 6, timeout_s=_WAIT_S)
    for board in BOARDS:
        picture = out / f"{board['uid']}.png"
        picture.unlink(missing_ok=True)
        draw(
            board,
            lambda expr: observed.prometheus.over(asked(expr), since_s=observed.since_s),
            picture.resolve(),
        )
        assert picture.stat().st_size > 20_000
