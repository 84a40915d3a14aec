"""What does the port show and whom does it trust, and how does that stay good by itself?

gRPC asks at every new connection whether the port's identity has changed. It then starts with
fresh keys for session tickets, so that no earlier TLS session can be resumed.
"""

import asyncio
import threading
from collections.abc import Callable

from coordinator.config import Config
from coordinator.folders import Folders
from coordinator.metrics import TLS_RELOAD_FAILURES
from coordinator.trust.authorities import Authorities
from coordinator.trust.own import keep_own_identities
from fedreid.audit import AuditLog
from fedreid.clock import Clock
from fedreid.errors import FedreidError
from fedreid.limits import KEEPING_S
from fedreid.pki.files import IdentityFiles
from fedreid.pki.identity import Identity, IdentityStore
from fedreid.work import off_loop


class Keeper:
    """Keeps the identity of the port."""

    def __init__(
        self,
        folders: Folders,
        config: Config,
        authorities: Authorities,
        audit: AuditLog,
        clock: Clock,
    ) -> None:
        """Put the identities in order.

        Raises:
            IdentityBroken, StorageError: our files, or those of the operators' PKI, are damaged.
        """
        self._folders = folders
        self._config = config
        self._authorities = authorities
        self._audit = audit
        self._clock = clock
        self._files: IdentityFiles | None = config.pki.files(folders.root)
        self._stamp: tuple[int, ...] = ()
        self._outside: Identity | None = None
        self._one_at_a_time = threading.Lock()
        self._handing_over = threading.Lock()
        self._changed: Identity | None = None
        self.look()

    @property
    def identity(self) -> Identity:
        """What the port shows, and the authorities of those whom it lets in."""
        if self._outside is None:
            return IdentityStore(self._folders.server).load()
        return Identity(
            key_pem=self._outside.key_pem,
            certificate_pem=self._outside.certificate_pem,
            # Our own authority besides: it vouches for the administrator in the data folder.
            authorities_pem=self._outside.authorities_pem + self._authorities.bundle_pem,
        )

    def look(self) -> None:
        """Renew what is due, and take up files that were replaced; blocks on the disk.

        Raises:
            IdentityBroken, StorageError: files that can't be used; what was in force stays.
        """
        with self._one_at_a_time:
            replaced = self._read_files()
            issued = keep_own_identities(
                self._folders,
                self._authorities,
                federation=self._config.federation,
                hostnames=self._config.hostnames,
                now_s=self._clock.now_s(),
                trusted_besides=b"" if self._outside is None else self._outside.authorities_pem,
            )
            for name in issued:
                self._audit.append("identity.issued", name=name)
            if issued or replaced:
                self.forget_sessions()

    def forget_sessions(self) -> None:
        """From the next connection on: the identity as it is now, and no session from before."""
        identity = self.identity
        with self._handing_over:
            self._changed = identity

    def changed(self) -> Identity | None:
        """The identity, if it has changed since this was last asked; gRPC's threads ask."""
        with self._handing_over:
            changed, self._changed = self._changed, None
        return changed

    async def serve(self, say: Callable[[str], None]) -> None:
        """Look from time to time, for ever; what can't be used is told, and looked at again."""
        told = ""
        while True:
            await asyncio.sleep(KEEPING_S)
            try:
                await off_loop(self.look)
                told = ""
            except FedreidError as error:
                TLS_RELOAD_FAILURES.inc()
                if str(error) != told:
                    told = str(error)
                    say(told)

    def _read_files(self) -> bool:
        if self._files is None:
            return False
        stamp = self._files.stamp()
        if stamp == self._stamp:
            return False
        self._outside = self._files.load()
        self._stamp = stamp
        self._audit.append("identity.replaced", name="coordinator")
        return True
