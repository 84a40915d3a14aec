"""How does an update get from the wire into the spool, checked, and count exactly once?"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import blake3

from coordinator.folders import Folders
from coordinator.metrics import (
    INTAKE_BYTES,
    SILO_UPDATES,
    SILO_UPLOAD_BYTES,
    UPDATES_REJECTED,
    silo_label,
)
from coordinator.rounds.current import Current
from coordinator.rounds.incoming import Incoming
from coordinator.rounds.machine import Accepted, RoundState, UpdateAccepted, UpdateRejected
from coordinator.rounds.orders import update_path
from coordinator.rounds.publishing import Models
from coordinator.rounds.spool import check_room, has_ample_room
from coordinator.rounds.validation import check_manifest
from fedreid import faults
from fedreid.contract import UpdateReport
from fedreid.errors import (
    BROKEN_LINE,
    LimitReached,
    Refusal,
    RunError,
    StorageError,
    UpdateRefused,
)
from fedreid.files import move_file, remove_file
from fedreid.limits import CONCURRENT_UPLOADS
from fedreid.names import Digest, SiloName
from fedreid.plan import Plan
from fedreid.wire.chunks import AnyChunk
from fedreid.wire.manifest import Manifest
from fedreid.wire.stream import bytes_held
from fedreid.work import off_loop

_SEND_AGAIN = BROKEN_LINE | {Refusal.NOT_INVITED, Refusal.STALE}
"""Refusals that say nothing of the update's content."""


class Standing(Enum):
    """Where an announced update stands."""

    SEND = "send"
    ACCEPTED = "accepted"
    STALE = "stale"


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """An update as its silo announces it; nothing of it is believed yet."""

    silo: SiloName
    run: str
    round: int
    base_digest: str
    manifest: Manifest
    report: UpdateReport

    @property
    def upload_id(self) -> str:
        """Equal for equal announcements, so that a silo can go on after any restart."""
        place = (self.silo, self.run, self.round, self.base_digest, self.manifest.payload_digest)
        return blake3.blake3("\0".join(map(str, place)).encode()).hexdigest()[:32]

    def is_for(self, state: RoundState) -> bool:
        """Whether this belongs to the round ``state``."""
        return (self.run, self.round, self.base_digest) == (
            state.run,
            state.number,
            state.base_of(self.silo),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """Answer to an announcement."""

    standing: Standing
    upload_id: str
    offset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parts:
    """The unfinished updates in the spool of one round; those of before a restart as well."""

    folder: Path
    by_silo: dict[str, set[Path]]

    @classmethod
    def found_in(cls, folder: Path) -> "_Parts":
        """What lies in a folder: it is read once, for a thousand silos ask."""
        by_silo: dict[str, set[Path]] = {}
        for path in folder.glob("*.part"):
            silo = path.name.removesuffix(".part").rpartition("-")[0]
            by_silo.setdefault(silo, set()).add(path)
        return cls(folder=folder, by_silo=by_silo)


class Intake:
    """Receives updates: one of each silo, the work on a few at once."""

    def __init__(self, *, folders: Folders, models: Models, current: Current) -> None:
        self._folders = folders
        self._models = models
        self._current = current
        self._announced: dict[SiloName, Announcement] = {}
        self._busy: set[SiloName] = set()
        self._slots = asyncio.Semaphore(CONCURRENT_UPLOADS)
        self._opening = asyncio.Lock()
        self._parts: _Parts | None = None
        self._late: set[tuple[SiloName, str, int]] = set()

    async def open(self, announcement: Announcement) -> Opening:
        """Say where to go on with an announced update.

        Raises:
            UpdateRefused: its form is wrong, or the silo was not invited.
            StorageError: the disk has no room for it.
        """
        standing = self._standing(announcement)
        if standing is Standing.STALE and await self._has_accepted(announcement):
            standing = Standing.ACCEPTED
        upload_id = announcement.upload_id
        if standing is Standing.STALE:
            await self._note_late(announcement)
        if standing is not Standing.SEND:
            return Opening(standing=standing, upload_id=upload_id)
        part = self._part_path(announcement)
        ample = await off_loop(self._checked, announcement, self._current.plan, part.parent)
        begun = self._keep_one_part(announcement.silo, part)
        if not ample:
            await off_loop(self._folders.spares.clear)
            async with self._opening:  # or two would be promised the same room
                await off_loop(check_room, part.parent, self._promised(announcement))
                self._announced[announcement.silo] = announcement
        self._announced[announcement.silo] = announcement
        prefix = len(announcement.manifest.prefix)
        held = await off_loop(bytes_held, part, prefix) if begun else 0
        offset = held if 0 < held <= announcement.manifest.byte_count else 0
        return Opening(standing=standing, upload_id=upload_id, offset=offset)

    async def receive(
        self, silo: SiloName, upload_id: str, chunks: AsyncIterator[AnyChunk]
    ) -> Standing:
        """Take the payload of an opened upload, check it, and make it count.

        Raises:
            RunError: the upload was not opened.
            LimitReached: another upload of the silo is under way.
            UpdateRefused: the payload must not count.
            StorageError: the disk is full or fails; what came so far is kept.
        """
        announcement = self._announced.get(silo)
        if announcement is None or announcement.upload_id != upload_id:
            raise RunError("This upload was not opened", next_step="Call OpenUpload first.")
        if silo in self._busy:
            raise LimitReached("Another upload of this silo is under way")
        self._busy.add(silo)
        try:
            standing = await self._receive(announcement, chunks)
            if standing is Standing.STALE:
                await self._note_late(announcement)
            return standing
        finally:
            self._busy.discard(silo)

    @contextlib.asynccontextmanager
    async def judging(self, silo: SiloName) -> AsyncIterator[None]:
        """Count what the block refuses; a silo whose content is refused is not waited for."""
        try:
            yield
        except UpdateRefused as refusal:
            UPDATES_REJECTED.labels(refusal.reason.value).inc()
            SILO_UPDATES.labels(silo_label(silo), "rejected").inc()
            if refusal.reason not in _SEND_AGAIN:
                await self._current.apply(UpdateRejected(silo=silo, reason=refusal.reason.value))
            raise

    async def _note_late(self, announcement: Announcement) -> None:
        """Once for each round, however often its update is sent."""
        silo, run, number = announcement.silo, announcement.run, announcement.round
        newest = self._current.round
        known = newest is not None and run == newest.run and 1 <= number <= newest.number
        if not known or (silo, run, number) in self._late:
            return
        self._late.add((silo, run, number))
        await self._current.note("update.late", run=run, round=number, silo=silo)
        UPDATES_REJECTED.labels(Refusal.STALE.value).inc()
        SILO_UPDATES.labels(silo_label(silo), "rejected").inc()

    async def _receive(
        self, announcement: Announcement, chunks: AsyncIterator[AnyChunk]
    ) -> Standing:
        standing = self._standing(announcement)
        if standing is not Standing.SEND:
            return standing
        of_silo = SILO_UPLOAD_BYTES.labels(silo_label(announcement.silo))
        try:
            incoming = await off_loop(self._incoming, announcement, self._current.plan)
            try:
                async for chunk in chunks:
                    async with self._slots:
                        await off_loop(incoming.write, chunk)
                    INTAKE_BYTES.inc(len(chunk.data))
                    of_silo.inc(len(chunk.data))
                async with self._slots:
                    await off_loop(incoming.finish)
            finally:
                incoming.close()
        except StorageError:
            if self._standing(announcement) is Standing.SEND:
                raise
            return Standing.STALE  # the round has ended meanwhile and its spool is gone
        return await self._count(announcement, incoming)

    def _incoming(self, announcement: Announcement, plan: Plan) -> Incoming:
        base = self._models.path(Digest(announcement.base_digest))
        part, spares = self._part_path(announcement), self._folders.spares
        return Incoming(part, announcement.manifest, base, plan.validation, spares)

    async def _count(self, announcement: Announcement, incoming: Incoming) -> Standing:
        state = self._current.round
        if self._standing(announcement) is not Standing.SEND or state is None:
            return Standing.STALE
        async with self._slots:
            digest = await off_loop(self._admit, announcement, incoming, state)
        await self._current.apply(
            UpdateAccepted(
                update=Accepted(
                    silo=announcement.silo,
                    payload_digest=announcement.manifest.payload_digest,
                    size_bytes=announcement.manifest.byte_count,
                    file_digest=digest,
                    report=announcement.report,
                )
            )
        )
        standing = self._standing(announcement)
        if standing is Standing.ACCEPTED:
            SILO_UPDATES.labels(silo_label(announcement.silo), "accepted").inc()
        return standing

    def _admit(self, announcement: Announcement, incoming: Incoming, state: RoundState) -> Digest:
        """Check what has come, and move the update to where aggregation reads it.

        Gives the digest by which damage is noticed before it is aggregated.
        """
        ready, digest = incoming.checked()
        self._models.digests.note(ready, digest)
        with faults.step("upload.place"):
            move_file(ready, update_path(self._folders, state, announcement.silo))
        return digest

    def _checked(self, announcement: Announcement, plan: Plan, folder: Path) -> bool:
        """Check an announcement; whether the disk has room for every update of the round."""
        self._check_form(announcement, plan)
        state = self._current.round
        awaited = 0 if state is None else len(state.invited) - len(state.updates)
        base = self._models.layout(Digest(announcement.base_digest))
        return has_ample_room(folder, awaited, base)

    def _check_form(self, announcement: Announcement, plan: Plan) -> None:
        if announcement.manifest.encoding not in (plan.wire.upload, "fp32"):
            raise UpdateRefused(
                Refusal.ENCODING,
                f"The plan asks for uploads in {plan.wire.upload}, not in "
                f"{announcement.manifest.encoding}",
            )
        base = self._models.layout(Digest(announcement.base_digest))
        check_manifest(announcement.manifest, base, plan.aggregation.bn)

    def _standing(self, announcement: Announcement) -> Standing:
        state = self._current.round
        if state is None or not announcement.is_for(state):
            return Standing.STALE
        if state.accepted(announcement.silo) is not None:
            return Standing.ACCEPTED
        if not state.invites(announcement.silo):
            raise UpdateRefused(
                Refusal.NOT_INVITED, f"The silo {announcement.silo} is not part of this round"
            )
        return Standing.SEND if state.wants(announcement.silo) else Standing.STALE

    async def _has_accepted(self, announcement: Announcement) -> bool:
        """Whether the update was accepted before its round ended, and the answer got lost."""
        journal = self._current.journal
        state = await off_loop(journal.round, announcement.run, announcement.round)
        accepted = None if state is None else state.accepted(announcement.silo)
        digest = announcement.manifest.payload_digest
        return accepted is not None and accepted.payload_digest == digest

    def _promised(self, announcement: Announcement) -> list[tuple[Manifest, Path]]:
        """The unfinished updates of the round, with the one that is announced now."""
        state = self._current.round
        others = [
            other
            for other in self._announced.values()
            if other.silo != announcement.silo
            and state is not None
            and other.is_for(state)
            and state.wants(other.silo)
        ]
        return [(each.manifest, self._part_path(each)) for each in (announcement, *others)]

    def _keep_one_part(self, silo: SiloName, kept: Path) -> bool:
        """One unfinished update of each silo at a time, so that none can fill the disk.

        Whether this one was opened before, and may have come in part.
        """
        if self._parts is None or self._parts.folder != kept.parent:
            self._parts = _Parts.found_in(kept.parent)
        parts = self._parts.by_silo.setdefault(silo, set())
        begun = kept in parts
        parts.add(kept)
        if silo not in self._busy:
            for path in parts - {kept}:
                remove_file(path)
                parts.remove(path)
        return begun

    def _part_path(self, announcement: Announcement) -> Path:
        folder = self._folders.spool(announcement.run, announcement.round)
        return folder / f"{announcement.silo}-{announcement.manifest.payload_digest[:16]}.part"
