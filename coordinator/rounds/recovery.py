"""What has a crash left undone, that a start makes up before anybody is answered?"""

from coordinator.folders import Folders
from coordinator.rounds.chronicle import make_up, note_event
from coordinator.rounds.current import Current
from coordinator.rounds.machine import SiloGone
from coordinator.rounds.publishing import Models
from coordinator.trust.registry import Registry
from fedreid.files import remove_folder, sync_folder


def recover(current: Current, registry: Registry, folders: Folders, models: Models) -> None:
    """Bring audit log, round and folders to where the journal stands; blocks on the disk.

    Raises:
        StorageError: the disk does not take it; nothing may be served then.
    """
    if current.round is not None:
        make_up(current.chronicle, current.round)
    drop_gone(current, registry)
    current.chronicle.settle()
    tidy(current, folders)
    models.remove_unfinished()


def drop_gone(current: Current, registry: Registry) -> None:
    """Take silos out of the round that went in the moment of a crash."""
    if current.round is None:
        return
    for silo in current.round.invited:
        if registry.active(silo):
            continue
        before, event = current.round, SiloGone(silo=silo)
        after = current.after(before, event)
        if after != before:
            row = registry.known(silo)
            current.chronicle.append(f"silo.{row.state}", silo=silo, reason=row.reason)
            current.chronicle.settle()  # once the round is without it, no start would tell
            current.journal.save_round(after)
            note_event(current.chronicle, before, event, after)
            current.chronicle.append("silo.gone", silo=silo)
            current.round = after


def tidy(current: Current, folders: Folders) -> None:
    """Remove what a crash left of rounds that have ended, and what was kept for the next ones."""
    folders.spares.clear()
    kept = None
    if current.round is not None and not current.round.ended:
        kept = folders.spool(current.round.run, current.round.number).name
    for folder in folders.rounds():
        if folder.name != kept:
            remove_folder(folder)
        else:  # or a power cut could still take it, with updates that were synced in it
            sync_folder(folder.parent)
    sync_folder(folders.root)
