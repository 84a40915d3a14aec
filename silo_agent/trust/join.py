"""How does a join token become this silo's identity, and how does a silo go?"""

from fedreid import __version__
from fedreid.clock import Clock
from fedreid.errors import TokenRefused, storage_errors
from fedreid.files import make_folder, write_bytes
from fedreid.limits import CALL_S
from fedreid.names import Role
from fedreid.pki.certificates import PrivateKey, key_from_pem, key_to_pem, make_request, new_key
from fedreid.pki.identity import Identity, IdentityStore
from fedreid.pki.tokens import JoinToken
from fedreid.v1 import enrolment_pb2, enrolment_pb2_grpc, federation_pb2, federation_pb2_grpc
from silo_agent.config import Folders, Membership, save_membership
from silo_agent.trust.channel import calling, connected


async def enrol(folders: Folders, token: JoinToken, address: str, clock: Clock) -> Membership:
    """Enrol with ``token`` at ``address`` and keep the identity.

    The key is made here, written before the request is sent, and kept until the answer is
    stored: an attempt that was cut off is repeated with the same key and gets the same
    certificate.

    Raises:
        TokenRefused: expired, unknown to the coordinator, or used by another key.
        ConnectionFailed: the coordinator can't be reached or verified.
    """
    if clock.now_s() >= token.expires_at_s:
        raise TokenRefused(
            "The join token has expired",
            next_step="Ask the coordinator's operators for a new one.",
        )
    make_folder(folders.root, mode=0o700)
    key = _pending_key(folders)
    request = enrolment_pb2.EnrolRequest(
        secret=token.secret, csr_der=make_request(key), agent_version=__version__
    )
    async with connected(address, token.identity()) as channel:
        stub = enrolment_pb2_grpc.EnrolmentStub(channel)
        with calling(address):
            answer = await stub.Enrol(request, timeout=CALL_S)
    identity = Identity(
        key_pem=key_to_pem(key),
        certificate_pem=answer.certificate_pem,
        authorities_pem=answer.authorities_pem,
    )
    principal = identity.holder().principal
    expected = token.identity().holder().principal
    if (principal.federation, principal.role, principal.name) != (
        expected.federation, Role.SILO, token.silo,
    ):  # fmt: skip
        raise TokenRefused(
            f"The coordinator answered with a certificate of {principal.uri}",
            why=f"the token is for the silo {token.silo} of {expected.federation}",
            next_step="Tell the coordinator's operators.",
        )
    membership = Membership(
        federation=principal.federation, silo=principal.name, model_key=answer.model_key
    )
    save_membership(folders, membership)
    IdentityStore(folders.identity).save(identity)
    folders.pending_key.unlink(missing_ok=True)
    return membership


def _pending_key(folders: Folders) -> PrivateKey:
    if folders.pending_key.exists():
        with storage_errors("read", folders.pending_key):
            return key_from_pem(folders.pending_key.read_bytes())
    key = new_key()
    write_bytes(folders.pending_key, key_to_pem(key), mode=0o600)
    return key


async def leave(folders: Folders, address: str) -> None:
    """Take this silo out of its federation; its key and local state stay where they are.

    Raises:
        IdentityMissing, IdentityBroken: it has no usable identity.
        ConnectionFailed, AccessDenied: the coordinator is away, or does not know it any more.
    """
    identity = IdentityStore(folders.identity).load()
    async with connected(address, identity) as channel:
        with calling(address):
            await federation_pb2_grpc.FederationStub(channel).Leave(
                federation_pb2.LeaveRequest(), timeout=CALL_S
            )
