"""How is an identity of the operators' own PKI read? From three PEM files that others replace.

The names are those of a Kubernetes TLS secret, as cert-manager writes it. Whoever replaces the
files renews the identity; this product looks at them from time to time and takes up what fits.
"""

from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from fedreid.errors import IdentityBroken, TrustError, storage_errors
from fedreid.pki.certificates import key_fingerprint, key_from_pem
from fedreid.pki.identity import Identity


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityFiles:
    """Where certificate, key and trusted authorities lie."""

    certificate: Path
    """The party's certificate first, then intermediate ones, if there are any."""
    key: Path
    authorities: Path

    @classmethod
    def in_folder(cls, folder: Path) -> "IdentityFiles":
        """The files of a mounted TLS secret."""
        return cls(
            certificate=folder / "tls.crt", key=folder / "tls.key", authorities=folder / "ca.crt"
        )

    def stamp(self) -> tuple[int, ...]:
        """Changes whenever one of the files was replaced.

        Raises:
            StorageError: one of them is not there.
        """
        with storage_errors("read", self.certificate.parent):
            found = [path.stat() for path in (self.certificate, self.key, self.authorities)]
        return tuple(number for each in found for number in (each.st_mtime_ns, each.st_ino))

    def load(self) -> Identity:
        """The identity as the files hold it now.

        Raises:
            StorageError: a file can't be read.
            IdentityBroken: no P-256 key, a certificate of another key, or no authorities.
        """
        with storage_errors("read", self.certificate.parent):
            identity = Identity(
                key_pem=self.key.read_bytes(),
                certificate_pem=self.certificate.read_bytes(),
                authorities_pem=self.authorities.read_bytes(),
            )
        try:
            key = key_from_pem(identity.key_pem).public_key()
            certificate = x509.load_pem_x509_certificate(identity.certificate_pem)
            x509.load_pem_x509_certificates(identity.authorities_pem)
            certified = certificate.public_key()
        except (TrustError, ValueError) as error:
            raise self._broken(str(error)) from error
        # An RSA key would let TLS 1.2 through; see fedreid.launch.
        if certified != key:
            raise self._broken(f"the certificate is not for the key {key_fingerprint(key)[:16]}…")
        return identity

    def _broken(self, why: str) -> IdentityBroken:
        return IdentityBroken(
            f"The identity in {self.certificate} and {self.key} can't be used",
            why=why,
            next_step="Let your PKI issue a P-256 key with its certificate into these files.",
        )
