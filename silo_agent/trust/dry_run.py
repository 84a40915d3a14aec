"""Would joining work from this machine? Every step is tried but the last: no call is made.

The token's secret belongs to the Enrol call alone, and nothing here makes it: connections are
opened, TLS is spoken, and they are closed again. The bootstrap certificate is shown only after
the coordinator's own has held.

The clock is compared with the certificate's life, no closer: TLS 1.3 tells no time, and the call
that does (Hello) is not for a bootstrap certificate.
"""

import asyncio
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import grpc

from fedreid.clock import Clock
from fedreid.console import instant
from fedreid.datasets.checks import refusals
from fedreid.datasets.images import decode
from fedreid.datasets.layouts import load
from fedreid.errors import (
    ConfigRefused,
    ConnectionFailed,
    DatasetError,
    ExitCode,
    FedreidError,
    StorageError,
    TokenRefused,
    TrustError,
    storage_errors,
)
from fedreid.files import free_bytes, others_may_read
from fedreid.limits import AGENT_DISK_BYTES, DIAL_S, MIB
from fedreid.pki import tokens
from fedreid.pki.identity import Identity, IdentityStore
from silo_agent.config import AgentConfig, Folders
from silo_agent.egress import check_destination
from silo_agent.trust.channel import connected
from silo_agent.trust.handshake import Presented, check_issued, dial, presented_at, resolve


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What one step has shown."""

    name: str
    state: Literal["ok", "failed", "skipped"]
    told: str
    next_step: str = ""
    exit_code: ExitCode = ExitCode.OK


class _Skipped(Exception):
    """A step that can't be tried, since one before it has failed."""


@dataclass(slots=True, kw_only=True)
class DryRun:
    """The steps of a join, in their order, and what the later ones need of the earlier."""

    folders: Folders
    config: AgentConfig
    token_file: Path | None
    clock: Clock
    _identity: Identity | None = field(default=None, init=False)
    _presented: Presented | None = field(default=None, init=False)
    _issued: bool = field(default=False, init=False)
    _resolved: bool = field(default=False, init=False)
    _reached: bool = field(default=False, init=False)

    def checks(self) -> Iterator[Check]:
        """Try one step after the other; a failed one keeps only those that need it from theirs."""
        steps: dict[str, Callable[[], str]] = {
            "token": self._token,
            "clock": self._clock,
            "address": self._address,
            "tcp": self._tcp,
            "tls": self._tls,
            "issuer": self._issuer,
            "admission": self._admission,
            "disk": self._disk,
            "folders": self._folders,
            "dataset": self._dataset,
        }
        for name, step in steps.items():
            try:
                yield Check(name=name, state="ok", told=step())
            except _Skipped as skipped:
                yield Check(name=name, state="skipped", told=str(skipped))
            except FedreidError as error:
                yield Check(
                    name=name,
                    state="failed",
                    told=error.brief,
                    next_step=error.next_step,
                    exit_code=error.exit_code,
                )

    def _token(self) -> str:
        """Mode, checksum and life of the token; a silo that has enrolled needs none."""
        store = IdentityStore(self.folders.identity)
        if self.token_file is None and store.exists():
            self._identity = store.load()
            return f"not needed: this silo is {self._identity.holder().principal.uri}"
        token = tokens.read(self.token_file)
        if self.clock.now_s() >= token.expires_at_s:
            raise TokenRefused(
                f"The join token has expired at {instant(token.expires_at_s)}",
                why="or this machine's clock runs ahead",
                next_step="Ask the coordinator's operators for a new one.",
            )
        identity = token.identity()
        holder = identity.holder()
        self._identity = identity
        return (
            f"for the silo {token.silo} of {holder.principal.federation}, "
            f"good until {instant(token.expires_at_s)}"
        )

    def _clock(self) -> str:
        holder = self._known().holder()
        now_s = self.clock.now_s()
        if not holder.not_before_s <= now_s < holder.not_after_s:
            raise TrustError(
                f"This machine's clock says {instant(now_s)}",
                why="the coordinator's clock has issued a certificate for the time from "
                f"{instant(holder.not_before_s)} to {instant(holder.not_after_s)}",
                next_step="Set the clock; if it is right, ask for a new token.",
            )
        return (
            f"{instant(now_s)} lies in the certificate's life, "
            f"{instant(holder.not_before_s)} to {instant(holder.not_after_s)}"
        )

    def _address(self) -> str:
        check_destination(self.config.coordinator, self.config.policy)
        found = resolve(self.config.coordinator)
        self._resolved = True
        return f"{self.config.coordinator} is {', '.join(found)}"

    def _tcp(self) -> str:
        if not self._resolved:
            raise _Skipped("there is no address to dial")
        dial(self.config.coordinator).close()
        self._reached = True
        return f"{self.config.coordinator} accepts connections"

    def _tls(self) -> str:
        if not self._reached:
            raise _Skipped("there is no connection")
        self._presented = presented_at(self.config.coordinator)
        return f"{self._presented.tls_version} with HTTP/2"

    def _issuer(self) -> str:
        identity = self._known()
        if self._presented is None:
            raise _Skipped("there is no TLS to look at")
        check_issued(self.config.coordinator, self._presented, identity.authorities_pem)
        self._issued = True
        return f"{self._presented.issuer}, as the token says"

    def _admission(self) -> str:
        if not self._issued:
            raise _Skipped("the coordinator has not proved itself")
        asyncio.run(_admitted(self.config.coordinator, self._known()))
        return "the coordinator takes the certificate; nothing was asked of it"

    def _disk(self) -> str:
        place = _standing(self.folders.root)
        free = free_bytes(place)
        if free < AGENT_DISK_BYTES:
            raise StorageError(
                f"{free // MIB} MiB are free at {place}",
                why=f"models and updates want {AGENT_DISK_BYTES // MIB} MiB",
                next_step="Free some space, or name another folder with --data.",
            )
        return f"{free // MIB} MiB are free at {place}"

    def _folders(self) -> str:
        root = self.folders.root
        if not os.access(_standing(root), os.W_OK | os.X_OK):
            raise StorageError(
                f"{_standing(root)} can't be written to",
                next_step="Correct its owner or mode, or name another folder with --data.",
            )
        if not root.exists():
            return f"{root} can be made"
        if others_may_read(root):
            raise ConfigRefused(
                f"The data folder {root} is open to other users",
                next_step=f"Run: chmod 700 {root}",
            )
        return f"{root} is private"

    def _dataset(self) -> str:
        config = self.config
        dataset = Path(config.dataset)
        with storage_errors("read", dataset):
            found = load(
                dataset,
                config.layout,
                split=config.split,
                withdrawn_confirmed=config.withdrawn_confirmed,
            )
        if refused := refusals(found):
            raise DatasetError(
                f"{dataset} can't be used: {refused[0]}",
                next_step=f"See: silo-agent data check {dataset}.",
            )
        decode(found.train[0].path)
        return f"{len(found.train)} training images in the layout {found.layout}"

    def _known(self) -> Identity:
        if self._identity is None:
            raise _Skipped("there is no token")
        return self._identity


async def _admitted(address: str, identity: Identity) -> None:
    """Wait until a channel stands: the coordinator has taken the certificate. No call is made.

    Raises:
        ConnectionFailed: it has not.
    """
    ready, broken = grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE
    async with connected(address, identity) as channel:
        try:
            async with asyncio.timeout(DIAL_S):
                while (state := channel.get_state(try_to_connect=True)) not in (ready, broken):
                    await channel.wait_for_state_change(state)
        except TimeoutError:
            state = broken
    if state is not ready:
        raise ConnectionFailed(
            f"The coordinator at {address} does not take the certificate",
            why="it has expired by the coordinator's clock, or its authority has changed",
            next_step="Ask the coordinator's operators for a new token.",
        )


def _standing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(place for place in (path, *path.parents) if place.exists())
