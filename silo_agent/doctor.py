"""Is a stopped agent's data folder whole, and what of it can be mended on the spot?

What the federation can give again (a model) or the silo can make again (a round that it trained)
is removed with ``repair``; what can't (identity, privacy budget, audit log) is named with the next
step.
"""

from collections.abc import Iterator
from functools import partial

from fedreid.audit import AuditLog
from fedreid.checkup import Check, Checkup, Finding, fine
from fedreid.clock import Clock
from fedreid.console import instant
from fedreid.files import free_bytes, remove_file, remove_folder
from fedreid.limits import AGENT_DISK_BYTES, MIB
from fedreid.pki.identity import check_not_expired
from silo_agent.budget import PrivacyBudget
from silo_agent.config import Folders, identities, load_config, load_membership
from silo_agent.held import NEWEST_NOTE, read_note
from silo_agent.models import ModelCache
from silo_agent.outbox import Outbox


class Doctor(Checkup):
    """The checks of an agent's data folder; the caller holds its lock."""

    def __init__(self, folders: Folders, clock: Clock, *, repair: bool) -> None:
        super().__init__(repair=repair)
        self._folders = folders
        self._clock = clock
        self._audit = AuditLog(folders.audit, clock)

    def examined(self) -> Iterator[Finding]:
        """Everything, from what the rest rests on to what is merely untidy."""
        checks: dict[str, Check] = {
            "settings": self._settings,
            "modes": self._modes,
            "identity": self._identity,
            "audit": lambda: self.audit(self._folders.audit, self._audit),
            "privacy": self._privacy,
            "models": self._models,
            "rounds": self._rounds,
            "leftovers": self._left_over_of,
            "disk": self._disk,
        }
        return self.findings(checks)

    def _settings(self) -> Iterator[Finding]:
        config, membership = load_config(self._folders), load_membership(self._folders)
        told = f"{membership.silo} of {membership.federation}, coordinator {config.coordinator}"
        yield fine("settings", told)

    def _modes(self) -> Iterator[Finding]:
        folders = self._folders
        keys = [path for path in folders.identity.glob("v*/key.pem") if not path.is_symlink()]
        private = [folders.identity, folders.audit, folders.models, folders.rounds, *keys]
        private += [folders.pending_key, folders.privacy]
        yield from self.private("modes", [path for path in private if path.exists()])

    def _identity(self) -> Iterator[Finding]:
        identity = identities(self._folders, load_config(self._folders)).load()
        check_not_expired(identity, self._clock)
        yield fine("identity", f"good until {instant(identity.holder().not_after_s)}")

    def _privacy(self) -> Iterator[Finding]:
        policy = load_config(self._folders).policy.privacy
        yield fine("privacy", PrivacyBudget(self._folders, policy).statement().sentence())

    def _models(self) -> Iterator[Finding]:
        newest = ModelCache(self._folders, load_membership(self._folders), self._audit).newest()
        whole = 0
        for note in sorted(self._folders.models.glob("*.json")):
            if note.name == NEWEST_NOTE:
                continue
            held = read_note(note)
            if held is not None and held.is_whole():
                whole += 1
                continue
            told = f"the model of {note.name} is damaged or gone: it is fetched again"
            yield self.mended("models", told, partial(remove_file, note))
        yield fine("models", f"{whole} whole; the newest that was taken is {newest.version}")

    def _rounds(self) -> Iterator[Finding]:
        outbox, whole = Outbox(self._folders), 0
        for folder in outbox.all_folders():
            damaged = outbox.damaged(folder)
            if not damaged:
                whole += 1
                continue
            told = (
                f"{folder} is damaged ({', '.join(damaged)}): without it the round is trained "
                "again if it still runs, and the silo's own classifier begins anew"
            )
            yield self.mended("rounds", told, partial(remove_folder, folder))
        yield fine("rounds", f"{whole} whole")

    def _left_over_of(self) -> Iterator[Finding]:
        root = self._folders.root
        found = [*root.glob(".*.tmp"), *root.glob("*/.*.tmp"), *root.glob("rounds/*/.*.tmp")]
        yield self.left_over("leftovers", sorted(found), remove_file)

    def _disk(self) -> Iterator[Finding]:
        free = free_bytes(self._folders.root)
        told = f"{free // MIB:,} MiB are free, {AGENT_DISK_BYTES // MIB:,} are wanted"
        if free >= AGENT_DISK_BYTES:
            yield fine("disk", told)
        else:
            yield Finding(name="disk", state="wrong", told=told, next_step="Free some space.")
