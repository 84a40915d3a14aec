"""Does a dry run find what stands in a join's way, and never spend the token?"""

import asyncio
import json
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner

from fedreid.audit import read_audit
from fedreid.clock import SystemClock
from fedreid.errors import ExitCode
from fedreid.names import Role
from fedreid.pki import tokens
from fedreid.pki.identity import Identity, IdentityStore
from fedreid.pki.tokens import JoinToken
from silo_agent.cli import app
from silo_agent.config import AgentConfig, Folders, Policy
from silo_agent.trust import handshake
from silo_agent.trust.dry_run import Check, DryRun
from silo_agent.trust.join import enrol
from tests.coordinator.trust.assembled import Assembled, lived
from tests.fixtures.layouts import write_set
from tests.parties import HOUR_S, FakeClock, Federation

SECRET = "s3cret-s3cret-s3cret"
NETWORK = ("address", "tcp", "tls", "issuer", "admission")


@pytest.fixture(autouse=True)
def _no_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """``join`` would replace this process, the tests', by one with other settings."""
    monkeypatch.setattr("fedreid.launch.prepare", lambda: None)


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that never answers is given up after a second."""
    monkeypatch.setattr(handshake, "DIAL_S", 1.0)


@pytest.fixture
def clock(federation: Federation) -> FakeClock:
    """A clock that stands at the federation's founding."""
    return FakeClock(now=federation.now_s)


class Recorder(grpc.GenericRpcHandler):
    """Takes any call, and notes that it was made."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """Note the call; it is unknown."""
        self.calls.append(details.method)


@contextmanager
def recording(identity: Identity, *, clients: bytes) -> Iterator[tuple[Recorder, str]]:
    """A gRPC server that requires a certificate of ``clients``, and its address."""
    recorder = Recorder()
    server = grpc.server(ThreadPoolExecutor(2), handlers=[recorder])
    credentials = grpc.ssl_server_credentials(
        [(identity.key_pem, identity.certificate_pem)],
        root_certificates=clients,
        require_client_auth=True,
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield recorder, f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@contextmanager
def answering(answer: Any) -> Iterator[str]:
    """A TCP server that handles each connection with ``answer``, and its address."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                try:
                    answer(connection)
                except OSError:
                    continue

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join()


def speaking_tls(folder: Path, identity: Identity, *, newest: Any, http2: bool) -> Any:
    """Answers with TLS up to a version, with or without HTTP/2."""
    (folder / "chain.pem").write_bytes(identity.certificate_pem)
    (folder / "key.pem").write_bytes(identity.key_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "chain.pem", folder / "key.pem")
    context.maximum_version = newest
    if http2:
        context.set_alpn_protocols(["h2"])

    def answer(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            secured.recv(1)

    return answer


class Joiner:
    """A silo that wants to join."""

    def __init__(self, root: Path, federation: Federation, clock: FakeClock) -> None:
        self.federation = federation
        self.clock = clock
        self.folders = Folders(root / "agent")
        self.token_file = root / "north.token"
        self.dataset = write_set("market1501", root / "images")
        self.policy = Policy()
        self.bring(federation.leaf(Role.BOOTSTRAP, "north"))

    def bring(self, bootstrap: Identity, *, expires_at_s: float | None = None) -> None:
        """Write the token file."""
        token = JoinToken(
            silo="north",
            coordinator="127.0.0.1:1",
            secret=SECRET,
            expires_at_s=expires_at_s or self.federation.now_s + HOUR_S,
            bootstrap_key_pem=bootstrap.key_pem,
            bootstrap_certificate_pem=bootstrap.certificate_pem,
            authorities_pem=self.federation.authority.certificate_pem,
        )
        self.token_file.touch(0o600)
        self.token_file.write_text(token.encode())

    def checks(self, address: str, *, token: bool = True) -> dict[str, Check]:
        """What a dry run finds."""
        run = DryRun(
            folders=self.folders,
            config=AgentConfig(coordinator=address, dataset=str(self.dataset), policy=self.policy),
            token_file=self.token_file if token else None,
            clock=self.clock,
        )
        return {check.name: check for check in run.checks()}


@pytest.fixture
def joiner(tmp_path: Path, federation: Federation, clock: FakeClock) -> Joiner:
    """A silo with a good token and a small dataset."""
    return Joiner(tmp_path, federation, clock)


def states(checks: dict[str, Check]) -> dict[str, str]:
    return {name: check.state for name, check in checks.items() if check.state != "ok"}


def test_all_is_well_at_a_good_coordinator_and_no_call_is_made(
    joiner: Joiner, federation: Federation
) -> None:
    clients = federation.authority.certificate_pem
    with recording(federation.server(), clients=clients) as (recorder, address):
        checks = joiner.checks(address)
    assert states(checks) == {}
    assert checks["tls"].told == "TLSv1.3 with HTTP/2"
    assert recorder.calls == []
    assert not joiner.folders.root.exists()


def test_a_recorder_would_have_seen_an_enrolment(joiner: Joiner, federation: Federation) -> None:
    clients = federation.authority.certificate_pem
    with recording(federation.server(), clients=clients) as (recorder, address):
        token = tokens.read(joiner.token_file)
        with pytest.raises(Exception, match="UNIMPLEMENTED"):
            asyncio.run(enrol(joiner.folders, token, address, joiner.clock, print))
    assert recorder.calls == ["/fedreid.v1.Enrolment/Enrol"]


def test_a_proxy_that_opens_tls_is_named_and_sees_no_certificate_and_no_call(
    joiner: Joiner, federation: Federation
) -> None:
    proxy = Federation.founded(now_s=federation.now_s, name=federation.name.__class__("snoop"))
    with recording(proxy.server(), clients=proxy.authority.certificate_pem) as (seen, address):
        checks = joiner.checks(address)
    assert states(checks) == {"issuer": "failed", "admission": "skipped"}
    assert "issued by CN=snoop federation" in checks["issuer"].told
    assert "TLS-inspecting proxy" in checks["issuer"].told
    assert checks["issuer"].exit_code == ExitCode.TRUST
    assert seen.calls == []


def test_a_closed_port_stops_only_what_needs_it(joiner: Joiner) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
    checks = joiner.checks(address)
    assert states(checks) == {
        "tcp": "failed", "tls": "skipped", "issuer": "skipped", "admission": "skipped",
    }  # fmt: skip
    assert checks["tcp"].exit_code == ExitCode.CONNECTION
    assert checks["tcp"].next_step


def test_a_name_that_nobody_knows_is_told_as_such(joiner: Joiner) -> None:
    checks = joiner.checks("coordinator.invalid:443")
    assert checks["address"].state == "failed"
    assert "coordinator.invalid is not known" in checks["address"].told
    assert checks["tcp"].state == "skipped"


@pytest.mark.parametrize("address", ["coordinator", "a:", ":1", "a:b", "a:0", "a:65536"])
def test_what_is_no_address_is_refused(joiner: Joiner, address: str) -> None:
    check = joiner.checks(address)["address"]
    assert (check.state, check.exit_code) == ("failed", ExitCode.USAGE)


def test_a_server_of_tls_1_2_is_refused(
    joiner: Joiner, federation: Federation, tmp_path: Path
) -> None:
    old = speaking_tls(tmp_path, federation.server(), newest=ssl.TLSVersion.TLSv1_2, http2=True)
    with answering(old) as address:
        checks = joiner.checks(address)
    assert states(checks) == {"tls": "failed", "issuer": "skipped", "admission": "skipped"}
    assert "does not speak TLS 1.3" in checks["tls"].told


def test_a_server_without_http2_is_refused(
    joiner: Joiner, federation: Federation, tmp_path: Path
) -> None:
    web = speaking_tls(tmp_path, federation.server(), newest=ssl.TLSVersion.TLSv1_3, http2=False)
    with answering(web) as address:
        assert "HTTP/2" in joiner.checks(address)["tls"].told


def test_a_service_that_speaks_no_tls_is_told_from_one_that_does(joiner: Joiner) -> None:
    with answering(lambda connection: connection.sendall(b"220 mail.example\r\n")) as address:
        assert "does not speak TLS" in joiner.checks(address)["tls"].told


def test_a_server_that_hangs_up_or_hangs_is_given_up(joiner: Joiner) -> None:
    for answer in (lambda connection: None, lambda connection: connection.recv(10_000, 0x100)):
        with answering(answer) as address:
            assert joiner.checks(address)["tls"].state == "failed"


def test_a_certificate_for_another_host_says_which_name_to_use(
    joiner: Joiner, federation: Federation
) -> None:
    elsewhere = federation.leaf(Role.COORDINATOR, "coordinator", hostnames=("elsewhere.example",))
    clients = federation.authority.certificate_pem
    with recording(elsewhere, clients=clients) as (recorder, address):
        checks = joiner.checks(address)
    assert "another name than 127.0.0.1" in checks["issuer"].told
    assert "--hostname" in checks["issuer"].next_step
    assert recorder.calls == []


def test_a_coordinator_that_trusts_other_clients_does_not_admit(
    joiner: Joiner, federation: Federation
) -> None:
    other = Federation.founded(now_s=federation.now_s)
    clients = other.authority.certificate_pem
    with recording(federation.server(), clients=clients) as (recorder, address):
        checks = joiner.checks(address)
    assert states(checks) == {"admission": "failed"}
    assert recorder.calls == []


def test_a_forbidden_coordinator_is_not_even_dialled(joiner: Joiner) -> None:
    met = threading.Event()
    joiner.policy = Policy(coordinators=("coordinator.example:443",))
    with answering(lambda connection: met.set()) as address:
        checks = joiner.checks(address)
    assert checks["address"].exit_code == ExitCode.POLICY
    assert [checks[name].state for name in NETWORK[1:]] == ["skipped"] * 4
    assert not met.is_set()


def test_a_token_file_that_others_can_read_is_refused_and_the_rest_is_tried(
    joiner: Joiner, federation: Federation
) -> None:
    joiner.token_file.chmod(0o644)
    clients = federation.authority.certificate_pem
    with recording(federation.server(), clients=clients) as (recorder, address):
        checks = joiner.checks(address)
    assert checks["token"].state == "failed" and "chmod 600" in checks["token"].next_step
    assert checks["tls"].state == "ok"
    assert [checks[n].state for n in ("clock", "issuer", "admission")] == ["skipped"] * 3
    assert recorder.calls == []


def test_a_damaged_token_is_refused(joiner: Joiner) -> None:
    text = joiner.token_file.read_text()
    joiner.token_file.write_text(text[:40] + ("A" if text[40] != "A" else "B") + text[41:])
    assert "checksum" in joiner.checks("a:1")["token"].told


def test_a_token_that_has_expired_is_refused(joiner: Joiner, clock: FakeClock) -> None:
    clock.move(HOUR_S)
    checks = joiner.checks("a:1")
    assert "expired" in checks["token"].told
    assert checks["token"].exit_code == ExitCode.TRUST


def test_a_clock_that_runs_behind_is_noticed(joiner: Joiner, clock: FakeClock) -> None:
    clock.move(-HOUR_S)
    check = joiner.checks("a:1")["clock"]
    assert check.state == "failed" and "Set the clock" in check.next_step


@pytest.mark.parametrize(
    ("shift_s", "told"), [(HOUR_S, "is not valid yet"), (-2 * HOUR_S, "has expired")]
)
def test_a_server_certificate_out_of_its_time_points_at_the_clock(
    joiner: Joiner, federation: Federation, shift_s: float, told: str
) -> None:
    server = replace(federation, now_s=federation.now_s + shift_s).server()
    clients = federation.authority.certificate_pem
    with recording(server, clients=clients) as (_, address):
        check = joiner.checks(address)["issuer"]
    assert told in check.told
    assert "clock" in check.next_step


def test_a_silo_that_plays_the_coordinator_is_told_from_a_proxy(
    joiner: Joiner, federation: Federation
) -> None:
    silo = federation.leaf(Role.SILO, "south", hostnames=("127.0.0.1",))
    clients = federation.authority.certificate_pem
    with recording(silo, clients=clients) as (recorder, address):
        check = joiner.checks(address)["issuer"]
    assert check.state == "failed" and "not that of a coordinator" in check.told
    assert recorder.calls == []


def test_too_little_space_is_told(joiner: Joiner, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")._replace(free=10 * 2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    check = joiner.checks("a:1")["disk"]
    assert check.told.startswith("10 MiB are free")
    assert check.exit_code == ExitCode.STORAGE


def test_a_data_folder_that_others_can_read_is_told(joiner: Joiner) -> None:
    joiner.folders.root.mkdir(mode=0o755)
    joiner.folders.root.chmod(0o755)
    assert "chmod 700" in joiner.checks("a:1")["folders"].next_step
    joiner.folders.root.chmod(0o700)
    assert joiner.checks("a:1")["folders"].state == "ok"


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated"])
def test_images_that_cannot_be_trained_on_are_told(joiner: Joiner, damage: str) -> None:
    train = joiner.dataset / "bounding_box_train"
    if damage == "missing":
        shutil.rmtree(joiner.dataset)
    elif damage == "empty":
        shutil.rmtree(train)
        train.mkdir()
    else:
        for image in train.iterdir():
            image.write_bytes(image.read_bytes()[:100])
    assert joiner.checks("a:1")["dataset"].exit_code == ExitCode.DATASET


def test_a_silo_that_has_enrolled_needs_no_token(joiner: Joiner, federation: Federation) -> None:
    joiner.folders.root.mkdir(mode=0o700)
    IdentityStore(joiner.folders.identity).save(federation.leaf(Role.SILO, "north"))
    clients = federation.authority.certificate_pem
    with recording(federation.server(), clients=clients) as (recorder, address):
        checks = joiner.checks(address, token=False)
    assert states(checks) == {}
    assert "spiffe://harbour/silo/north" in checks["token"].told
    assert recorder.calls == []


def test_without_token_and_identity_it_says_how_to_get_one(joiner: Joiner) -> None:
    check = joiner.checks("a:1", token=False)["token"]
    assert check.state == "failed" and "coordinator token create" in check.next_step


def test_a_real_coordinators_token_is_as_good_after_a_dry_run_as_before(
    joiner: Joiner, tmp_path: Path
) -> None:
    coordinator = Assembled(tmp_path / "coordinator")
    joiner.clock = SystemClock()  # type: ignore[assignment]

    async def story(coordinator: Assembled) -> None:
        token = await coordinator.token("north")
        joiner.token_file.write_text(token.encode())
        before = [line.event for line in read_audit(coordinator.folders.audit)]
        checks = await asyncio.to_thread(joiner.checks, coordinator.address)
        assert states(checks) == {}
        assert [line.event for line in read_audit(coordinator.folders.audit)] == before
        membership = await enrol(joiner.folders, token, coordinator.address, joiner.clock, print)
        assert membership.silo == "north"

    lived(coordinator, story)


def test_the_command_prints_a_line_for_each_step_and_fails_with_the_first_error(
    joiner: Joiner,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
    words = [
        "join", "--dry-run", "--coordinator", address, "--dataset", str(joiner.dataset),
        "--token-file", str(joiner.token_file), "--data", str(joiner.folders.root),
    ]  # fmt: skip
    printed = CliRunner().invoke(app, words)
    assert printed.exit_code == ExitCode.CONNECTION
    assert "failed  tcp" in printed.output and "next: Check the port" in printed.output
    assert SECRET not in printed.output
    told = json.loads(CliRunner().invoke(app, [*words, "--json"]).output)
    assert {check["name"]: check["state"] for check in told}["tcp"] == "failed"
    assert not joiner.folders.root.exists()
