"""Which server do the TLS tests knock at? ``python -m tests.coordinator.trust.tls_child``.

Arguments: the folder of an identity, and ``prepared`` or ``bare``: whether it starts as the
product's programs do. Prints its port, then serves until standard input is closed.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path


def main() -> None:
    """Serve."""
    if sys.argv[2] == "prepared":
        from fedreid import launch

        launch.prepare()  # before gRPC is imported: it reads its cipher suites once
    import grpc

    from coordinator.trust.tls import server_credentials
    from fedreid.pki.identity import IdentityStore

    server = grpc.server(ThreadPoolExecutor(1))
    identity = IdentityStore(Path(sys.argv[1])).load()
    port = server.add_secure_port("127.0.0.1:0", server_credentials(identity))
    server.start()
    print(port, flush=True)
    sys.stdin.read()
    server.stop(None).wait()


if __name__ == "__main__":
    main()
