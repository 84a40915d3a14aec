"""How does this silo's identity stay good while it takes part?

One that joining brought is renewed over the connection it has: a new key, a new certificate, a
new version in the store, a second channel that has to prove itself. One of the operators' own PKI
is renewed by others, in files that are looked at. A running call is never cut off by either.
"""

import asyncio
import math
import random
from collections.abc import Callable

from fedreid.audit import AuditLog
from fedreid.clock import Clock
from fedreid.errors import FedreidError, IdentityBroken
from fedreid.limits import CALL_S, KEEPING_S, RENEWAL_PAUSE_S
from fedreid.names import Role
from fedreid.pki.certificates import key_to_pem, make_request
from fedreid.pki.identity import Identity, renewal_due_s
from fedreid.v1 import enrolment_pb2, enrolment_pb2_grpc
from fedreid.work import off_loop
from silo_agent.config import AgentConfig, Folders, Membership, identities
from silo_agent.trust.channel import Line, calling, pauses_s
from silo_agent.trust.join import keep_identity, pending_key


class Renewal:
    """Renews one line's identity, when it is due and when the coordinator asks for it."""

    def __init__(
        self,
        line: Line,
        *,
        folders: Folders,
        config: AgentConfig,
        membership: Membership,
        audit: AuditLog,
        clock: Clock,
        say: Callable[[str], None],
    ) -> None:
        self._line = line
        self._folders = folders
        self._identities = identities(folders, config)
        self._issued_elsewhere = bool(config.identity)
        self._membership = membership
        self._audit = audit
        self._clock = clock
        self._say = say
        self._one_at_a_time = asyncio.Lock()

    async def asked(self, replacing: Identity) -> None:
        """Renew because the coordinator has asked for it; see :meth:`renew`."""
        await self.renew(replacing)
        await asyncio.sleep(RENEWAL_PAUSE_S)

    async def renew(self, replacing: Identity) -> None:
        """Go on with a newer identity than ``replacing``, if the line does not already.

        The new key is on the disk before it is sent, and is kept until its certificate is: what
        is cut off is done again with the same key, and gets the same certificate.

        Raises:
            ConnectionFailed: the coordinator is away; the identity stays good until it ends.
            TrustError: the coordinator refuses, or answers with another's certificate.
            StorageError: the disk is full, read-only or fails.
        """
        async with self._one_at_a_time:
            if self._line.identity != replacing:
                return
            identity = self._identities.load()
            if identity == replacing:
                identity = await self._request()
            else:
                check_is_ours(identity, self._membership)
            await self._line.change(identity)
            self._say("the identity is renewed")

    async def serve(self) -> None:
        """Keep the line on the newest identity, and renew what is due, for ever.

        What fails is told and tried again: the identity that there is stays good until its end.
        """
        while True:
            await self._keep(self._line.identity)

    async def _keep(self, identity: Identity) -> None:
        """Wait until the line has another identity, and see to it."""
        due_s, pauses = self._due_s(identity), pauses_s()
        while self._line.identity == identity:
            left_s = due_s - self._clock.now_s()
            try:
                if left_s <= 0 or self._identities.load() != identity:
                    await self.renew(identity)
                    return
                pause_s = min(left_s, KEEPING_S)
            except FedreidError as error:
                self._say(f"The identity is not renewed yet. {error} Trying again.")
                pause_s = next(pauses)
            await asyncio.sleep(pause_s)

    def _due_s(self, identity: Identity) -> float:
        if self._issued_elsewhere:
            return math.inf
        jitter = random.random()  # noqa: S311 - spreads load, hides nothing
        return renewal_due_s(identity.holder(), jitter=jitter)

    async def _request(self) -> Identity:
        key = await off_loop(pending_key, self._folders)
        request = enrolment_pb2.RenewRequest(csr_der=make_request(key))
        stub = enrolment_pb2_grpc.EnrolmentStub(self._line.channel)
        with calling(self._line.address):
            answer = await stub.Renew(request, timeout=CALL_S)
        identity = Identity(
            key_pem=key_to_pem(key),
            certificate_pem=answer.certificate_pem,
            authorities_pem=answer.authorities_pem,
        )
        check_is_ours(identity, self._membership)
        await off_loop(keep_identity, self._folders, identity)
        holder = identity.holder()
        await off_loop(
            self._audit.append,
            "identity.renewed",
            key_fingerprint=holder.key_fingerprint,
            not_after_s=holder.not_after_s,
        )
        return identity


def check_is_ours(identity: Identity, membership: Membership) -> None:
    """Check that an identity is this silo's.

    Raises:
        IdentityBroken: it names somebody else.
    """
    principal = identity.holder().principal
    ours = (membership.federation, Role.SILO, membership.silo)
    if (principal.federation, principal.role, principal.name) != ours:
        raise IdentityBroken(
            f"The new certificate is of {principal.uri}",
            why=f"this is the silo {membership.silo} of {membership.federation}",
            next_step="Tell the coordinator's operators.",
        )
