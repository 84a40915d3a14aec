"""Is there room on the disk for the updates that are on their way?

Each silo has at most one unfinished update, bounded by its manifest, which was compared with the
base model; so what all of them can still take is known, and is asked for before it comes.
"""

from collections.abc import Iterable
from pathlib import Path

from fedreid.errors import StorageError, storage_errors
from fedreid.files import free_bytes
from fedreid.limits import SPOOL_KEPT_FREE_BYTES
from fedreid.wire.manifest import Manifest
from fedreid.wire.tensors import Layout


def bytes_to_come(manifest: Manifest, part: Path) -> int:
    """What an update will still take: the rest of its payload, and its decoded copy if any."""
    held = part.stat().st_size if part.exists() else 0
    decoded = 0 if manifest.encoding == "fp32" else manifest.layout.size_bytes
    return max(0, manifest.byte_count - held) + decoded


def has_ample_room(folder: Path, updates: int, layout: Layout) -> bool:
    """Whether so many updates fit, however little of them is there: the payload and its copy.

    A thousand silos each ask, and looking at each other's parts would be a million looks.
    """
    return 2 * updates * layout.size_bytes <= free_bytes(folder) - SPOOL_KEPT_FREE_BYTES


def check_room(folder: Path, updates: Iterable[tuple[Manifest, Path]]) -> None:
    """Check that these updates fit beside what must stay free.

    Raises:
        StorageError: they do not.
    """
    with storage_errors("look at", folder):
        needed = sum(bytes_to_come(manifest, part) for manifest, part in updates)
    free = free_bytes(folder)
    if needed > free - SPOOL_KEPT_FREE_BYTES:
        raise StorageError(
            f"There is no room for another update: {needed:,} bytes are to come, {free:,} are free",
            why="the disk is full",
            next_step="Free some space at the coordinator; nothing is lost.",
        )
