"""How does a test sit at a terminal? A command in a pseudo-terminal, its output, and keys."""

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from types import TracebackType
from typing import Self

_ROWS, _COLUMNS = 60, 120
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
CTRL_C = b"\x03"
CURSOR_SHOWN = "\x1b[?25h"


class Terminal:
    """A command whose terminal the test holds; ended with the block."""

    def __init__(self, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, _COLUMNS, 0, 0))
        environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**environment, "TERM": "xterm-256color"},
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)
        self.raw = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    @property
    def text(self) -> str:
        """Everything that was printed, without what moves the cursor or colours."""
        return _CONTROL.sub("", self.raw)

    def until(self, wanted: str, *, timeout_s: float = 90.0, after: int = 0) -> int:
        """Read until the pattern is printed; where it ends, for the next one's ``after``."""
        until_s = time.monotonic() + timeout_s
        while (found := re.compile(wanted).search(self.text, after)) is None:
            assert self._read(until_s - time.monotonic()), f"no {wanted!r} in {self.text[-3000:]}"
        return found.end()

    def press(self, keys: bytes) -> None:
        """Type."""
        os.write(self._master, keys)

    def end(self, *, timeout_s: float = 90.0) -> int:
        """Read to the end; the exit code."""
        until_s = time.monotonic() + timeout_s
        while self._read(until_s - time.monotonic()):
            pass
        return self._process.wait(max(1.0, until_s - time.monotonic()))

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self._master], [], [], max(0.0, timeout_s))[0]:
            return False
        with contextlib.suppress(OSError):  # what Linux says at the end
            if data := os.read(self._master, 65536):
                self.raw += data.decode("utf-8", "replace")
                return True
        return False


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
