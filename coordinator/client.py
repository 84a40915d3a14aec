"""How does an administrator's command reach the running coordinator?"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from coordinator.folders import Folders
from fedreid.clock import SystemClock
from fedreid.errors import ConnectionFailed
from fedreid.pki.files import IdentityFiles
from fedreid.pki.identity import IdentityStore, check_not_expired
from fedreid.v1 import admin_pb2, admin_pb2_grpc
from fedreid.wire.failures import failure_of

if TYPE_CHECKING:
    from fedreid.v1.admin_pb2_grpc import AdminStub

PageT = TypeVar("PageT", admin_pb2.ListRoundsResponse, admin_pb2.ListEvaluationsResponse)


@contextmanager
def admin_of(data: Path, coordinator: str | None = None) -> "Iterator[AdminStub]":
    """A connection with the admin identity in ``data``, to the coordinator that serves it.

    ``coordinator`` (HOST:PORT) names it where ``data`` is a copy of the identity on another
    machine, or a mounted TLS secret of an administrator.

    Raises:
        IdentityMissing, IdentityBroken: no usable admin identity there.
        ConnectionFailed: the coordinator does not run, or can't be reached.
        FedreidError: as the coordinator refused a call of the block.
    """
    folders = Folders(data)
    secret = IdentityFiles.in_folder(data)
    mounted = secret.certificate.exists()
    identity = secret.load() if mounted else IdentityStore(folders.admin).load()
    check_not_expired(identity, SystemClock())
    address = coordinator or _endpoint(folders)
    credentials = grpc.ssl_channel_credentials(
        identity.authorities_pem, identity.key_pem, identity.certificate_pem
    )
    with grpc.secure_channel(address, credentials) as channel:
        try:
            yield admin_pb2_grpc.AdminStub(channel)
        except grpc.RpcError as error:
            raise failure_of(error, address) from error


def every_round(admin: "AdminStub", run: str = "") -> list[admin_pb2.RoundSummary]:
    """All rounds of a run, by number; empty = the current run."""

    def ask(first: int) -> admin_pb2.ListRoundsResponse:
        return admin.ListRounds(admin_pb2.ListRoundsRequest(run=run, first=first))

    return [summary for page in _pages(ask) for summary in page.rounds]


def every_evaluation(admin: "AdminStub", run: str = "") -> list[admin_pb2.SiloEvaluation]:
    """All figures of a run, by round, silo and model; empty = the current run."""

    def ask(first: int) -> admin_pb2.ListEvaluationsResponse:
        return admin.ListEvaluations(admin_pb2.ListEvaluationsRequest(run=run, first=first))

    return [figure for page in _pages(ask) for figure in page.evaluations]


def _pages(ask: Callable[[int], PageT]) -> Iterator[PageT]:
    first = 0
    while True:
        page = ask(first)
        yield page
        first = page.next
        if not first:
            return


def tree_of(message: Message) -> dict[str, Any]:
    """A message for machines, with the contract's own names."""
    return MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _endpoint(folders: Folders) -> str:
    try:
        return folders.endpoint.read_text("ascii").strip()
    except OSError as error:
        raise ConnectionFailed(
            f"No coordinator has served {folders.root} yet",
            next_step=f"Start it: coordinator serve --data {folders.root}.",
        ) from error
