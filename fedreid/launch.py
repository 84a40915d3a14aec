"""Which settings must be there before a process's first import? Set them and start anew.

gRPC reads its cipher suites, and the C allocator its tuning, once at start. So a program's entry
calls :func:`prepare` before it imports anything heavy; the first time this replaces the process
by itself with the environment completed (the process id stays).
"""

import os
import sys

_SETTINGS = {
    # With an ECDSA certificate no TLS 1.2 handshake can succeed; TLS 1.3 suites are not affected.
    "GRPC_SSL_CIPHER_SUITES": "ECDHE-RSA-AES256-GCM-SHA384",
    # One arena per thread would keep the peak of each; blocks of a chunk's size go back at once.
    "MALLOC_ARENA_MAX": "2",
    "MALLOC_MMAP_THRESHOLD_": "4194304",
    "MALLOC_TRIM_THRESHOLD_": "8388608",
    # What gRPC's core logs of damaged requests is for whoever sends them to choose, and no news.
    "GRPC_VERBOSITY": "NONE",
    # fork() is never used with gRPC here; its handlers would only cost.
    "GRPC_ENABLE_FORK_SUPPORT": "0",
}
_MARK = "FEDREID_LAUNCHED"


def prepare() -> None:
    """Make sure that this process runs with the settings above."""
    if os.environ.pop(_MARK, "") == str(os.getpid()):
        return
    environment = {**_SETTINGS, **os.environ, _MARK: str(os.getpid())}
    environment["GRPC_SSL_CIPHER_SUITES"] = _SETTINGS["GRPC_SSL_CIPHER_SUITES"]
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606
