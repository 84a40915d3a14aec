"""What does a new silo need to find, verify and convince the coordinator? A join token.

``frj1.`` + base64url(MessagePack) + ``.`` + checksum. It holds a short-lived bootstrap
certificate with its key, good for the Enrol call alone, so that nothing unauthenticated ever
reaches gRPC. Whoever holds it can become the silo once: it is as secret as a password.
"""

import base64
import binascii
import os
import secrets
import stat
import sys
from pathlib import Path

import blake3
import msgspec

from fedreid.errors import TokenRefused
from fedreid.pki.identity import Identity

PREFIX = "frj1."
ENVIRONMENT_VARIABLE = "FEDREID_JOIN_TOKEN"
_CHECKSUM_HEX = 8
_SECRET_BYTES = 32
_TOKEN_MAX_BYTES = 64 * 1024


class JoinToken(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a silo needs for its first call."""

    silo: str
    coordinator: str
    """HOST:PORT."""
    secret: str
    expires_at_s: float
    bootstrap_key_pem: bytes
    bootstrap_certificate_pem: bytes
    authorities_pem: bytes

    def __repr__(self) -> str:  # a secret must not reach a log by accident
        return f"JoinToken(silo={self.silo!r}, …)"

    def __rich_repr__(self) -> list[tuple[str, object]]:  # msgspec's own shows every field
        return [("silo", self.silo)]

    def identity(self) -> Identity:
        """The bootstrap identity."""
        return Identity(
            key_pem=self.bootstrap_key_pem,
            certificate_pem=self.bootstrap_certificate_pem,
            authorities_pem=self.authorities_pem,
        )

    def encode(self) -> str:
        """The token's text."""
        body = base64.urlsafe_b64encode(msgspec.msgpack.encode(self)).decode().rstrip("=")
        return f"{PREFIX}{body}.{_checksum(body)}"


def new_secret() -> str:
    """A fresh secret of 256 bits."""
    return secrets.token_urlsafe(_SECRET_BYTES)


def secret_hash(secret: str) -> str:
    """What the coordinator keeps of a secret. It has full entropy, so one fast hash is enough."""
    return blake3.blake3(b"fedreid token v1\0" + secret.encode()).hexdigest()


def decode(text: str) -> JoinToken:
    """The token in ``text``.

    Raises:
        TokenRefused: it is no token, or was damaged on its way.
    """
    text = text.strip()
    if not text.startswith(PREFIX):
        raise TokenRefused(
            f"This is no join token: one begins with {PREFIX!r}",
            next_step="Copy the whole line that 'coordinator token create' printed.",
        )
    body, _, checksum = text.removeprefix(PREFIX).rpartition(".")
    if not body or _checksum(body) != checksum:
        raise TokenRefused(
            "The join token is damaged: its checksum does not fit",
            why="part of it was lost or changed when it was copied",
            next_step="Copy the whole line again.",
        )
    try:
        raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        return msgspec.msgpack.decode(raw, type=JoinToken)
    except (binascii.Error, ValueError, msgspec.DecodeError) as error:
        raise TokenRefused("The join token can't be read", why=str(error)) from error


def read(source: Path | None) -> JoinToken:
    """The token from a file, from standard input (``-``), or from the environment.

    Never from the command line: arguments can be seen by every user of the machine.

    Raises:
        TokenRefused: there is none, or others may read its file.
    """
    if source is None:
        text = os.environ.get(ENVIRONMENT_VARIABLE, "")
        if not text:
            raise TokenRefused(
                "This silo has no identity yet, and no join token was given",
                next_step=f"Pass --token-file FILE ('-' = standard input) or set "
                f"{ENVIRONMENT_VARIABLE}; the coordinator's operators make one with "
                "'coordinator token create --silo NAME'.",
            )
        return decode(text)
    if str(source) == "-":
        return decode(sys.stdin.read(_TOKEN_MAX_BYTES))
    return decode(_read_private(source))


def _read_private(path: Path) -> str:
    try:
        with path.open(encoding="ascii", errors="replace") as stream:
            mode = stat.S_IMODE(os.fstat(stream.fileno()).st_mode)
            text = "" if mode & 0o077 else stream.read(_TOKEN_MAX_BYTES + 1)
    except OSError as error:
        raise TokenRefused(
            f"Can't read the token file {path}", why=error.strerror or str(error)
        ) from error
    if mode & 0o077:
        raise TokenRefused(
            f"The token file {path} can be read by other users (mode {mode:04o})",
            next_step=f"Run: chmod 600 {path}. If others have seen it, ask for a new token.",
        )
    if len(text) > _TOKEN_MAX_BYTES:
        raise TokenRefused(f"The file {path} is too long for a join token")
    return text


def _checksum(body: str) -> str:
    return blake3.blake3(body.encode()).hexdigest()[:_CHECKSUM_HEX]
