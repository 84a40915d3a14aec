"""How much may be held open at the port, and for how long?

All that gRPC itself can bound: unfinished handshakes, idle and dead connections, connections in
all, streams of one connection, sizes. It knows no peers, so what one silo may have under way is
bounded by ``access``, which knows who calls.
"""

import resource

from fedreid.limits import (
    CONNECTION_IDLE_S,
    CONNECTIONS,
    FILES_KEPT_FREE,
    FILES_PER_CONNECTION,
    HANDSHAKE_S,
    KEEPALIVE_ANSWER_S,
    KEEPALIVE_S,
    MESSAGE_BYTES,
    PING_ANSWER_S,
    STREAMS_PER_CONNECTION,
    UPLOAD_WINDOW_BYTES,
)

_MS = 1000
_PINGS_APART_S = 5


def room_for_connections() -> int:
    """Let this process open as many files as it may; how many of them can be connections.

    The usual soft limit of 1024 is there for programs that use ``select``, which none here does.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS * FILES_PER_CONNECTION + FILES_KEPT_FREE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return connections_of(soft)


def connections_of(files: int) -> int:
    """Connections that a process with so many files may hold."""
    if files == resource.RLIM_INFINITY:
        return CONNECTIONS
    return max(1, min(CONNECTIONS, (files - FILES_KEPT_FREE) // FILES_PER_CONNECTION))


def connections_told(connections: int) -> str:
    """What a person should know who serves with so few; empty if there is nothing to say."""
    if connections >= CONNECTIONS:
        return ""
    wanted = CONNECTIONS * FILES_PER_CONNECTION + FILES_KEPT_FREE
    return (
        f"at most {connections} connections are let in, for this process may open few files; for "
        f"{CONNECTIONS} let it open {wanted} (ulimit -n, LimitNOFILE= of systemd)"
    )


def port_options(connections: int) -> tuple[tuple[str, int], ...]:
    """The options of a server that holds at most so many connections."""
    return (
        ("grpc.max_receive_message_length", MESSAGE_BYTES),
        ("grpc.max_send_message_length", MESSAGE_BYTES),
        ("grpc.http2.bdp_probe", 0),  # it would widen windows as far as the line is fast
        ("grpc.http2.lookahead_bytes", UPLOAD_WINDOW_BYTES),
        ("grpc.so_reuseport", 0),  # a second coordinator on the port must fail, not share it
        ("grpc.keepalive_time_ms", int(KEEPALIVE_S * _MS)),
        ("grpc.keepalive_timeout_ms", int(KEEPALIVE_ANSWER_S * _MS)),
        ("grpc.http2.ping_timeout_ms", int(PING_ANSWER_S * _MS)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", _PINGS_APART_S * _MS),
        ("grpc.max_concurrent_streams", STREAMS_PER_CONNECTION),
        ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_S * _MS)),
        ("grpc.max_connection_idle_ms", int(CONNECTION_IDLE_S * _MS)),
        ("grpc.max_allowed_incoming_connections", connections),
    )
