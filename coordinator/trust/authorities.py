"""Which certificate authorities does the federation trust, and which of them issues?

::

    authority/state.json            which are trusted, oldest first, and which one issues
    authority/0123456789abcdef/     one authority: key.pem, certificate.pem

The state is one small file that is replaced whole, and an authority's folder is complete before
the state names it, so that a crash leaves the step before or the step after.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography import x509

from fedreid import faults
from fedreid.errors import IdentityMissing, TrustError, UsageError
from fedreid.files import flip_folder, make_folder, remove_folder, write_bytes
from fedreid.names import Digest
from fedreid.pki.certificates import (
    Authority,
    Holder,
    authorities_digest,
    key_fingerprint,
    key_from_pem,
    key_to_pem,
)
from fedreid.pki.identity import issued_by

SETTLED, PREPARED, ACTIVATED = "settled", "prepared", "activated"
"""Steps of a roll-over: one authority; a new one trusted beside it; the new one issues."""

_STATE_FILE = "state.json"
_NAME_DIGITS = 16


class _State(msgspec.Struct, frozen=True, kw_only=True):
    trusted: tuple[str, ...]
    """Names of authorities, oldest first; one, or two during a roll-over."""
    issuing: str


@dataclass(frozen=True, kw_only=True)
class _Known:
    """The state and what it names; what follows from them is asked for with every poll."""

    state: _State
    authorities: tuple[Authority, ...]
    key_ids: frozenset[str]

    @functools.cached_property
    def issuing(self) -> Authority:
        return self.authorities[self.state.trusted.index(self.state.issuing)]

    @functools.cached_property
    def trusted(self) -> tuple[Authority, ...]:
        return tuple(sorted(self.authorities, key=lambda each: each is not self.issuing))

    @functools.cached_property
    def bundle_pem(self) -> bytes:
        return b"".join(authority.certificate_pem for authority in self.trusted)

    @functools.cached_property
    def digest(self) -> Digest:
        return authorities_digest(self.bundle_pem)


class Authorities:
    """The authorities in one folder; reading is free, every change is one step on the disk."""

    def __init__(self, folder: Path) -> None:
        """The authorities that a folder holds.

        Raises:
            IdentityMissing: its files can't be read.
        """
        self._folder = folder
        self._known = _read(folder)

    @classmethod
    def create(cls, folder: Path, authority: Authority) -> "Authorities":
        """A folder with a first authority."""
        make_folder(folder, mode=0o700)
        name = _write(folder, authority)
        _write_state(folder, _State(trusted=(name,), issuing=name))
        return cls(folder)

    @property
    def issuing(self) -> Authority:
        """The one that signs certificates now."""
        return self._known.issuing

    @property
    def trusted(self) -> tuple[Authority, ...]:
        """All that are trusted now, the issuing one first."""
        return self._known.trusted

    @property
    def bundle_pem(self) -> bytes:
        """The certificates of all that are trusted."""
        return self._known.bundle_pem

    @property
    def digest(self) -> Digest:
        """By which a silo says that it trusts these."""
        return self._known.digest

    def issued(self, holder: Holder) -> bool:
        """Whether one that is trusted now has issued a certificate."""
        return holder.issuer_key_id in self._known.key_ids

    @property
    def step(self) -> str:
        """Which step of a roll-over was taken last."""
        state = self._known.state
        if len(state.trusted) == 1:
            return SETTLED
        return ACTIVATED if state.issuing == state.trusted[-1] else PREPARED

    def prepare(self, authority: Authority) -> None:
        """Trust a new authority beside the old one.

        Raises:
            UsageError: a roll-over is under way.
        """
        self._expect(SETTLED, "A roll-over is under way", "coordinator ca status")
        state = self._known.state
        self._remove_all_but(state.trusted)  # what a crash left of an attempt before
        name = _write(self._folder, authority)
        self._become(_State(trusted=(*state.trusted, name), issuing=state.issuing))

    def activate(self) -> None:
        """Issue with the new authority from now on.

        Raises:
            UsageError: none was prepared, or it issues already.
        """
        self._expect(PREPARED, "There is no prepared authority", "coordinator ca prepare")
        trusted = self._known.state.trusted
        with faults.step("ca.activate.commit"):
            self._become(_State(trusted=trusted, issuing=trusted[-1]))

    def drop(self) -> None:
        """Trust the old authority no longer, and remove its key.

        Raises:
            UsageError: the new one does not issue yet.
        """
        self._expect(ACTIVATED, "The new authority does not issue yet", "coordinator ca activate")
        issuing = self._known.state.issuing
        self._become(_State(trusted=(issuing,), issuing=issuing))
        self._remove_all_but((issuing,))

    def _expect(self, step: str, what: str, next_command: str) -> None:
        if self.step != step:
            raise UsageError(what, next_step=f"See: {next_command}.")

    def _become(self, state: _State) -> None:
        _write_state(self._folder, state)
        self._known = _read(self._folder)

    def _remove_all_but(self, names: tuple[str, ...]) -> None:
        for path in self._folder.iterdir():
            if path.is_dir() and path.name not in names:
                remove_folder(path)


def _write(folder: Path, authority: Authority) -> str:
    name = key_fingerprint(authority.key.public_key())[:_NAME_DIGITS]
    built = make_folder(folder / f".{name}", mode=0o700)
    write_bytes(built / "key.pem", key_to_pem(authority.key), mode=0o600)
    write_bytes(built / "certificate.pem", authority.certificate_pem)
    flip_folder(built, folder / name)
    return name


def _write_state(folder: Path, state: _State) -> None:
    write_bytes(folder / _STATE_FILE, msgspec.json.encode(state))


def _read(folder: Path) -> _Known:
    try:
        state = msgspec.json.decode((folder / _STATE_FILE).read_bytes(), type=_State)
        authorities = tuple(_read_one(folder / name) for name in state.trusted)
    except (OSError, ValueError, msgspec.MsgspecError, TrustError) as error:
        raise IdentityMissing(
            f"The federation's authorities in {folder} can't be read",
            why=str(error),
            next_step="Restore the folder from a backup.",
        ) from error
    return _Known(
        state=state,
        authorities=authorities,
        key_ids=frozenset(authority.key_id for authority in authorities),
    )


def _read_one(folder: Path) -> Authority:
    """One authority; ValueError if key and certificate are not each other's."""
    certificate = x509.load_pem_x509_certificate((folder / "certificate.pem").read_bytes())
    key = key_from_pem((folder / "key.pem").read_bytes())
    if certificate.public_key() != key.public_key() or not issued_by(certificate, certificate):
        raise ValueError(f"key and certificate in {folder} do not fit together")
    return Authority(certificate=certificate, key=key)
