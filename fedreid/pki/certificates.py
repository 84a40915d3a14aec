"""Which certificates does a federation have, and whose is one?

P-256 throughout. The subject is empty of meaning: a party is named by exactly one URI SAN,
``spiffe://FEDERATION/ROLE/NAME``, which the coordinator writes itself.
"""

import base64
import datetime
import functools
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

import blake3
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedreid.errors import TrustError
from fedreid.limits import AUTHORITY_LIFE_S, CLOCK_SKEW_S
from fedreid.names import Digest, FederationName, Principal, Role, parse_principal

PrivateKey = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """What a certificate says of its holder."""

    principal: Principal
    not_before_s: float
    not_after_s: float
    key_fingerprint: str
    """SHA-256 of the public key's SubjectPublicKeyInfo, hexadecimal."""
    issuer_key_id: str = ""
    """Key identifier of the authority that signed it, hexadecimal; empty if it names none."""


@dataclass(frozen=True, kw_only=True)
class Authority:
    """The federation's certificate authority; what follows from it is worked out once."""

    certificate: x509.Certificate
    key: PrivateKey

    @functools.cached_property
    def certificate_pem(self) -> bytes:
        """The certificate alone."""
        return to_pem(self.certificate)

    @functools.cached_property
    def key_id(self) -> str:
        """The identifier by which the certificates that it signs name its key, hexadecimal."""
        return x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()).digest.hex()

    def issue(
        self,
        principal: Principal,
        public_key: PublicKey,
        *,
        now_s: float,
        life_s: float,
        hostnames: Sequence[str] = (),
    ) -> x509.Certificate:
        """A leaf for ``principal``; with ``hostnames`` it may serve, otherwise it may dial."""
        usage = (
            ExtendedKeyUsageOID.SERVER_AUTH
            if principal.role is Role.COORDINATOR
            else ExtendedKeyUsageOID.CLIENT_AUTH
        )
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(principal.uri)]
        names += [_host(name) for name in hostnames]
        builder = _builder(_subject(principal.name), self.certificate.subject, public_key)
        builder = (
            builder.not_valid_before(_instant(now_s - CLOCK_SKEW_S))
            .not_valid_after(_instant(now_s + life_s))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()),
                critical=False,
            )
        )
        return builder.sign(self.key, hashes.SHA256())


def create_authority(federation: FederationName, *, now_s: float) -> Authority:
    """A new self-signed authority for ``federation``."""
    key = new_key()
    # Part of the key in the name: two authorities of a roll-over are told apart by people, too.
    subject = _subject(f"{federation} federation {key_fingerprint(key.public_key())[:8]}")
    certificate = (
        _builder(subject, subject, key.public_key())
        .not_valid_before(_instant(now_s - CLOCK_SKEW_S))
        .not_valid_after(_instant(now_s + AUTHORITY_LIFE_S))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate=certificate, key=key)


def new_key() -> PrivateKey:
    """A new P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_to_pem(key: PrivateKey) -> bytes:
    """The key as unencrypted PKCS #8; it belongs into a file of mode 0600 only."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def key_from_pem(pem: bytes) -> PrivateKey:
    """The P-256 key in ``pem``.

    Raises:
        TrustError: it is no such key.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise TrustError("A private key can't be read", why=str(error)) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TrustError("A private key is of another kind than P-256")
    return key


def to_pem(certificate: x509.Certificate) -> bytes:
    """The certificate in PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def holder_of(certificate_pem: bytes) -> Holder:
    """Whom the certificate names.

    Raises:
        TrustError: it can't be read, or has not exactly one URI SAN of our form.
    """
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        uris = names.value.get_values_for_type(x509.UniformResourceIdentifier)
        key = certificate.public_key()
    except Exception as error:
        # The parser of bytes from outside raises half a dozen kinds for a damaged certificate.
        raise TrustError("A certificate names nobody", why=str(error)) from error
    principal = parse_principal(uris[0]) if len(uris) == 1 else None
    if principal is None:
        raise TrustError("A certificate has not exactly one URI SAN of this product's form")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TrustError("A certificate's key is of another kind than P-256")
    return Holder(
        principal=principal,
        not_before_s=certificate.not_valid_before_utc.timestamp(),
        not_after_s=certificate.not_valid_after_utc.timestamp(),
        key_fingerprint=key_fingerprint(key),
        issuer_key_id=_issuer_key_id(certificate),
    )


def key_fingerprint(key: PublicKey) -> str:
    """SHA-256 of the key's SubjectPublicKeyInfo, hexadecimal."""
    spki = key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    digest = hashes.Hash(hashes.SHA256())
    digest.update(spki)
    return digest.finalize().hex()


def short_fingerprint(fingerprint: str) -> str:
    """The first 80 bits of a key's fingerprint as people read them out: four groups of four."""
    text = base64.b32encode(bytes.fromhex(fingerprint)[:10]).decode()
    return "-".join(text[start : start + 4] for start in range(0, len(text), 4))


def authorities_digest(authorities_pem: bytes) -> Digest:
    """BLAKE3 of a set of authorities' certificates, in whatever order and with whatever between.

    Raises:
        TrustError: they can't be read.
    """
    try:
        certificates = x509.load_pem_x509_certificates(authorities_pem)
    except ValueError as error:
        raise TrustError("The authorities' certificates can't be read", why=str(error)) from error
    encoded = {c.public_bytes(serialization.Encoding.DER) for c in certificates}
    return Digest(blake3.blake3(b"".join(sorted(encoded))).hexdigest())


def make_request(key: PrivateKey) -> bytes:
    """A PKCS #10 request in DER: proof that the asker holds ``key``."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def requested_key(request_der: bytes) -> PublicKey:
    """The public key of a request whose signature holds; nothing else of it is looked at.

    Raises:
        TrustError: no request, a wrong signature, or no P-256 key.
    """
    try:
        request = x509.load_der_x509_csr(request_der)
        key = request.public_key()
        if not request.is_signature_valid:
            raise TrustError("A certificate request is not signed by its own key")
    except TrustError:
        raise
    except Exception as error:
        # The parser of bytes from outside raises half a dozen kinds for a damaged request.
        raise TrustError("A certificate request can't be read", why=str(error)) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise TrustError("A certificate request's key is of another kind than P-256")
    return key


def _issuer_key_id(certificate: x509.Certificate) -> str:
    try:
        named = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    except x509.ExtensionNotFound:
        return ""
    return (named.value.key_identifier or b"").hex()


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: PublicKey
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _subject(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])


def serves(certificate_pem: bytes, hostnames: Sequence[str]) -> bool:
    """Whether a certificate names all of these hosts; who dials another one distrusts it."""
    certificate = x509.load_pem_x509_certificate(certificate_pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return all(_host(name) in names for name in hostnames)


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _instant(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
