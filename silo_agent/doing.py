"""What is the agent doing at this moment, for a command that is run beside it?

``doing.json`` in the data folder is written over every second while the agent runs. It is a note,
not state: nothing reads it but people, nothing waits for the disk, and it means nothing after the
agent has ended.
"""

import asyncio
import contextlib

import msgspec

from fedreid.clock import Clock
from fedreid.files import overwrite
from fedreid.limits import STALE_S, WATCH_S
from silo_agent.config import Folders

_RECORD_BYTES = 1024
"""A record is padded to this, so that writing one over another leaves nothing of it."""
_CHARACTERS = 200


class Doing(msgspec.Struct, frozen=True, kw_only=True):
    """One note."""

    doing: str
    """Such as ``training``, or what is waited for; empty: nothing any more."""
    share: float
    """Of it, how much is done: 0 to 1."""
    at_s: float
    """When that was so, seconds since the Unix epoch."""

    def silent(self, now_s: float) -> bool:
        """Whether the agent has ended, or hangs: a running one writes a note every second."""
        return not self.doing or now_s - self.at_s > STALE_S


class Notes:
    """The running agent's side: what it does is said at any time, and written once a second."""

    def __init__(self, folders: Folders, clock: Clock) -> None:
        self._path = folders.doing
        self._clock = clock
        self._doing, self._share = "starting", 0.0

    def note(self, doing: str, share: float) -> None:
        """The agent does this now; touches no disk."""
        self._doing, self._share = doing[:_CHARACTERS], share

    async def keep(self) -> None:
        """Write down what is done, until cancelled."""
        try:
            while True:
                self._write()
                await asyncio.sleep(WATCH_S)
        finally:
            self.note("", 0.0)
            self._write()

    def _write(self) -> None:
        record = msgspec.json.encode(
            Doing(doing=self._doing, share=self._share, at_s=self._clock.now_s())
        )
        # A disk that takes no note is told of by the writes that matter.
        with contextlib.suppress(OSError):
            overwrite(self._path, record.ljust(_RECORD_BYTES))


def doing_now(folders: Folders) -> Doing | None:
    """The newest note of the folder's agent; None if it has left none that can be read."""
    try:
        return msgspec.json.decode(folders.doing.read_bytes(), type=Doing)
    except (OSError, msgspec.MsgspecError):
        return None
