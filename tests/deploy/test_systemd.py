"""Are the units accepted, confined, and heard by the programs that they start?"""

import os
import queue
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.federation.conftest import Founding

UNITS = Path(__file__).parents[2] / "deploy/systemd"
PROGRAMS = ("coordinator", "silo-agent")
_LARGEST_EXPOSURE = "30"
"""Of systemd-analyze, in tenths: 3.0."""


@pytest.fixture(scope="session")
def systemd_analyze() -> str:
    """The tool that checks units."""
    found = shutil.which("systemd-analyze")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("systemd-analyze is missing: apt-get install systemd")
        pytest.skip("systemd-analyze is not installed")
    return found


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The units as installed, with programs that are there."""
    for program in PROGRAMS:
        binary = tmp_path / "bin" / program
        binary.parent.mkdir(exist_ok=True)
        binary.write_text("#!/bin/sh\n")
        binary.chmod(0o755)
        text = (UNITS / f"{program}.service").read_text()
        (tmp_path / f"{program}.service").write_text(
            text.replace("/opt/fedreid/bin", str(binary.parent))
        )
    shutil.copytree(UNITS / "silo-agent.service.d", tmp_path / "silo-agent.service.d")
    return tmp_path


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_key_of_a_unit_is_known(systemd_analyze: str, installed: Path, program: str) -> None:
    done = subprocess.run(
        [systemd_analyze, "verify", "--man=no", str(installed / f"{program}.service")],
        capture_output=True,
        text=True,
    )
    # Unknown keys are only warned of; units of the machine itself are not ours to judge.
    ours = [line for line in done.stderr.splitlines() if str(installed) in line]
    assert done.returncode == 0 and not ours, done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_unit_is_confined(systemd_analyze: str, installed: Path, program: str) -> None:
    done = subprocess.run(
        [
            systemd_analyze, "security", "--offline=true", f"--threshold={_LARGEST_EXPOSURE}",
            str(installed / f"{program}.service"),
        ],
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    told = re.search(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert told is not None
    written = " ".join((UNITS.parents[1] / "docs/install.md").read_text().split())
    assert f"{told[1]} for the {program.removeprefix('silo-')}" in written, told[1]


@contextmanager
def notified(path: Path) -> Iterator[queue.Queue[str]]:
    """What arrives at the socket that systemd would hold; it is read at once, as systemd does."""
    heard: queue.Queue[str] = queue.Queue()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(path))

        def receive() -> None:
            while message := receiver.recv(4096):
                heard.put(message.decode())

        reading = threading.Thread(target=receive, daemon=True)
        reading.start()
        yield heard
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", str(path))
        reading.join()


def _until(heard: queue.Queue[str], wanted: str) -> list[str]:
    messages = [""]
    while messages[-1] != wanted:
        messages.append(heard.get(timeout=60.0))
    return messages


def test_both_programs_tell_systemd_that_they_are_ready_alive_and_stopping(
    found: Founding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with notified(tmp_path / "c") as coordinator, notified(tmp_path / "a") as agent:
        monkeypatch.setenv("WATCHDOG_USEC", "200000")
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "c"))
        local = found(silos=1)
        for _ in range(2):
            _until(coordinator, "WATCHDOG=1")
        (silo,) = local.silos
        local.environments[silo]["NOTIFY_SOCKET"] = str(tmp_path / "a")
        local.join_without_training(silo)
        messages = _until(agent, "WATCHDOG=1")
        assert "READY=1" in messages
        local.agents[silo].stop()
        _until(agent, "STOPPING=1")
        local.coordinator.stop()
        _until(coordinator, "STOPPING=1")


@pytest.mark.parametrize(("module", "typed"), [("coordinator", "tok"), ("silo_agent", "jo")])
def test_the_shell_completes_commands(module: str, typed: str) -> None:
    program = module.replace("_", "-")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv[0] = {program!r}; "
         f"from {module}.cli import main; main()"],
        env={
            **os.environ,
            f"_{module.upper()}_COMPLETE": "complete_bash",
            "COMP_WORDS": f"{program} {typed}",
            "COMP_CWORD": "1",
        },
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert {"tok": "token", "jo": "join"}[typed] in done.stdout.split()


@pytest.mark.parametrize("module", ["coordinator", "silo_agent"])
def test_help_lists_the_exit_codes(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True
    )
    assert "3 trust" in " ".join(done.stdout.split())
