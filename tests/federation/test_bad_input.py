"""Each mistake of a user gets a sentence, a next step and an exit code, and loses nothing."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmark.federation import LocalFederation
from coordinator.config import load_authority
from coordinator.folders import Folders as CoordinatorFolders
from fedreid.errors import ExitCode
from fedreid.names import FederationName, Principal, Role
from fedreid.pki.certificates import key_to_pem, new_key, to_pem
from fedreid.pki.identity import Identity, IdentityStore
from silo_agent.config import Folders
from tests.federation.conftest import Founding, write_plan
from tests.federation.test_learning import finished

pytestmark = pytest.mark.timeout(300)
_WAIT_S = 120.0


def told(*arguments: str) -> tuple[int, str]:
    """Exit code and standard error of a command, as a user sees them."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, check=False, timeout=60
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@pytest.fixture
def local(found: Founding) -> LocalFederation:
    """A federation that waits for silos."""
    return found()


def test_a_damaged_token_is_told_from_an_unknown_one(local: LocalFederation) -> None:
    silo = next(iter(local.silos))
    path = local.token(silo)
    text = path.read_text()
    path.write_text(text[:200] + "x" + text[201:])
    code, words = told(*local_join(local, silo, path))
    assert code == ExitCode.TRUST and "damaged" in words and "Copy the whole line" in words
    path.write_text("password123")
    code, words = told(*local_join(local, silo, path))
    assert code == ExitCode.TRUST and "no join token" in words
    path.write_text(text)
    path.chmod(0o644)
    code, words = told(*local_join(local, silo, path))
    assert code == ExitCode.TRUST and "chmod 600" in words
    path.chmod(0o600)
    assert told(*local_join(local, silo, path), "--enrol-only")[0] == 0


def local_join(local: LocalFederation, silo: str, token: Path, data: str = "") -> tuple[str, ...]:
    """The join command with a token of the test's choice."""
    return (
        "silo_agent", "join", "--coordinator", local.endpoint, "--token-file", str(token),
        "--dataset", str(local.silos[silo]), "--data", data or str(local.agent_data(silo)),
    )  # fmt: skip


def test_a_token_is_good_for_one_key(local: LocalFederation, tmp_path: Path) -> None:
    silo = next(iter(local.silos))
    token = local.token(silo)
    assert told(*local_join(local, silo, token), "--enrol-only")[0] == 0
    code, words = told(*local_join(local, silo, token, str(tmp_path / "thief")), "--enrol-only")
    assert code == ExitCode.TRUST and "already used by another key" in words
    # The silo itself keeps its identity, and needs no token any more.
    assert told(*local_join(local, silo, tmp_path / "none"), "--enrol-only")[0] == 0


def test_an_expired_token_is_refused(local: LocalFederation) -> None:
    silo = next(iter(local.silos))
    token = local.root / "short.token"
    local.command(
        "coordinator", "token", "create", "--data", str(local.data), "--silo", silo,
        "--ttl", "0.1s", "--out", str(token),
    )  # fmt: skip
    code, words = told(*local_join(local, silo, token), "--enrol-only")
    assert code == ExitCode.TRUST and "expired" in words and "new one" in words


def test_another_federations_token_does_not_verify_this_coordinator(found: Founding) -> None:
    here, there = found("here"), found("there")
    silo = next(iter(here.silos))
    code, words = told(*local_join(here, silo, there.token(silo)), "--enrol-only")
    assert code == ExitCode.CONNECTION and "not issued by this federation's authority" in words


def test_an_expired_certificate_is_told_with_the_way_out(local: LocalFederation) -> None:
    silo = next(iter(local.silos))
    local.command(*local.join_arguments(silo), "--enrol-only")
    authority = load_authority(CoordinatorFolders(local.data))
    key = new_key()
    leaf = authority.issue(
        Principal(federation=FederationName("harbour"), role=Role.SILO, name=silo),
        key.public_key(),
        now_s=time.time() - 7200,
        life_s=3600,
    )
    IdentityStore(Folders(local.agent_data(silo)).identity).save(
        Identity(
            key_pem=key_to_pem(key),
            certificate_pem=to_pem(leaf),
            authorities_pem=authority.certificate_pem,
        )
    )
    code, words = told("silo_agent", "run", "--data", str(local.agent_data(silo)))
    assert code == ExitCode.TRUST and "expired" in words and "new join token" in words
    assert "silo-agent join --rejoin" in words


def test_an_unknown_plan_key_names_the_nearest(local: LocalFederation, tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "plan.toml", aggregation={"wieghting": "cosine"})
    code, words = told("coordinator", "run", "start", str(plan), "--data", str(local.data))
    assert code == ExitCode.USAGE and "'wieghting'" in words and "'weighting'" in words
    plan = write_plan(tmp_path / "plan.toml", distillation={"images": "/nowhere"})
    code, words = told("coordinator", "run", "start", str(plan), "--data", str(local.data))
    assert code == ExitCode.RUN and "/nowhere" in words


def test_an_unreachable_coordinator_is_named(local: LocalFederation) -> None:
    silo = next(iter(local.silos))
    command = local.join_arguments(silo)
    local.coordinator.stop()
    code, words = told(*command, "--enrol-only")
    assert code == ExitCode.CONNECTION and local.endpoint in words
    code, words = told("coordinator", "run", "status", "--data", str(local.data))
    assert code == ExitCode.CONNECTION and "runs" in words


def test_a_second_coordinator_on_a_folder_or_port_is_refused(local: LocalFederation) -> None:
    code, words = told("coordinator", "serve", "--data", str(local.data))
    assert code == ExitCode.USAGE and "already" in words
    code, words = told("coordinator", "init", "--data", str(local.data))
    assert code == ExitCode.USAGE and "holds a coordinator already" in words
    other = local.root / "other"
    told("coordinator", "init", "--data", str(other))
    code, words = told(
        "coordinator", "serve", "--data", str(other), "--metrics", "127.0.0.1:0",
        "--listen", local.endpoint.replace("localhost", "127.0.0.1"),
    )  # fmt: skip
    assert code == ExitCode.USAGE and "Can't listen" in words


def test_a_dataset_gone_between_rounds_costs_nothing(
    found: Founding, tmp_path: Path, silo_folders: dict[str, Path]
) -> None:
    local = found()
    silo, other = local.silos
    moved = tmp_path / "images"
    shutil.copytree(local.silos[silo], moved)
    local.silos[silo] = moved
    local.start_run(write_plan(tmp_path / "plan.toml"))
    local.join_without_training(other)
    agent = local.join(silo)
    local.wait_until(lambda run: "round 1: training" in agent.log, timeout_s=_WAIT_S)
    moved.rename(tmp_path / "gone")
    assert agent.wait(_WAIT_S) == ExitCode.DATASET
    assert str(moved) in agent.log and "Traceback" not in agent.log
    (tmp_path / "gone").rename(moved)
    agent.start()
    local.wait_until(finished, timeout_s=_WAIT_S)


@contextlib.contextmanager
def small_disk(path: Path, size_mb: int) -> Iterator[None]:
    """A file system of ``size_mb`` megabytes on ``path``."""
    path.mkdir(parents=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(path)], check=True
    )
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def grow(path: Path, size_mb: int) -> None:
    """Make room."""
    subprocess.run(["mount", "-o", f"remount,size={size_mb}m", str(path)], check=True)


needs_root = pytest.mark.skipif(
    os.geteuid() != 0 and not os.environ.get("CI"), reason="mounting a small disk needs root"
)
_SMALL = {"backbone": {"name": "mobilenet_v3_small", "height_px": 64, "width_px": 32}}


@needs_root
def test_a_full_disk_at_a_silo_heals_without_a_restart(found: Founding, tmp_path: Path) -> None:
    local = found()
    silo, other = local.silos
    local.start_run(write_plan(tmp_path / "plan.toml", **_SMALL))
    local.join_without_training(other)
    with small_disk(local.agent_data(silo), 12):
        agent = local.join_without_training(silo)
        local.wait_until(lambda run: "disk is full" in agent.log, timeout_s=_WAIT_S)
        assert "nothing is lost" in agent.log
        grow(local.agent_data(silo), 100)
        local.wait_until(finished, timeout_s=_WAIT_S)
        local.stop()


@needs_root
def test_a_full_disk_at_the_coordinator_heals_without_a_restart(
    found: Founding, tmp_path: Path
) -> None:
    local = found(silos=1)
    with small_disk(local.data / "spool", 2):
        quorum = {"min_silos": 1, "deadline_s": 120.0, "phase_deadline_s": 60.0}
        local.start_run(write_plan(tmp_path / "plan.toml", quorum=quorum, **_SMALL))
        (silo,) = local.silos
        agent = local.join_without_training(silo)
        local.wait_until(lambda run: "the disk is full" in agent.log, timeout_s=_WAIT_S)
        grow(local.data / "spool", 100)
        local.wait_until(finished, timeout_s=_WAIT_S)
        local.stop()
