"""Which identities does the coordinator issue to itself, and when does it do so anew?

The server's and the administrator's. Whenever one is due, or no longer of the issuing authority,
or does not trust what the federation trusts, a new one takes its place; so every step of a
roll-over, and a crash in the middle of one, is followed up by one rule.
"""

from collections.abc import Sequence

from coordinator.folders import Folders
from coordinator.trust.authorities import Authorities
from fedreid.errors import IdentityMissing
from fedreid.limits import SERVER_LIFE_S
from fedreid.names import FederationName, Principal, Role
from fedreid.pki.certificates import key_to_pem, new_key, serves, to_pem
from fedreid.pki.identity import Identity, IdentityStore, renewal_due_s


def keep_own_identities(
    folders: Folders,
    authorities: Authorities,
    *,
    federation: str,
    hostnames: Sequence[str],
    now_s: float,
    trusted_besides: bytes = b"",
) -> list[str]:
    """Issue what is not as it should be; blocks on the disk. Gives the names that were issued."""
    issued = []
    trusted = authorities.bundle_pem + trusted_besides
    for role, name, folder, names in (
        (Role.COORDINATOR, "coordinator", folders.server, hostnames),
        (Role.ADMIN, "admin", folders.admin, ()),
    ):
        store = IdentityStore(folder)
        if _is_good(store, trusted, authorities.issuing.key_id, names, now_s):
            continue
        key = new_key()
        certificate = authorities.issuing.issue(
            Principal(federation=FederationName(federation), role=role, name=name),
            key.public_key(),
            now_s=now_s,
            life_s=SERVER_LIFE_S,
            hostnames=names,
        )
        identity = Identity(
            key_pem=key_to_pem(key),
            certificate_pem=to_pem(certificate),
            authorities_pem=trusted,
        )
        store.save(identity)
        issued.append(name)
    return issued


def _is_good(
    store: IdentityStore,
    trusted: bytes,
    issuer_key_id: str,
    hostnames: Sequence[str],
    now_s: float,
) -> bool:
    try:
        identity = store.load()
    except IdentityMissing:
        return False
    holder = identity.holder()
    return (
        holder.issuer_key_id == issuer_key_id
        and identity.authorities_pem == trusted
        and serves(identity.certificate_pem, hostnames)
        and now_s < renewal_due_s(holder, jitter=0.0)
    )
