"""How does a silo's standing change at the running coordinator, over its real port?"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from coordinator.trust.registry import QUARANTINED, SUSPENDED
from fedreid.errors import SiloSuspended
from fedreid.pki.certificates import (
    authorities_digest,
    holder_of,
    key_to_pem,
    make_request,
    new_key,
)
from fedreid.pki.identity import Identity
from fedreid.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    enrolment_pb2,
    enrolment_pb2_grpc,
    federation_pb2,
    federation_pb2_grpc,
)
from silo_agent.trust.channel import calling
from tests.coordinator.trust.assembled import Assembled, lived
from tests.coordinator.trust.callers import CALL_S, calls

HELLO = next(call for call in calls() if call.method.name == "Hello")
_HANDSHAKE_S = 10.0


@pytest.fixture
def coordinator(tmp_path: Path) -> Assembled:
    """A coordinator's data folder, ready to serve."""
    return Assembled(tmp_path / "coordinator")


@asynccontextmanager
async def administrating(coordinator: Assembled) -> AsyncIterator[Any]:
    async with coordinator.channel(coordinator.admin) as channel:
        yield admin_pb2_grpc.AdminStub(channel)


async def suspend(coordinator: Assembled, silo: str, *, suspended: bool = True) -> None:
    async with administrating(coordinator) as admin:
        await admin.SuspendSilo(
            admin_pb2.SuspendSiloRequest(silo=silo, suspended=suspended, reason="moving"),
            timeout=CALL_S,
        )


async def renewed(channel: grpc.aio.Channel) -> Identity:
    """The identity that a silo gets over the connection that it has."""
    key = new_key()
    answer = await enrolment_pb2_grpc.EnrolmentStub(channel).Renew(
        enrolment_pb2.RenewRequest(csr_der=make_request(key)), timeout=CALL_S
    )
    return Identity(
        key_pem=key_to_pem(key),
        certificate_pem=answer.certificate_pem,
        authorities_pem=answer.authorities_pem,
    )


async def task(
    channel: grpc.aio.Channel, *, wait_s: float = 0.0, trusting: str = ""
) -> federation_pb2.NextTaskResponse:
    stub = federation_pb2_grpc.FederationStub(channel)
    request = federation_pb2.NextTaskRequest(wait_s=wait_s, authorities_digest=trusting)
    return await stub.NextTask(request, timeout=wait_s + CALL_S)


def test_an_upload_goes_on_over_the_old_channel_while_the_new_key_is_used(
    coordinator: Assembled,
) -> None:
    async def story(coordinator: Assembled) -> None:
        silo = await coordinator.enrolled("north")
        async with coordinator.channel(silo) as old:
            upload = federation_pb2_grpc.FederationStub(old).SendUpload()
            await coordinator.until_it_is("north", "uploading")
            async with coordinator.channel(await renewed(old)) as new:
                assert await HELLO.make(new) is grpc.StatusCode.OK
                assert await HELLO.make(old) is grpc.StatusCode.OK
            assert not upload.done()
            await upload.done_writing()
            # judged by its content, not turned away for its key
            assert await upload.code() is grpc.StatusCode.FAILED_PRECONDITION

    lived(coordinator, story)


def test_a_bootstrap_certificate_renews_nothing(coordinator: Assembled) -> None:
    async def story(coordinator: Assembled) -> None:
        bootstrap = (await coordinator.token("north")).identity()
        async with coordinator.channel(bootstrap) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as denied:
                await renewed(channel)
        assert denied.value.code() is grpc.StatusCode.PERMISSION_DENIED

    lived(coordinator, story)


@pytest.mark.parametrize("kind", ["upload", "long poll"])
def test_suspension_ends_what_the_silo_has_under_way_and_can_be_undone(
    coordinator: Assembled, kind: str
) -> None:
    async def story(coordinator: Assembled) -> None:
        silo = await coordinator.enrolled("north")
        async with coordinator.channel(silo) as channel:
            stub = federation_pb2_grpc.FederationStub(channel)
            call: Any
            if kind == "upload":
                call = stub.SendUpload()
                await coordinator.until_it_is("north", "uploading")
            else:
                call = stub.NextTask(federation_pb2.NextTaskRequest(wait_s=20))
                ending = asyncio.ensure_future(call.code())
                await coordinator.until_it_is("north", "waiting")
            await suspend(coordinator, "north")
            with pytest.raises(SiloSuspended, match="is suspended: moving"), calling("a:1"):
                await stub.Hello(federation_pb2.HelloRequest(), timeout=CALL_S)
            async with asyncio.timeout(3):
                code = await (call.code() if kind == "upload" else ending)
            assert code is grpc.StatusCode.PERMISSION_DENIED
            (row,) = await coordinator.silos()
            assert (row.state, row.reason) == (SUSPENDED, "moving")
            await suspend(coordinator, "north", suspended=False)
            assert await HELLO.make(channel) is grpc.StatusCode.OK

    lived(coordinator, story)


def test_a_quarantined_silo_is_told_why_it_waits_and_a_person_lets_it_in(
    coordinator: Assembled,
) -> None:
    async def story(coordinator: Assembled) -> None:
        silo = await coordinator.enrolled("north")
        coordinator.registry.set_state("north", QUARANTINED, "its updates are outliers")
        async with coordinator.channel(silo) as channel:
            told = await task(channel)
            assert told.wait.reason == "this silo is quarantined: its updates are outliers"
            await suspend(coordinator, "north", suspended=False)
            assert "quarantined" not in (await task(channel)).wait.reason

    lived(coordinator, story)


@pytest.mark.parametrize(("suspended", "then"), [(False, "nothing to resume"), (True, "")])
def test_what_makes_no_sense_of_a_silos_state_is_refused(
    coordinator: Assembled, suspended: bool, then: str
) -> None:
    async def story(coordinator: Assembled) -> None:
        await coordinator.enrolled("north")
        if suspended:
            await coordinator.revoke("north")
        with pytest.raises(grpc.aio.AioRpcError, match=then or "can't be suspended"):
            await suspend(coordinator, "north", suspended=suspended)

    lived(coordinator, story)


def test_a_waiting_silo_is_told_at_once_that_the_authorities_have_changed(
    coordinator: Assembled,
) -> None:
    async def story(coordinator: Assembled) -> None:
        silo = await coordinator.enrolled("north")
        digest = authorities_digest(silo.authorities_pem)
        async with coordinator.channel(silo) as channel:
            waiting = asyncio.create_task(task(channel, wait_s=20, trusting=digest))
            await coordinator.until_it_is("north", "waiting")
            async with administrating(coordinator) as admin:
                await admin.ChangeAuthorities(
                    admin_pb2.ChangeAuthoritiesRequest(step=admin_pb2.AUTHORITY_STEP_PREPARE)
                )
                async with asyncio.timeout(5):
                    assert (await waiting).WhichOneof("task") == "renew"
                found = await admin.GetAuthorities(admin_pb2.GetAuthoritiesRequest())
            assert (found.step, list(found.awaited)) == ("prepared", ["north"])
            identity = await renewed(channel)
            newer = authorities_digest(identity.authorities_pem)
        async with coordinator.channel(identity) as channel:
            assert (await task(channel, trusting=newer)).WhichOneof("task") == "wait"
        async with administrating(coordinator) as admin:
            found = await admin.GetAuthorities(admin_pb2.GetAuthoritiesRequest())
            assert [each.issuing for each in found.authorities] == [True, False]
            assert list(found.awaited) == []

    lived(coordinator, story)


def test_new_connections_see_the_new_authority_without_a_restart(coordinator: Assembled) -> None:
    async def story(coordinator: Assembled) -> None:
        silo = await coordinator.enrolled("north")
        async with coordinator.channel(silo) as open_before:
            assert await HELLO.make(open_before) is grpc.StatusCode.OK
            for step in (
                admin_pb2.AUTHORITY_STEP_PREPARE,
                admin_pb2.AUTHORITY_STEP_ACTIVATE,
                admin_pb2.AUTHORITY_STEP_DROP,
            ):
                async with administrating(coordinator) as admin:
                    await admin.ChangeAuthorities(
                        admin_pb2.ChangeAuthoritiesRequest(step=step, force=True)
                    )
                coordinator.reload_admin()
                if step == admin_pb2.AUTHORITY_STEP_ACTIVATE:
                    identity = await renewed(open_before)
            # what TLS let in before, every call refuses from now on
            assert await HELLO.make(open_before) is grpc.StatusCode.PERMISSION_DENIED
        async with coordinator.channel(silo) as left_behind:
            assert await HELLO.make(left_behind) is grpc.StatusCode.UNAVAILABLE
        async with coordinator.channel(identity) as channel:
            assert await HELLO.make(channel) is grpc.StatusCode.OK
        assert holder_of(identity.certificate_pem).issuer_key_id != silo.holder().issuer_key_id

    lived(coordinator, story)


def shaken_hands(
    address: str, context: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[bool, ssl.SSLSession | None]:
    """Whether a handshake resumed ``session``, and the session that came of it."""
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=_HANDSHAKE_S) as raw,
        context.wrap_socket(raw, server_hostname=host, session=session) as spoken,
    ):
        spoken.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        assert spoken.recv(9)
        return bool(spoken.session_reused), spoken.session


def test_no_session_from_before_a_revocation_can_be_resumed(
    coordinator: Assembled, tmp_path: Path
) -> None:
    async def story(coordinator: Assembled) -> None:
        silo = await coordinator.enrolled("north")
        await coordinator.enrolled("south")
        names = ("authorities_pem", "certificate_pem", "key_pem")
        for name in names:
            (tmp_path / name).write_bytes(getattr(silo, name))
        context = ssl.create_default_context(cafile=str(tmp_path / names[0]))
        context.set_alpn_protocols(["h2"])
        context.load_cert_chain(tmp_path / names[1], tmp_path / names[2])

        async def resumed(session: ssl.SSLSession | None) -> tuple[bool, Any]:
            return await asyncio.to_thread(shaken_hands, coordinator.address, context, session)

        _, session = await resumed(None)
        again, session = await resumed(session)
        assert again  # or the test would show nothing
        await coordinator.revoke("south")
        again, _ = await resumed(session)
        assert not again

    lived(coordinator, story)
