"""How does a join token become this silo's identity, and how does a silo go?"""

import asyncio
from collections.abc import Callable
from pathlib import Path

from fedreid import __version__, faults
from fedreid.audit import AuditLog
from fedreid.clock import Clock
from fedreid.errors import (
    ConfigRefused,
    ConnectionFailed,
    IdentityBroken,
    IdentityMissing,
    TokenRefused,
    storage_errors,
)
from fedreid.files import make_folder, remove_file, write_bytes
from fedreid.limits import CALL_S
from fedreid.names import Principal, Role
from fedreid.pki.certificates import (
    PrivateKey,
    key_fingerprint,
    key_from_pem,
    key_to_pem,
    make_request,
    new_key,
    short_fingerprint,
)
from fedreid.pki.files import IdentityFiles
from fedreid.pki.identity import Identity, IdentityStore
from fedreid.pki.signing import public_from_pem
from fedreid.pki.tokens import JoinToken
from fedreid.v1 import enrolment_pb2, enrolment_pb2_grpc, federation_pb2, federation_pb2_grpc
from silo_agent.config import (
    AgentConfig,
    Folders,
    Membership,
    identities,
    load_membership,
    save_membership,
)
from silo_agent.trust.channel import calling, connected, pauses_s


async def enrol(
    folders: Folders, token: JoinToken, address: str, clock: Clock, say: Callable[[str], None]
) -> Membership:
    """Enrol with ``token`` at ``address`` and keep the identity; it replaces one that is there.

    The key is made here, written before the request is sent, and kept until the answer is
    stored: an attempt that was cut off is repeated with the same key and gets the same
    certificate. Where a person has to approve the key, this waits for it.

    Raises:
        TokenRefused: expired, unknown to the coordinator, or used by another key.
        ConfigRefused: this data folder is another silo's.
        ConnectionFailed: the coordinator can't be reached or verified.
    """
    bootstrap = token.identity().holder()
    silo = Principal(federation=bootstrap.principal.federation, role=Role.SILO, name=token.silo)
    _check_same_silo(folders, silo)
    # A key that was sent in time may be asked for as long as the coordinator can be called.
    sent = folders.pending_key.exists()
    if clock.now_s() >= (bootstrap.not_after_s if sent else token.expires_at_s):
        raise TokenRefused(
            "The join token has expired",
            next_step="Ask the coordinator's operators for a new one.",
        )
    make_folder(folders.root, mode=0o700)
    key = pending_key(folders)
    answer = await _enrolled(token, key, address, say)
    identity = Identity(
        key_pem=key_to_pem(key),
        certificate_pem=answer.certificate_pem,
        authorities_pem=answer.authorities_pem,
    )
    principal = identity.holder().principal
    if principal != silo:
        raise TokenRefused(
            f"The coordinator answered with a certificate of {principal.uri}",
            why=f"the token is for the silo {token.silo} of {silo.federation}",
            next_step="Tell the coordinator's operators.",
        )
    membership = Membership(
        federation=principal.federation, silo=principal.name, model_key=answer.model_key
    )
    save_membership(folders, membership)
    keep_identity(folders, identity)
    AuditLog(folders.audit, clock).append(
        "joined", silo=membership.silo, federation=membership.federation, coordinator=address
    )
    return membership


async def _enrolled(
    token: JoinToken, key: PrivateKey, address: str, say: Callable[[str], None]
) -> enrolment_pb2.EnrolResponse:
    """The coordinator's answer, after a person has approved the key where one has to."""
    request = enrolment_pb2.EnrolRequest(
        secret=token.secret, csr_der=make_request(key), agent_version=__version__
    )
    fingerprint = short_fingerprint(key_fingerprint(key.public_key()))
    waiting = False
    for pause_s in pauses_s():
        try:
            async with connected(address, token.identity()) as channel:
                with calling(address):
                    answer = await enrolment_pb2_grpc.EnrolmentStub(channel).Enrol(
                        request, timeout=CALL_S
                    )
            if not answer.awaits_approval:
                return answer
        except ConnectionFailed as error:
            if not waiting:
                raise
            say(f"{error} Trying again.")
        if not waiting:
            say(f"this silo awaits approval; its key's fingerprint is {fingerprint}")
            say(
                f"tell the coordinator's operators: silo approve {token.silo} "
                f"--fingerprint {fingerprint}"
            )
            waiting = True
        await asyncio.sleep(pause_s)
    raise AssertionError("pauses never end")


def adopt(folders: Folders, place: Path, model_key: Path, clock: Clock) -> Membership:
    """Take part with an identity of the operators' own PKI, whose files lie in ``place``.

    ``model_key`` is the coordinator's ``model-key.pub``, which an enrolment would have brought.

    Raises:
        IdentityBroken, StorageError: the files can't be used.
        ConfigRefused: this data folder is another silo's.
    """
    principal = IdentityFiles.in_folder(place).load().holder().principal
    if principal.role is not Role.SILO:
        raise IdentityBroken(
            f"The certificate in {place} is of {principal.uri}",
            next_step="Let your PKI issue one with the URI spiffe://FEDERATION/silo/NAME.",
        )
    _check_same_silo(folders, principal)
    with storage_errors("read", model_key):
        pem = model_key.read_bytes()
    membership = Membership(
        federation=principal.federation,
        silo=principal.name,
        model_key=public_from_pem(pem),
    )
    make_folder(folders.root, mode=0o700)
    save_membership(folders, membership)
    AuditLog(folders.audit, clock).append(
        "joined", silo=membership.silo, federation=membership.federation, identity="own PKI"
    )
    return membership


def keep_identity(folders: Folders, identity: Identity) -> None:
    """Make an identity the live one, durably; its key is pending no more."""
    IdentityStore(folders.identity).save(identity)
    remove_file(folders.pending_key)


def pending_key(folders: Folders) -> PrivateKey:
    """The key of a request that was not answered yet, or a new one; on the disk in either case."""
    if folders.pending_key.exists():
        with storage_errors("read", folders.pending_key):
            key = key_from_pem(folders.pending_key.read_bytes())
        if not _is_live(folders, key):
            return key
    key = new_key()
    with faults.step("key.pending.write"):
        write_bytes(folders.pending_key, key_to_pem(key), mode=0o600)
    return key


def _is_live(folders: Folders, key: PrivateKey) -> bool:
    """Whether the key's request was answered, and only its removal was cut off by a crash."""
    try:
        live = IdentityStore(folders.identity).load()
    except (IdentityMissing, IdentityBroken):
        return False
    return live.holder().key_fingerprint == key_fingerprint(key.public_key())


def _check_same_silo(folders: Folders, principal: Principal) -> None:
    """An identity may be replaced, but what else lies in the folder is one silo's."""
    if not folders.membership.exists():
        return
    before = load_membership(folders)
    if (before.federation, before.silo) != (principal.federation, principal.name):
        raise ConfigRefused(
            f"The data folder {folders.root} is of the silo {before.silo} of {before.federation}",
            why=f"the new identity is for {principal.name} of {principal.federation}",
            next_step="Choose another folder with --data.",
        )


async def leave(folders: Folders, config: AgentConfig, clock: Clock) -> None:
    """Take this silo out of its federation; its key and local state stay where they are.

    Raises:
        IdentityMissing, IdentityBroken: it has no usable identity.
        ConnectionFailed, AccessDenied: the coordinator is away, or does not know it any more.
    """
    address = config.coordinator
    identity = identities(folders, config).load()
    async with connected(address, identity) as channel:
        with calling(address):
            await federation_pb2_grpc.FederationStub(channel).Leave(
                federation_pb2.LeaveRequest(), timeout=CALL_S
            )
    AuditLog(folders.audit, clock).append("left", coordinator=address)
