"""How are silos, federations and models named, and who is behind a certificate's URI?"""

import enum
import re
from dataclasses import dataclass
from typing import NewType

from fedreid.errors import NameRefused

SiloName = NewType("SiloName", str)
FederationName = NewType("FederationName", str)
RunName = NewType("RunName", str)
RoundNumber = NewType("RoundNumber", int)
Digest = NewType("Digest", str)
"""BLAKE3 over bytes, 64 lower-case hexadecimal digits."""

# A DNS label: it becomes a URI path segment, a folder name and a metric label without escaping.
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Role(enum.Enum):
    """What the holder of a client certificate may be."""

    BOOTSTRAP = "bootstrap"
    SILO = "silo"
    ADMIN = "admin"
    COORDINATOR = "coordinator"


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """The party that a certificate's single URI SAN names."""

    federation: FederationName
    role: Role
    name: str

    @property
    def uri(self) -> str:
        """``spiffe://FEDERATION/ROLE/NAME``."""
        return f"spiffe://{self.federation}/{self.role.value}/{self.name}"

    @property
    def silo(self) -> SiloName:
        """The name as a silo's; only silos and their bootstrap certificates have one."""
        assert self.role in (Role.SILO, Role.BOOTSTRAP)
        return SiloName(self.name)


def check_label(text: str, *, what: str) -> str:
    """Return ``text`` if it can name a silo, federation or run.

    Raises:
        NameRefused: it is not 1 to 63 lower-case letters, digits and inner hyphens.
    """
    if not _LABEL.fullmatch(text):
        raise NameRefused(what=what, text=text)
    return text


def silo_name(text: str) -> SiloName:
    """A checked silo name."""
    return SiloName(check_label(text, what="silo name"))


def federation_name(text: str) -> FederationName:
    """A checked federation name."""
    return FederationName(check_label(text, what="federation name"))


def is_digest(text: str) -> bool:
    """Whether ``text`` has the form of a digest."""
    return _DIGEST.fullmatch(text) is not None


def parse_principal(uri: str) -> Principal | None:
    """The principal named by a URI SAN, or None if the URI is not of our form."""
    scheme, _, rest = uri.partition("://")
    parts = rest.split("/")
    if scheme != "spiffe" or len(parts) != 3:
        return None
    federation, role, name = parts
    if not (_LABEL.fullmatch(federation) and _LABEL.fullmatch(name)):
        return None
    if role not in {known.value for known in Role}:
        return None
    return Principal(federation=FederationName(federation), role=Role(role), name=name)
