"""Does a certificate say who its holder is, in one way only?"""

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import assume, given
from hypothesis import strategies as some

from fedreid.errors import TrustError
from fedreid.limits import AUTHORITY_LIFE_S, CLOCK_SKEW_S
from fedreid.names import Principal, Role
from fedreid.pki.certificates import (
    authorities_digest,
    holder_of,
    key_fingerprint,
    key_from_pem,
    key_to_pem,
    make_request,
    new_key,
    requested_key,
    short_fingerprint,
    to_pem,
)
from tests.parties import FEDERATION, Federation, forge

NORTH = f"spiffe://{FEDERATION}/silo/north"
_P256 = bytes.fromhex("06082a8648ce3d030107")
_UNKNOWN_CURVE = bytes.fromhex("06082a8648ce3d030105")
REQUEST = make_request(new_key())


def leaf(federation: Federation, role: Role, *hostnames: str) -> x509.Certificate:
    identity = federation.leaf(role, "north", hostnames=hostnames)
    return x509.load_pem_x509_certificate(identity.certificate_pem)


def request_of(
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey,
) -> bytes:
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.DER)


def test_a_leaf_names_its_holder_by_one_uri_alone(federation: Federation) -> None:
    certificate = leaf(federation, Role.SILO)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == [NORTH]
    holder = holder_of(to_pem(certificate))
    assert holder.principal == Principal(federation=FEDERATION, role=Role.SILO, name="north")


@pytest.mark.parametrize("role", Role)
def test_a_leaf_may_either_dial_or_serve(federation: Federation, role: Role) -> None:
    usage = leaf(federation, role).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    serves = role is Role.COORDINATOR
    expected = ExtendedKeyUsageOID.SERVER_AUTH if serves else ExtendedKeyUsageOID.CLIENT_AUTH
    assert list(usage) == [expected]


def test_a_leaf_can_issue_nothing(federation: Federation) -> None:
    extensions = leaf(federation, Role.SILO).extensions
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert not constraints.value.ca
    usage = extensions.get_extension_for_class(x509.KeyUsage)
    assert usage.critical
    assert not usage.value.key_cert_sign
    assert not usage.value.crl_sign


def test_the_authority_issues_leaves_and_no_further_authority(federation: Federation) -> None:
    certificate = federation.authority.certificate
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert life == datetime.timedelta(seconds=AUTHORITY_LIFE_S + CLOCK_SKEW_S)
    leaf(federation, Role.SILO).verify_directly_issued_by(certificate)


def test_a_leafs_life_begins_earlier_by_the_clock_skew(federation: Federation) -> None:
    holder = holder_of(federation.leaf(Role.SILO, "north", life_s=600).certificate_pem)
    assert holder.not_before_s == pytest.approx(federation.now_s - CLOCK_SKEW_S, abs=1)
    assert holder.not_after_s == pytest.approx(federation.now_s + 600, abs=1)


def test_a_servers_certificate_names_hosts_and_addresses(federation: Federation) -> None:
    certificate = leaf(federation, Role.COORDINATOR, "coordinator.example", "127.0.0.1", "::1")
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["coordinator.example"]
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    assert addresses == ["127.0.0.1", "::1"]
    assert holder_of(to_pem(certificate)).principal.role is Role.COORDINATOR


def test_two_leaves_of_one_key_have_serial_numbers_of_their_own(federation: Federation) -> None:
    key = new_key().public_key()
    principal = Principal(federation=FEDERATION, role=Role.SILO, name="north")
    numbers = {
        federation.authority.issue(principal, key, now_s=0, life_s=1).serial_number
        for _ in range(2)
    }
    assert len(numbers) == 2


@pytest.mark.parametrize(
    "uris",
    [
        (),
        (NORTH, NORTH),
        (NORTH, f"spiffe://{FEDERATION}/admin/north"),
        ("https://north.example",),
        (f"spiffe://{FEDERATION}/silo/north/x",),
        (f"spiffe://{FEDERATION}/root/north",),
    ],
    ids=["none", "twice", "two", "other scheme", "longer", "unknown role"],
)
def test_a_certificate_without_exactly_one_uri_of_our_form_names_nobody(
    federation: Federation, uris: tuple[str, ...]
) -> None:
    with pytest.raises(TrustError):
        holder_of(forge(federation, uris=uris, common_name=NORTH).certificate_pem)


def test_a_common_name_is_never_looked_at(federation: Federation) -> None:
    forged = forge(federation, uris=(NORTH,), common_name="spiffe://harbour/admin/root")
    assert holder_of(forged.certificate_pem).principal.role is Role.SILO


@pytest.mark.parametrize("pem", [b"", b"north", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END"])
def test_what_is_no_certificate_names_nobody(pem: bytes) -> None:
    with pytest.raises(TrustError):
        holder_of(pem)


def test_a_certificate_of_another_curve_is_refused(federation: Federation) -> None:
    forged = forge(federation, uris=(NORTH,), key=ec.generate_private_key(ec.SECP384R1()))
    with pytest.raises(TrustError, match="P-256"):
        holder_of(forged.certificate_pem)


def test_a_fingerprint_is_the_keys_alone(federation: Federation) -> None:
    key = new_key()
    identity = forge(federation, uris=(NORTH,), key=key)
    assert holder_of(identity.certificate_pem).key_fingerprint == key_fingerprint(key.public_key())
    assert key_fingerprint(new_key().public_key()) != key_fingerprint(key.public_key())


def test_a_key_comes_back_from_its_pem() -> None:
    key = new_key()
    assert key_fingerprint(key_from_pem(key_to_pem(key)).public_key()) == key_fingerprint(
        key.public_key()
    )


def pem_of(
    key: ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey,
) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def test_a_key_of_another_kind_or_curve_is_refused() -> None:
    locked = new_key().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    for pem in (
        b"",
        b"no key",
        locked,
        pem_of(ed25519.Ed25519PrivateKey.generate()),
        pem_of(rsa.generate_private_key(65537, 2048)),
        pem_of(ec.generate_private_key(ec.SECP384R1())),
    ):
        with pytest.raises(TrustError):
            key_from_pem(pem)


def test_a_request_gives_the_key_that_signed_it() -> None:
    key = new_key()
    assert key_fingerprint(requested_key(make_request(key))) == key_fingerprint(key.public_key())


def test_nothing_but_the_key_of_a_request_is_looked_at(federation: Federation) -> None:
    key = new_key()
    wish = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("spiffe://harbour/admin/x")])
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "admin")]))
        .add_extension(wish, critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public_key = requested_key(request.public_bytes(serialization.Encoding.DER))
    principal = Principal(federation=FEDERATION, role=Role.SILO, name="north")
    issued = federation.authority.issue(principal, public_key, now_s=federation.now_s, life_s=60)
    assert holder_of(to_pem(issued)).principal == principal


def test_a_request_that_another_key_signed_is_refused() -> None:
    victim, thief = make_request(new_key()), make_request(new_key())
    swapped = victim[:-64] + thief[-64:]
    with pytest.raises(TrustError):
        requested_key(swapped)


def test_a_request_of_another_kind_of_key_is_refused() -> None:
    for key in (
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP384R1()),
        ec.generate_private_key(ec.SECP256K1()),
    ):
        with pytest.raises(TrustError, match="P-256"):
            requested_key(request_of(key))


def test_a_request_of_a_curve_that_nobody_knows_is_refused() -> None:
    request = make_request(new_key())
    assert _P256 in request
    with pytest.raises(TrustError):
        requested_key(request.replace(_P256, _UNKNOWN_CURVE))


@given(some.integers(0, len(REQUEST) - 1), some.integers(1, 255))
def test_a_request_with_one_byte_changed_is_refused(place: int, change: int) -> None:
    damaged = bytearray(REQUEST)
    damaged[place] ^= change
    # One byte is covered by nothing: it counts the unused bits at the end of the signature, which
    # stays the same, as does the key.
    assume(place != REQUEST.index(x509.load_der_x509_csr(REQUEST).signature) - 1)
    with pytest.raises(TrustError):
        requested_key(bytes(damaged))


@given(some.binary(max_size=64))
def test_any_other_bytes_are_no_request(data: bytes) -> None:
    with pytest.raises(TrustError):
        requested_key(data)


def test_a_short_fingerprint_is_four_groups_of_four_of_the_long_one() -> None:
    assert short_fingerprint("00" * 32) == "AAAA-AAAA-AAAA-AAAA"
    assert short_fingerprint("ff" * 10 + "00" * 22) == "7777-7777-7777-7777"
    keys = [key_fingerprint(new_key().public_key()) for _ in range(20)]
    assert len({short_fingerprint(key) for key in keys}) == 20


def test_a_digest_of_authorities_is_that_of_the_set(federation: Federation) -> None:
    one = federation.authority.certificate_pem
    other = Federation.founded(now_s=federation.now_s).authority.certificate_pem
    assert authorities_digest(one + other) == authorities_digest(b"a note\n" + other + one + one)
    assert len({authorities_digest(pem) for pem in (one, other, one + other)}) == 3
    with pytest.raises(TrustError):
        authorities_digest(b"")


def test_a_certificate_names_the_key_of_its_authority(federation: Federation) -> None:
    holder = federation.leaf(Role.SILO, "north").holder()
    assert holder.issuer_key_id == federation.authority.key_id
    unnamed = forge(federation, uris=["spiffe://harbour/silo/north"]).holder()
    assert unnamed.issuer_key_id == ""
