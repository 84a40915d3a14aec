"""Which published models has this silo fetched and verified? A note beside each says so.

Read without the coordinator, so that a model can be used when the federation is away.
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from fedreid.files import is_whole
from silo_agent.config import Folders

NEWEST_NOTE = "newest.json"
"""The highest version that was ever taken; no model's own note."""


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """A verified model on disk."""

    path: str
    digest: str
    """Of the model as it was published; a download in bf16 has rounded its weights."""
    run: str
    round: int
    """The round that made it; 0 for start weights."""
    version: int
    file_digest: str = ""
    """Of the file here; empty in notes from before it was kept."""

    def is_whole(self) -> bool:
        """Whether the file is as it was taken."""
        return is_whole(Path(self.path), self.file_digest)


def read_note(note: Path) -> Held | None:
    """The model of a note; None where note or model is missing or damaged.

    That costs one more download, no error. The model lies beside its note, wherever the data
    folder has been moved to.
    """
    try:
        held = msgspec.json.decode(note.read_bytes(), type=Held)
    except (OSError, msgspec.MsgspecError):
        return None
    path = note.with_name(Path(held.path).name)
    return msgspec.structs.replace(held, path=str(path)) if path.exists() else None


def newest_held(folders: Folders, run: str | None = None) -> Held | None:
    """The newest model on disk; of a run, where one is named."""
    found = [held for held in _held(folders, "*") if run in (None, held.run)]
    return max(found, key=lambda held: held.version, default=None)


def find_held(folders: Folders, digest: str) -> Held | None:
    """The model with this digest, in whichever encoding it was fetched."""
    return next(_held(folders, f"{digest}.*"), None)


def _held(folders: Folders, name: str) -> Iterator[Held]:
    notes = sorted(path for path in folders.models.glob(f"{name}.json") if path.name != NEWEST_NOTE)
    return (held for held in map(read_note, notes) if held is not None)
