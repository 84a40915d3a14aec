"""How does systemd hear that a program is ready, alive and stopping? Datagrams to its socket.

The protocol of sd_notify(3), for units of ``Type=notify``. Without a socket nothing is sent, so
that both programs run the same way from a terminal or in a container. The watchdog is fed from the
event loop: a loop that hangs starves it, and systemd starts the program again.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping

_SOCKET = "NOTIFY_SOCKET"
_WATCHDOG_US = "WATCHDOG_USEC"
_WATCHDOG_PID = "WATCHDOG_PID"
_STATUS_CHARACTERS = 200


class Supervisor:
    """Whoever started this program and wants to hear of it; perhaps nobody."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get(_SOCKET, "")
        # A leading @ stands for the NUL of Linux's abstract names.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog_s = _watchdog_s(environment) if address else 0.0

    def heard(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """``say``, whose newest line is also what ``systemctl status`` shows."""

        def both(line: str) -> None:
            say(line)
            self._send("STATUS=" + line.replace("\n", " ")[:_STATUS_CHARACTERS])

        return both if self._address else say

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """The program is ready, and feeds the watchdog until the block ends."""
        feeding = asyncio.create_task(self._feed())
        self._send("READY=1")
        try:
            yield
        finally:
            self._send("STOPPING=1")
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)

    async def _feed(self) -> None:
        while self._watchdog_s:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self._watchdog_s / 2)

    def _send(self, message: str) -> None:
        """Send without waiting: a supervisor that does not listen must not stop the work."""
        if not self._address:
            return
        with contextlib.suppress(OSError), socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        ) as sender:  # fmt: skip
            sender.sendto(message.encode(), self._address)


def _watchdog_s(environment: Mapping[str, str]) -> float:
    """How often systemd wants to hear of this very process; 0 = it does not."""
    for_us = environment.get(_WATCHDOG_PID, str(os.getpid())) == str(os.getpid())
    text = environment.get(_WATCHDOG_US, "")
    return int(text) / 1e6 if for_us and text.isdecimal() else 0.0
