"""Who answers at an address, and how? TLS is spoken without any certificate of this silo.

gRPC says of a handshake only that it failed. Python's own TLS says why, and shows whose
certificate was presented: a firewall's, a proxy's that opens TLS, or another federation's.
"""

import socket
import ssl
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from cryptography import x509

from fedreid.errors import ConnectionFailed, TrustError, UsageError
from fedreid.limits import DIAL_S
from fedreid.pki.identity import issued_by

_HTTP2 = "h2"
_NOT_YET_VALID, _EXPIRED, _OTHER_NAME, _OTHER_IP = 9, 10, 62, 64
"""OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID, _CERT_HAS_EXPIRED, _HOSTNAME_MISMATCH and
_IP_ADDRESS_MISMATCH."""
_NAME_CHARACTERS = 200
"""Of a stranger's name that is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Presented:
    """What a server has shown."""

    tls_version: str
    certificate: x509.Certificate
    issuer: str
    """Who issued the certificate, by its own account."""


def split(address: str) -> tuple[str, int]:
    """Host and port.

    Raises:
        UsageError: it is not HOST:PORT.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"{address!r} is no address", next_step="Write HOST:PORT.")
    return host.strip("[]"), int(port)


def resolve(address: str) -> list[str]:
    """The host's IP addresses.

    Raises:
        ConnectionFailed: its name is not known here.
    """
    host, port = split(address)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConnectionFailed(
            f"The name {host} is not known on this machine",
            why=str(error),
            next_step="Check its spelling, and this machine's DNS settings.",
        ) from error
    return sorted({str(entry[4][0]) for entry in found})


def dial(address: str) -> socket.socket:
    """An open TCP connection.

    Raises:
        ConnectionFailed: nobody listens, or a firewall lets nothing through.
    """
    try:
        return socket.create_connection(split(address), timeout=DIAL_S)
    except TimeoutError as error:
        raise ConnectionFailed(
            f"Nothing answers at {address} within {DIAL_S:g} s",
            why="a firewall may drop what this machine sends",
            next_step="Ask for an outgoing TCP connection to that port.",
        ) from error
    except OSError as error:
        raise ConnectionFailed(
            f"The port at {address} can't be reached",
            why=error.strerror or str(error),
            next_step="Check the port, and that the coordinator runs.",
        ) from error


def presented_at(address: str) -> Presented:
    """Which certificate is presented there, whoever has issued it.

    Raises:
        ConnectionFailed: what answers does not speak TLS 1.3 with HTTP/2.
        TrustError: what it presents can't be read.
    """
    context = _context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # only looked at: nothing is sent to whoever this is
    with _handshake(address, context) as secured:
        der = secured.getpeercert(binary_form=True)
        version, protocol = secured.version(), secured.selected_alpn_protocol()
    assert der is not None and version is not None
    if protocol != _HTTP2:
        raise ConnectionFailed(
            f"What answers at {address} does not agree on HTTP/2 (ALPN)",
            why="a proxy that opens TLS, or no coordinator, stands there",
            next_step="Have the proxy pass this address on unopened, or correct the address.",
        )
    try:
        certificate = x509.load_der_x509_certificate(der)
        issuer = certificate.issuer.rfc4514_string()[:_NAME_CHARACTERS]
    except ValueError as error:
        raise TrustError(
            f"The certificate at {address} can't be read",
            why=str(error),
            next_step="Correct the address: this is no coordinator.",
        ) from error
    return Presented(
        tls_version=version, certificate=certificate, issuer=issuer or "nobody by name"
    )


def check_issued(address: str, presented: Presented, authorities_pem: bytes) -> None:
    """Check that the coordinator's certificate holds, as every later connection will.

    Raises:
        TrustError: another issuer, another host, or not valid by this machine's clock.
        ConnectionFailed: the connection broke.
    """
    context = _context()
    context.load_verify_locations(cadata=authorities_pem.decode("ascii"))
    try:
        with _handshake(address, context):
            return
    except ssl.SSLCertVerificationError as error:
        authorities = x509.load_pem_x509_certificates(authorities_pem)
        raise _distrust(address, presented, authorities, error) from error


def _distrust(
    address: str,
    presented: Presented,
    authorities: Sequence[x509.Certificate],
    error: ssl.SSLCertVerificationError,
) -> TrustError:
    if error.verify_code in (_NOT_YET_VALID, _EXPIRED):
        behind = error.verify_code == _NOT_YET_VALID
        return TrustError(
            f"By this machine's clock the certificate at {address} "
            + ("is not valid yet" if behind else "has expired"),
            why=f"it is valid from {presented.certificate.not_valid_before_utc} "
            f"to {presented.certificate.not_valid_after_utc}",
            next_step="Set this machine's clock; if it is right, tell the coordinator's operators.",
        )
    if error.verify_code in (_OTHER_NAME, _OTHER_IP):
        return TrustError(
            f"The certificate at {address} is for another name than {split(address)[0]}",
            why=error.verify_message,
            next_step="Use the host name that the coordinator was set up with (init --hostname).",
        )
    if any(issued_by(authority, presented.certificate) for authority in authorities):
        return TrustError(
            f"The certificate at {address} is not that of a coordinator",
            why=error.verify_message,
            next_step="Tell the coordinator's operators: some other party answers there.",
        )
    return TrustError(
        f"The certificate at {address} was issued by {presented.issuer}, "
        "not by this federation's authority",
        why="a TLS-inspecting proxy stands in between, or another federation answers there",
        next_step="Have the proxy pass this address on unopened; never join through it.",
    )


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([_HTTP2])
    return context


@contextmanager
def _handshake(address: str, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    with dial(address) as plain:
        try:
            secured = context.wrap_socket(plain, server_hostname=split(address)[0])
        except ssl.SSLCertVerificationError:
            raise
        except (OSError, ValueError) as error:
            raise _no_tls(address, error) from error
        with secured:
            yield secured


def _no_tls(address: str, error: OSError | ValueError) -> ConnectionFailed:
    reason = str(getattr(error, "reason", "") or error)
    if "PROTOCOL_VERSION" in reason:
        return ConnectionFailed(
            f"What answers at {address} does not speak TLS 1.3",
            why="a proxy that opens TLS, or no coordinator, stands there",
            next_step="Have the proxy pass this address on unopened, or correct the address.",
        )
    if "WRONG_VERSION_NUMBER" in reason:
        return ConnectionFailed(
            f"What answers at {address} does not speak TLS",
            next_step="Correct the address: another service listens there.",
        )
    return ConnectionFailed(
        f"The TLS handshake with {address} broke off",
        why=reason,
        next_step="A firewall or proxy on the way may end it: ask for this address to pass.",
    )
