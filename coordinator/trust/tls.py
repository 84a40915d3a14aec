"""What does the port demand of everybody who connects? TLS 1.3 and a client certificate.

Python's gRPC has no setting for a minimum version. ``fedreid.launch`` therefore leaves TLS 1.2
only cipher suites for RSA, which this ECDSA certificate can't serve, so that every such handshake
fails; and ``access`` checks the version of each call besides.
"""

import grpc

from fedreid.pki.identity import Identity


def server_credentials(identity: Identity) -> grpc.ServerCredentials:
    """Credentials that require a client certificate of the federation's authority."""
    return grpc.ssl_server_credentials(
        [(identity.key_pem, identity.certificate_pem)],
        root_certificates=identity.authorities_pem,
        require_client_auth=True,
    )
