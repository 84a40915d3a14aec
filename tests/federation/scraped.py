"""What does a real Prometheus say of a federation? It scrapes it and answers our queries."""

import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from tests.deploy.test_prometheus import PROMETHEUS
from tests.tools import tool

_START_S = 60.0
_POLL_S = 0.2
_CONFIGURATION = """
global:
  scrape_interval: 1s
  evaluation_interval: 1s
rule_files: [{rules}/*.yml]
scrape_configs:
  - job_name: fedreid-coordinator
    file_sd_configs: [{{files: [{root}/coordinator.json], refresh_interval: 1s}}]
  - job_name: fedreid-agent
    file_sd_configs: [{{files: [{root}/agents.json], refresh_interval: 1s}}]
"""


class Prometheus:
    """A Prometheus of its own, with our rules."""

    def __init__(self, root: Path, port: int) -> None:
        self._root = root
        self._url = f"http://127.0.0.1:{port}"
        root.mkdir()
        (root / "prometheus.yml").write_text(
            _CONFIGURATION.format(rules=PROMETHEUS / "rules", root=root)
        )
        self.scrape("coordinator")
        self.scrape("agents")
        with (root / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    tool("prometheus"), f"--config.file={root}/prometheus.yml",
                    f"--storage.tsdb.path={root}/data", f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log, stderr=log,
            )  # fmt: skip
        self._wait(self._ready)

    def scrape(self, job: str, *ports: int) -> None:
        """Scrape these ports of this machine from now on."""
        path = self._root / f"{job}.json"
        new = path.with_suffix(".new")
        new.write_text(json.dumps([{"targets": [f"127.0.0.1:{port}" for port in ports]}]))
        new.replace(path)

    def wait_for(self, expr: str) -> None:
        """Wait until a query has an answer."""
        self._wait(lambda: bool(self.at_once(expr)))

    def at_once(self, expr: str) -> list[Any]:
        """A query's series as of now."""
        return list(self._get("query", query=expr)["result"])

    def over(self, expr: str, *, since_s: float, step_s: float = 1.0) -> list[Any]:
        """A query's series since a moment, those with a number in them."""
        answer = self._get("query_range", query=expr, start=since_s, end=time.time(), step=step_s)
        return [
            series
            for series in answer["result"]
            if any(value not in ("NaN", "+Inf", "-Inf") for _, value in series["values"])
        ]

    def rules(self) -> list[Any]:
        """All rules, with their health and what they have found."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(30)

    def _get(self, what: str, **parameters: Any) -> Any:
        url = f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._url}/-/ready", timeout=5):
                return True
        except OSError:
            return False

    def _wait(self, reached: Any) -> None:
        until_s = time.monotonic() + _START_S
        while not reached():
            assert self._process.poll() is None, (self._root / "log").read_text()[-2000:]
            assert time.monotonic() < until_s, (self._root / "log").read_text()[-2000:]
            time.sleep(_POLL_S)
