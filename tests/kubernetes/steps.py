"""What was done, how long did it take? The table of ``docs/kubernetes.md``."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Steps:
    """The steps of one test, printed as they go by."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, str]] = []

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Time a step; one that fails is none."""
        print(f"{what} …", flush=True)
        began_s = time.monotonic()
        yield
        self.note(what, f"{time.monotonic() - began_s:.0f} s")

    def note(self, what: str, value: str) -> None:
        """A row of its own."""
        print(f"{what}: {value}", flush=True)
        self._rows.append((what, value))

    def table(self) -> str:
        """All of it, in Markdown."""
        return "\n".join(f"| {what} | {value} |" for what, value in self._rows)
