"""A virtual environment with programs that have the names of a peer's and do next to nothing.

No peer is a dependency of ours. What is proved with this is our side: what is started with which
words, what is read, and that everything ends.
"""

import sys
import venv
from collections.abc import Sequence
from pathlib import Path

_ROOT = Path(__file__).parents[3]


def make(
    folder: Path, *, package: str, version: str, programs: Sequence[str], run: Path, mode: str
) -> Path:
    """The environment's interpreter; each program runs ``run`` with its name and ``mode``."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "ours.pth").write_text("\n".join(path for path in sys.path if "site-" in path))
    (packages / package).mkdir()
    (packages / package / "__init__.py").touch()
    about = packages / f"{package}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    for name in programs:
        program = folder / "bin" / name
        program.write_text(f'#!/bin/sh\nexec {command(python, run)} {name} "{mode}" "$@"\n')
        program.chmod(0o755)
    return python


def command(python: str | Path, run: Path) -> str:
    """What runs a made-up program, as a shell has it."""
    return f'env PYTHONPATH="{_ROOT}" "{python}" "{run}"'
