"""How fast could this machine move a round's bytes at all? A bare program over TLS 1.3 says.

``limit.c`` is compiled where a C compiler and OpenSSL's headers are found; else ``limit_sockets``
does the same with Python's own sockets. Both do one round for each line that they are sent.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from benchmark.footprints import cpu_seconds
from fedreid.errors import RunError

LimitKind = Literal["c", "python"]

_SOURCE = Path(__file__).with_name("limit.c")
_ROUND_S = 600.0
_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")


class Limit:
    """The bare program, started once and asked for one round at a time."""

    def __init__(
        self,
        folder: Path,
        *,
        certificate: Path,
        key: Path,
        silos: int,
        bytes_down: int,
        bytes_up: int,
    ) -> None:
        """Build it into ``folder``, where that can be done, and start it.

        ``bytes_down`` and ``bytes_up`` are of one silo.
        """
        built = _built(folder)
        self.kind: LimitKind = "python" if built is None else "c"
        command = (sys.executable, "-m", "benchmark.limit_sockets") if built is None else (built,)
        numbers = map(str, (silos, bytes_down, bytes_up))
        self._process = subprocess.Popen(
            [*map(str, command), str(certificate), str(key), *numbers],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def round(self) -> tuple[float, float]:
        """Wall and CPU seconds of one round.

        Raises:
            RunError: the program has failed.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        before_s = cpu_seconds(self._process.pid)
        try:
            self._process.stdin.write("round\n")
            took = self._process.stdout.readline()
        except BrokenPipeError:
            took = ""
        if not took:
            _, words = self._process.communicate(timeout=_ROUND_S)
            raise RunError("The bare program has failed", why=words.strip()[-500:])
        used_s = cpu_seconds(self._process.pid) - before_s
        return float(took), max(used_s, _TICK_S)  # less than a tick is told as nothing


def _built(folder: Path) -> Path | None:
    """The compiled program; None where there is no compiler or no OpenSSL to build it with."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    program = folder / "limit"
    command: Sequence[str] = (
        compiler, "-O3", "-o", str(program), str(_SOURCE), "-lssl", "-lcrypto", "-lpthread",
    )  # fmt: skip
    done = subprocess.run(command, capture_output=True, check=False)
    return program if done.returncode == 0 else None
