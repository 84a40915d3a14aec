"""Ctrl-C during the demo ends every process and says nothing alarming."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.timeout(300)
_WAIT_S = 200.0


def test_ctrl_c_in_the_demo_leaves_no_process_behind(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    log = (tmp_path / "log").open("w")
    demo = subprocess.Popen(
        [sys.executable, "-m", "benchmark", "demo", "--out", str(out), "--small"],
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, "COLUMNS": "100"},
    )
    try:
        started = _wait_for_agents(demo, out)
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 130
    finally:
        demo.kill()
    gone, alive = psutil.wait_procs(started, timeout=10)
    assert len(gone) >= 5 and not alive
    assert "Traceback" not in (tmp_path / "log").read_text()


def _wait_for_agents(demo: "subprocess.Popen[bytes]", out: Path) -> list[psutil.Process]:
    """Wait until all agents train; every process that the demo has started by then."""
    until_s = time.monotonic() + _WAIT_S
    while time.monotonic() < until_s:
        assert demo.poll() is None
        logs = [path.read_text() for path in out.glob("federation/*.log")]
        if sum("training" in text for text in logs) >= 4:
            return psutil.Process(demo.pid).children(recursive=True)
        time.sleep(0.2)
    raise AssertionError("the demo's agents did not start to train")
