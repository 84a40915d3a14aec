"""What does the port demand of everybody who connects? TLS 1.3 and a client certificate.

Python's gRPC has no setting for a minimum version. ``fedreid.launch`` therefore leaves TLS 1.2
only cipher suites for RSA, which this ECDSA certificate can't serve, so that every such handshake
fails; and ``access`` checks the version of each call besides.
"""

from collections.abc import Callable

import grpc

from fedreid.pki.identity import Identity


def server_credentials(
    identity: Identity, changed: Callable[[], Identity | None] = lambda: None
) -> grpc.ServerCredentials:
    """Credentials that require a client certificate of the federation's authorities.

    ``changed`` is asked before each handshake, from threads of gRPC's: the identity to go on with,
    or None while there is no other. A new one, be it the same again, also ends every TLS session
    that could be resumed, because the keys of session tickets go with the old.
    """

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        fresh = changed()
        return None if fresh is None else _configuration(fresh)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(identity),
        fetch,  # type: ignore[arg-type]  # the stubs do not know that it may give None
        require_client_authentication=True,
    )


def _configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.key_pem, identity.certificate_pem)],
        root_certificates=identity.authorities_pem,
    )
