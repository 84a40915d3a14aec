"""Is a peer looked for before anything starts, read line by line, and ended with all it started?"""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from benchmark.cli import app
from benchmark.peers import flare, flower
from benchmark.peers import peer as peers
from benchmark.peers.peer import Driver, Kind, Peer, Task, measure_peer, peers_of
from fedreid.errors import RunError, UsageError
from tests.benchmark.peers import made_up_flare, made_up_flower

_WITHIN_S = 30.0
_MAKERS = {"flower": made_up_flower, "nvflare": made_up_flare}
each_peer = pytest.mark.parametrize("name", _MAKERS)


def gone(process: psutil.Process) -> bool:
    """Whether it ended; one that nobody waited for still has its number."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until_gone(processes: list[psutil.Process]) -> None:
    until_s = time.monotonic() + _WITHIN_S
    while not all(map(gone, processes)):
        assert time.monotonic() < until_s, processes
        time.sleep(0.02)


@pytest.fixture
def task(tmp_path: Path) -> Task:
    pem = tmp_path / "made-up.pem"
    pem.write_text("-----BEGIN NOTHING-----\n")
    return Task(silos=2, rounds=3, shapes=[(2, 3)], certificate=pem, key=pem, root=pem)


def made_up(name: str, tmp_path: Path, mode: str = "") -> Peer:
    (peer,) = peers_of([f"{name}={_MAKERS[name].make(tmp_path / 'venv', mode=mode)}"])
    return peer


def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Put a driver of our own in Flower's place."""
    path = tmp_path / "driver.py"
    path.write_text(source)
    monkeypatch.setitem(peers.KINDS, "flower", Kind(driver=path, packages="flwr numpy"))


@each_peer
def test_a_peer_is_found_with_its_version(name: str, tmp_path: Path) -> None:
    found = made_up(name, tmp_path)
    assert (found.name, found.version) == (name, _MAKERS[name].VERSION)


@pytest.mark.parametrize("text", ["rose=python", "flower", "flower=", ""])
def test_what_is_no_peer_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="NAME=PYTHON, and there is a driver for flower, nvflare"):
        peers_of([text])


@pytest.mark.parametrize(
    ("python", "why"),
    [
        ("/nowhere/python", "No such file"),
        ("/bin/false", "no Python, or too old"),
        (sys.executable, "not installed: flwr"),
    ],
)
def test_an_interpreter_without_the_peer_is_refused_before_anything_starts(
    python: str, why: str
) -> None:
    done = CliRunner(env={"FEDREID_LAUNCHED": str(os.getpid())}).invoke(
        app, ["transport", "--peer", f"flower={python}"]
    )
    assert isinstance(done.exception, UsageError) and why in done.exception.why
    assert "pip install flwr numpy" in done.exception.next_step
    assert done.output == ""


@pytest.mark.parametrize(
    ("name", "version", "why"),
    [
        ("flower", "1.29.0", "flwr 1.29.0 is older than 1.41"),
        ("nvflare", "2.7.2", "nvflare 2.7.2 is older than 2.8"),
    ],
)
def test_a_peer_of_another_make_is_refused(
    name: str, version: str, why: str, tmp_path: Path
) -> None:
    python = _MAKERS[name].make(tmp_path / "venv", version=version)
    with pytest.raises(UsageError) as raised:
        peers_of([f"{name}={python}"])
    assert why in raised.value.why


def test_an_interpreter_that_never_answers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver(tmp_path, monkeypatch, "import time; time.sleep(600)")
    monkeypatch.setattr(peers, "_CHECK_S", 0.2)
    with pytest.raises(UsageError, match="does not answer"):
        peers_of([f"flower={sys.executable}"])


def test_a_peer_given_twice_is_refused(tmp_path: Path) -> None:
    python = made_up_flower.make(tmp_path / "venv")
    with pytest.raises(UsageError, match="twice"):
        peers_of([f"flower={python}", f"flower={python}"])


def test_no_peer_is_part_of_our_own_environment() -> None:
    assert flower.check() == {"missing": "not installed: flwr"}
    assert flare.check() == {"missing": "not installed: nvflare"}


@each_peer
def test_a_peers_rounds_are_read(name: str, tmp_path: Path, task: Task) -> None:
    said: list[str] = []
    measured = measure_peer(made_up(name, tmp_path), task, tmp_path / "work", tell=said.append)
    assert measured.seconds == (_MAKERS[name].SECONDS,) * task.rounds
    assert len(measured.cpu_seconds) == task.rounds and measured.cpu_seconds[0] > 0.0
    assert measured.server_peak_mb > _MAKERS[name].PEAK_MB
    assert said[-1] == f"{name}, round 3: 0.25 s"


@pytest.mark.parametrize(
    ("name", "mode", "why"),
    [
        ("flower", "superlink ends", "superlink ended with 1: no room here"),
        ("flower", "no node is wanted", "this node is not wanted"),
        ("flower", "app fails", "the mean is off"),
        ("flower", "app ends early", "ended early"),
        ("nvflare", "no kits", "this project is not liked"),
        ("nvflare", "server ends", "localhost ended with 1: no room here"),
        ("nvflare", "job fails", "the mean is off"),
        ("nvflare", "job ends early", "ended early"),
    ],
)
def test_a_peer_that_fails_says_why(
    name: str, mode: str, why: str, tmp_path: Path, task: Task
) -> None:
    with pytest.raises(RunError, match=f"{name} has failed") as raised:
        measure_peer(made_up(name, tmp_path, mode), task, tmp_path / "work", tell=print)
    assert why in raised.value.why


def test_a_driver_that_ends_is_told(
    tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver(tmp_path, monkeypatch, "import sys; sys.exit('out of luck')")
    lost = Peer(
        name="flower", python=Path(sys.executable), driver=peers.KINDS["flower"].driver, version=""
    )
    with (
        Driver(lost, task, tmp_path / "work") as running,
        pytest.raises(RunError, match="out of luck"),
    ):
        running.line()


def test_nothing_of_our_launcher_reaches_a_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    tell = "import json, os; print(json.dumps({'version': ' '.join(sorted(os.environ))}))"
    driver(tmp_path, monkeypatch, tell)
    (found,) = peers_of([f"flower={sys.executable}"])
    assert "PATH" in found.version.split()
    assert "MALLOC_ARENA_MAX" not in found.version and "PYTHONPATH" not in found.version


def test_leaving_ends_every_process_of_a_peer(
    tmp_path: Path, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those in sessions of their own, as Flower starts some."""
    child = "import subprocess, sys, time; subprocess.Popen(['sleep', '600']); time.sleep(600)"
    driver(
        tmp_path,
        monkeypatch,
        "import json, subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}], start_new_session=True)\n"
        "print(json.dumps({'seconds': 1.0}), flush=True)\n"
        "sys.stdin.read()\n",
    )
    stubborn = Peer(
        name="flower", python=Path(sys.executable), driver=peers.KINDS["flower"].driver, version=""
    )
    with Driver(stubborn, task, tmp_path / "work") as running:
        running.line()
        root = psutil.Process(running.pid)
        until_s = time.monotonic() + _WITHIN_S
        while len(below := root.children(recursive=True)) < 2:
            assert time.monotonic() < until_s
            time.sleep(0.02)
    wait_until_gone([root, *below])


@each_peer
def test_what_a_driver_started_ends_when_its_parent_is_killed(
    name: str, tmp_path: Path, task: Task
) -> None:
    found = made_up(name, tmp_path)
    parent = (
        "import sys; from pathlib import Path; from benchmark.peers.peer import *\n"
        f"task = Task(silos=2, rounds=3, shapes=[], certificate={str(task.certificate)!r},\n"
        f"    key={str(task.key)!r}, root={str(task.root)!r})\n"
        f"(peer,) = peers_of(['{name}={found.python}'])\n"
        f"with Driver(peer, task, Path({str(tmp_path / 'work')!r})) as running:\n"
        "    for _ in range(4): running.line()\n"
        "    print(running.pid, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        root = psutil.Process(int(process.stdout.readline()))
        below = root.children(recursive=True)
        assert len(below) == 1 + task.silos  # a server and its clients
        process.kill()
    wait_until_gone([root, *below])
