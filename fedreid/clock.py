"""What time is it? The one clock of a process, replaceable in tests."""

import time
from typing import Protocol


class Clock(Protocol):
    """A wall clock and a monotonic one."""

    def now_s(self) -> float:
        """Seconds since the Unix epoch."""
        ...

    def monotonic_s(self) -> float:
        """Seconds since some fixed point; never goes back."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_s(self) -> float:
        """Seconds since the Unix epoch."""
        return time.time()

    def monotonic_s(self) -> float:
        """Seconds since the machine started."""
        return time.monotonic()
