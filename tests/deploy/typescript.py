"""What does TypeScript say against values of types that packages of .tools/npm declare?

A literal with a field that its type does not have is an error to it, so are wrong values.
"""

import subprocess
from pathlib import Path

from tests.deploy.rendering import tool


def type_faults(source: str, folder: Path) -> list[str]:
    """A line for each fault of a program that is written into ``folder``."""
    modules = Path(tool("npm/node_modules"))
    link = folder / "node_modules"
    if not link.exists():
        link.symlink_to(modules)
    program = folder / "values.ts"
    program.write_text(source, "utf-8")
    done = subprocess.run(
        [
            str(modules / ".bin/tsc"), "--noEmit", "--strict", "--skipLibCheck",
            "--module", "nodenext", str(program),
        ],
        capture_output=True,
        text=True,
    )  # fmt: skip
    return [line for line in done.stdout.splitlines() if not line.startswith(" ")]
