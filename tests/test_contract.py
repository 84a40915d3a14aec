"""Is a contract that breaks a released program found, with a history and without one?"""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests import contract

ADMIN = "proto/fedreid/v1/admin.proto"
REMOVED = "  // Digest of the newest published model.\n  string model_digest = 8;\n"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The contract and what it is compared with, without a history."""
    shutil.copytree(contract.ROOT / "proto", tmp_path / "proto")
    (tmp_path / contract.KEPT).parent.mkdir(parents=True)
    contract.keep(tmp_path)
    return tmp_path


def remove_a_field(root: Path) -> None:
    text = (root / ADMIN).read_text()
    assert REMOVED in text
    (root / ADMIN).write_text(text.replace(REMOVED, ""))


def git(root: Path, *arguments: str) -> None:
    who = ("-c", "user.name=tests", "-c", "user.email=tests@example.org")
    subprocess.run(["git", *who, *arguments], cwd=root, check=True, capture_output=True)


def test_the_contract_breaks_nobody() -> None:
    assert contract.check()


def test_without_a_history_the_kept_contract_is_compared_with(
    copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert contract.check(copy)
    remove_a_field(copy)
    assert not contract.check(copy)
    assert 'field "8"' in capfd.readouterr().out


def test_with_a_history_the_last_release_is_compared_with(copy: Path) -> None:
    git(copy, "init", "--quiet")
    for tag in ("v0.1.0", "other"):
        git(copy, "add", "--all")
        git(copy, "commit", "--allow-empty", "--message", tag)
        git(copy, "tag", tag)
    assert contract.check(copy)
    remove_a_field(copy)
    contract.keep(copy)
    git(copy, "commit", "--all", "--message", "breaks")
    assert not contract.check(copy)
