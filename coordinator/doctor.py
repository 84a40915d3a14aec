"""Is a stopped coordinator's data folder whole, and what of it can be mended on the spot?

Each check reads what the running coordinator would rely on. What can be made again or is merely
left over is mended with ``repair``; what is lost is named with the next step, mostly a backup.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from coordinator.config import load_config, load_model_key
from coordinator.folders import Folders
from coordinator.rounds.chronicle import audit_of, commits_seen
from coordinator.rounds.journal import Journal, RunRow, check_not_set_back
from coordinator.rounds.machine import Phase, RoundState
from coordinator.rounds.orders import model_path, update_name
from coordinator.rounds.planned import Plans
from coordinator.rounds.publishing import Models, models_needed
from coordinator.trust.authorities import Authorities
from coordinator.trust.registry import ACTIVE
from fedreid.audit import read_audit
from fedreid.checkup import Check, Checkup, Finding, State, fine, wrong
from fedreid.clock import Clock
from fedreid.console import instant
from fedreid.errors import FedreidError, StorageError, storage_errors
from fedreid.files import free_bytes, is_whole, remove_file, remove_folder
from fedreid.limits import CERTIFICATE_WARNING_S, MIB, SPOOL_KEPT_FREE_BYTES
from fedreid.names import Digest, FederationName
from fedreid.pki.identity import IdentityStore, check_not_expired
from fedreid.pki.signing import public_bytes, verify
from fedreid.plan import Plan, is_difference

_RESTORE = "Restore the newest backup: coordinator restore BACKUP --data NEW."
_FILES_OF_A_ROUND = 3
"""Models that a round writes beside the updates: aggregate, distilled, and its payload."""


class Doctor(Checkup):
    """The checks of a coordinator's data folder; the caller holds its lock."""

    def __init__(self, folders: Folders, clock: Clock, *, repair: bool) -> None:
        super().__init__(repair=repair)
        self._folders = folders
        self._clock = clock

    def examined(self) -> Iterator[Finding]:
        """Everything, from what the rest rests on to what is merely untidy."""
        checks: dict[str, Check] = {
            "settings": self._settings,
            "modes": self._modes,
            "authority": self._authority,
            "identity": self._identities,
            "model key": self._model_key,
        }
        yield from self.findings(checks)
        try:
            journal = Journal(self._folders.journal)
        except FedreidError as error:
            yield wrong("journal", error)
            return
        try:
            yield from self.findings(self._checks_with(journal))
        finally:
            journal.close()

    def _checks_with(self, journal: Journal) -> dict[str, Check]:
        return {
            "journal": lambda: self._journal(journal),
            "audit": lambda: self.audit(
                self._folders.audit, audit_of(self._folders, journal, self._clock)
            ),
            "releases": lambda: self._releases(journal),
            "models": lambda: self._models(journal),
            "spool": lambda: self._spool(journal),
            "leftovers": lambda: self._left_over_of(journal),
            "disk": lambda: self._disk(journal),
        }

    def _settings(self) -> Iterator[Finding]:
        config = load_config(self._folders)
        yield fine("settings", f"the federation {config.federation}")

    def _modes(self) -> Iterator[Finding]:
        folders = self._folders
        keys = [path for path in folders.root.glob("*/*/key.pem") if not path.is_symlink()]
        private = [folders.root, folders.audit, folders.authority, folders.model_key, *keys]
        yield from self.private("modes", [path for path in private if path.exists()])

    def _authority(self) -> Iterator[Finding]:
        for authority in Authorities(self._folders.authority).trusted:
            yield self._lasts("authority", authority.certificate.not_valid_after_utc.timestamp())

    def _identities(self) -> Iterator[Finding]:
        config = load_config(self._folders)
        outside = config.pki.files(self._folders.root)
        if outside is not None:
            yield self._lasts("identity", outside.load().holder().not_after_s)
        for folder in (self._folders.server, self._folders.admin):
            if not folder.exists():  # as after a restore
                told = f"none in {folder.name}/ yet; the coordinator issues it when it starts"
                yield Finding(name="identity", state="note", told=told)
                continue
            store = IdentityStore(folder)
            try:
                identity = store.load()
                check_not_expired(identity, self._clock)
            except FedreidError as error:
                # The authority is at hand: the coordinator issues a new one when it starts.
                yield self.mended("identity", error.brief, partial(remove_folder, folder))
            else:
                until_s = identity.holder().not_after_s
                yield self._lasts("identity", until_s, what=f"{folder.name}/, key and certificate")

    def _lasts(self, name: str, until_s: float, what: str = "key and certificate") -> Finding:
        left_s = until_s - self._clock.now_s()
        if left_s <= 0:
            return Finding(
                name=name,
                state="wrong",
                told=f"a certificate has ended on {instant(until_s)}",
                next_step="Start the coordinator: it renews its own. An authority that has ended "
                "needs a new federation, or your PKI's next one.",
            )
        state: State = "note" if left_s < CERTIFICATE_WARNING_S else "ok"
        return Finding(name=name, state=state, told=f"{what}, until {instant(until_s)}")

    def _model_key(self) -> Iterator[Finding]:
        load_model_key(self._folders)
        yield fine("model key", "private and public half fit")

    def _journal(self, journal: Journal) -> Iterator[Finding]:
        journal.check_rows()
        run, plan, state = _newest(journal)
        try:
            check_not_set_back(journal, commits_seen(self._folders))
        except StorageError as error:
            yield self.mended("journal", error.brief, partial(self._accept, journal))
        yield fine("journal", f"whole; {journal.commits} commits, {_place(run, plan, state)}")

    def _accept(self, journal: Journal) -> None:
        """Go on from a journal that has lost its newest commits, as from a backup of then."""
        known_s = 0.0
        for line in read_audit(self._folders.audit):
            if line.fields.get("commits", 0) <= journal.commits:
                known_s = line.at_s
        lost = commits_seen(self._folders) - journal.commits
        journal.mark_restored(backed_up_s=known_s, restored_s=self._clock.now_s())
        log = audit_of(self._folders, journal, self._clock)
        log.append("journal.accepted", lost_commits=lost, known_s=known_s)

    def _releases(self, journal: Journal) -> Iterator[Finding]:
        key = public_bytes(load_model_key(self._folders))
        rows = journal.models()
        for row in rows:
            try:
                verify(key, row.release, row.signature)
            except FedreidError as error:
                told = f"model {row.version}: {error.what}"
                yield Finding(name="releases", state="wrong", told=told, next_step=_RESTORE)
        yield fine("releases", f"{len(rows)}, signatures looked at")

    def _models(self, journal: Journal) -> Iterator[Finding]:
        config, key = load_config(self._folders), load_model_key(self._folders)
        models = Models(self._folders, journal, FederationName(config.federation), key)
        needed, whole = set(models_needed(journal)), 0
        for row in {row.digest: row for row in journal.models()}.values():
            path = model_path(self._folders, Digest(row.digest))
            if not path.exists() and row.digest not in needed:
                continue  # removed, as older ones are
            try:
                models.check(Digest(row.digest))
            except StorageError as error:
                yield self._damaged_model(path, row.version, error, needed=row.digest in needed)
                continue
            whole += 1
            yield from self._payloads(models, Digest(row.digest))
        yield fine("models", f"{whole} are whole")

    def _damaged_model(
        self, path: Path, version: int, error: StorageError, *, needed: bool
    ) -> Finding:
        told = f"model {version} is damaged or gone: {path}"
        if needed:
            return Finding(name="models", state="wrong", told=told, next_step=error.next_step)
        return self.mended("models", told, partial(_remove, path))

    def _payloads(self, models: Models, digest: Digest) -> Iterator[Finding]:
        for payload in models.damaged_payloads(digest):
            path = models.encoded_path(digest, payload.encoding)
            if is_difference(payload.encoding):
                told = f"{path} is damaged or gone: silos fetch the model in fp32"
                yield Finding(name="models", state="note", told=told)
                continue
            yield self.mended(
                "models",
                f"{path} is damaged or gone, and can be made again",
                partial(models.check, digest, payload),
            )

    def _spool(self, journal: Journal) -> Iterator[Finding]:
        _, _, state = _newest(journal)
        if state is None or state.ended:
            yield fine("spool", "no round is under way")
            return
        spool, _ = self._folders.of_round(state.run, state.number)
        for update in state.updates:
            path = spool / update_name(update.silo)
            if not is_whole(path, update.file_digest):
                yield Finding(
                    name="spool",
                    state="note",
                    told=f"the update of {update.silo} is damaged or gone: it does not count, and "
                    "the silo is asked for it again while the round's time lasts",
                )
        yield fine("spool", f"{len(state.updates)} updates of round {state.number} looked at")

    def _left_over_of(self, journal: Journal) -> Iterator[Finding]:
        _, _, state = _newest(journal)
        under_way = state if state is not None and not state.ended else None
        kept = self._folders.of_round(under_way.run, under_way.number) if under_way else ()
        root = self._folders.root
        ended = [folder for folder in self._folders.rounds() if folder not in kept]
        found = [*root.glob(".*.tmp"), *root.glob("*/.*.tmp"), *root.glob("spool/*/.*.tmp")]
        if under_way is None or under_way.phase is not Phase.PUBLISHING:
            known = {row.digest for row in journal.models()}
            found += [p for p in root.glob("models/[!.]*") if p.name.split(".")[0] not in known]
        if self.repair:
            found += ended
        elif ended:
            places = ", ".join(map(str, sorted(ended)))
            told = f"of rounds that have ended: {places}; the coordinator removes them at its start"
            yield Finding(name="leftovers", state="note", told=told)
            if not found:
                return
        yield self.left_over("leftovers", sorted(found), _remove)

    def _disk(self, journal: Journal) -> Iterator[Finding]:
        _, plan, _ = _newest(journal)
        free = free_bytes(self._folders.root)
        needed = SPOOL_KEPT_FREE_BYTES + self._bytes_of_a_round(journal, plan)
        told = f"{free // MIB:,} MiB are free, a round needs {needed // MIB:,}"
        if free >= needed:
            yield fine("disk", told)
        else:
            yield Finding(
                name="disk", state="wrong", told=told, next_step="Free some space, or add a disk."
            )

    def _bytes_of_a_round(self, journal: Journal, plan: Plan | None) -> int:
        newest = journal.newest_model()
        if newest is None or plan is None:
            return 0
        with storage_errors("look at", self._folders.models):
            model = model_path(self._folders, Digest(newest.digest)).stat().st_size
        silos = sum(row.state == ACTIVE for row in journal.silos())
        copies = 1 if plan.wire.upload == "fp32" else 2  # as it came, and decoded
        return model * (silos * copies + _FILES_OF_A_ROUND)


def _newest(journal: Journal) -> tuple[RunRow | None, Plan | None, RoundState | None]:
    run = journal.newest_run()
    if run is None:
        return None, None, None
    return run, Plans(journal, run).newest.plan, journal.newest_round(run.name)


def _place(run: RunRow | None, plan: Plan | None, state: RoundState | None) -> str:
    if run is None or plan is None:
        return "no run yet"
    number, phase = (0, "not begun") if state is None else (state.number, str(state.phase))
    return f"run {run.name} {run.state}, round {number} {phase}"


def _remove(path: Path) -> None:
    if path.is_dir():
        remove_folder(path)
        return
    remove_file(path)
