"""Which programs does a test run beside itself? Each ends with the test, by its own id."""

import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_STOP_S = 20.0
_POLL_S = 0.5


class NeverHappened(AssertionError):
    """What was waited for did not come in time."""


@contextmanager
def running(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program of its own session, so that Ctrl-C reaches the test first, which then ends it."""
    with log.open("wb") as out:
        child = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def done(command: Sequence[str], *, given: str = "", timeout_s: float = 120.0) -> str:
    """What a command prints; it must succeed."""
    ended = subprocess.run(command, input=given, capture_output=True, text=True, timeout=timeout_s)
    assert ended.returncode == 0, f"{' '.join(command)}\n{ended.stdout}{ended.stderr}"
    return ended.stdout


def wait_until(what: str, holds: Callable[[], bool], timeout_s: float) -> None:
    """Ask again and again.

    Raises:
        NeverHappened: it did not hold in time.
    """
    until_s = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > until_s:
            raise NeverHappened(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(_POLL_S)
