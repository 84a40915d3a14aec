"""How does the agent speak to its coordinator? One mutual-TLS channel, dialled outwards.

Every failure of a call leaves here as an error of our tree. What the coordinator could not do
(its disk, its state) is a :class:`ConnectionFailed` to an agent: it waits and asks again.
"""

import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import grpc
import grpc.aio

from fedreid.errors import ConnectionFailed, FedreidError, TrustError, UpdateRefused
from fedreid.limits import MESSAGE_BYTES, RECONNECT_MAX_S
from fedreid.pki.identity import Identity
from fedreid.wire.failures import failure_of

_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.enable_retries", 0),  # the agent's own loop retries, with offsets
)


@asynccontextmanager
async def connected(address: str, identity: Identity) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to the coordinator, verified against the identity's authorities."""
    credentials = grpc.ssl_channel_credentials(
        identity.authorities_pem, identity.key_pem, identity.certificate_pem
    )
    async with grpc.aio.secure_channel(address, credentials, options=_OPTIONS) as channel:
        yield channel


@contextmanager
def calling(address: str) -> Iterator[None]:
    """Turn a failed call of the block into an error of our tree.

    Raises:
        TrustError: the coordinator does not let this silo in.
        UpdateRefused: it refuses this update.
        ConnectionFailed: anything that time or the coordinator's operators can mend.
    """
    try:
        yield
    except grpc.aio.AioRpcError as failed:
        error = failure_of(failed, address)
        if isinstance(error, TrustError | UpdateRefused | ConnectionFailed):
            raise error from failed
        raise _theirs(address, error) from failed


def pauses_s() -> Iterator[float]:
    """Ever longer pauses between attempts, with jitter, up to the limit."""
    pause_s = 0.5
    while True:
        yield pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, hides nothing
        pause_s = min(2 * pause_s, RECONNECT_MAX_S)


def _theirs(address: str, error: FedreidError) -> ConnectionFailed:
    return ConnectionFailed(
        f"The coordinator at {address} could not answer: {error.what}",
        why=error.why,
        next_step="Its operators have to act; the agent tries again by itself.",
    )
