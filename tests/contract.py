"""Does the contract break what a released program relies on? ``python -m tests.contract``.

``proto/`` is compared with that of the last release, a tag ``v*`` that this commit descends from,
and in any case with ``tests/golden/contract.binpb``, which is there without a history too. Before a
release ``python -m tests.contract keep`` writes the contract that it brings to that file.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
KEPT = Path("tests/golden/contract.binpb")


def check(root: Path = ROOT) -> bool:
    """Whether whoever speaks the last release's contract can go on; buf says what breaks."""
    whole = _holds_against(root, root / KEPT)
    tag = _git(root, "describe", "--tags", "--abbrev=0", "--match", "v[0-9]*").decode().strip()
    if not tag:
        return whole
    with tempfile.TemporaryDirectory() as folder:
        archive = _git(root, "archive", tag, "proto")
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        return _holds_against(root, Path(folder) / "proto") and whole


def keep(root: Path = ROOT) -> None:
    """Write the contract as it stands to the file that is compared with."""
    _buf(root, "build", "proto", "--exclude-source-info", "-o", str(root / KEPT)).check_returncode()


def _holds_against(root: Path, released: Path) -> bool:
    return _buf(root, "breaking", "proto", "--against", str(released)).returncode == 0


def _buf(root: Path, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    buf = Path(sys.executable).parent / "buf"
    return subprocess.run([buf, *arguments], cwd=root, check=False)


def _git(root: Path, *arguments: str) -> bytes:
    """What git says; nothing without a history, or without git."""
    try:
        return subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, check=False
        ).stdout
    except FileNotFoundError:
        return b""


if __name__ == "__main__":
    if sys.argv[1:] == ["keep"]:
        keep()
    else:
        sys.exit(0 if check() else 1)
