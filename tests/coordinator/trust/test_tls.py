"""Does the port speak TLS 1.3 alone, and only to the federation's own?

gRPC reads its cipher suites once per process, so the server is a child that starts as the
product does (``fedreid.launch``); a child without that shows what the setting is worth.
"""

import os
import shutil
import socket
import ssl
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fedreid.names import Role
from fedreid.pki.identity import Identity, IdentityStore
from tests.coordinator.trust.raw import REFUSED, client_context
from tests.parties import Federation

WAIT_S = 10.0


@contextmanager
def served(folder: Path, how: str) -> Iterator[int]:
    """A server child; gives its port."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GRPC_", "FEDREID_"))}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.coordinator.trust.tls_child", str(folder), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            yield int(child.stdout.readline())
        finally:
            child.stdin.close()
            child.wait(WAIT_S)


@pytest.fixture(scope="module")
def folder(federation: Federation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The server's identity."""
    path = tmp_path_factory.mktemp("tls") / "server"
    IdentityStore(path).save(federation.server())
    return path


@pytest.fixture(scope="module")
def port(folder: Path) -> Iterator[int]:
    """A server that was started as the product is."""
    with served(folder, "prepared") as port:
        yield port


@pytest.fixture(scope="module")
def silo(federation: Federation) -> Identity:
    """A good caller."""
    return federation.leaf(Role.SILO, "north")


def shaken_hands(
    port: int,
    folder: Path,
    caller: Identity | None,
    *,
    lowest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
    highest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    protocols: tuple[str, ...] = ("h2",),
) -> str:
    """Shake hands and wait for the server's first bytes; gives the version that was agreed on."""
    context = ssl.create_default_context(cafile=str(folder / "live" / "authorities.pem"))
    context.minimum_version, context.maximum_version = lowest, highest
    context.set_alpn_protocols(list(protocols))
    if caller is not None:
        own = folder.parent / "caller"
        IdentityStore(own).save(caller)
        context.load_cert_chain(own / "live" / "certificate.pem", own / "live" / "key.pem")
    with (
        socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as spoken,
    ):
        spoken.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        if not spoken.recv(9):  # with TLS 1.3 a refused certificate shows only now
            raise ConnectionResetError
        return str(spoken.version())


def test_a_silo_that_speaks_tls_1_3_is_let_in(port: int, folder: Path, silo: Identity) -> None:
    assert shaken_hands(port, folder, silo) == "TLSv1.3"


def test_a_silo_that_speaks_only_tls_1_2_is_not(port: int, folder: Path, silo: Identity) -> None:
    with pytest.raises(REFUSED):
        shaken_hands(port, folder, silo, highest=ssl.TLSVersion.TLSv1_2)


def test_without_the_settings_of_launch_tls_1_2_would_be_spoken(
    folder: Path, silo: Identity
) -> None:
    with served(folder, "bare") as bare:
        told = shaken_hands(bare, folder, silo, highest=ssl.TLSVersion.TLSv1_2)
    assert told == "TLSv1.2"


OLD = [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2]
OLD_CIPHERS = "ALL:COMPLEMENTOFALL:@SECLEVEL=0"


def handshake(port: int, context: ssl.SSLContext) -> str:
    """The version that is agreed on, if any is."""
    with (
        socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as raw,
        context.wrap_socket(raw, server_hostname="127.0.0.1") as spoken,
    ):
        return str(spoken.version())


@pytest.mark.parametrize("version", OLD, ids=lambda version: version.name)
def test_no_version_before_1_3_is_spoken_with_any_cipher_suite(
    port: int, tmp_path: Path, silo: Identity, version: ssl.TLSVersion
) -> None:
    context = client_context(tmp_path, silo)
    context.set_ciphers(OLD_CIPHERS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # old is what it shall be
        context.minimum_version = context.maximum_version = version
    suites = [s["name"] for s in context.get_ciphers() if s["protocol"] != "TLSv1.3"]
    assert len(suites) > 100
    for suite in (OLD_CIPHERS, *suites):  # all that OpenSSL knows, then each alone
        context.set_ciphers(f"{suite}:@SECLEVEL=0")
        with pytest.raises(REFUSED):
            handshake(port, context)


SUITES = {
    "TLS_AES_128_GCM_SHA256": True,
    "TLS_AES_256_GCM_SHA384": True,
    "TLS_CHACHA20_POLY1305_SHA256": True,
    "TLS_AES_128_CCM_SHA256": False,
    "TLS_AES_128_CCM_8_SHA256": False,
}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="asks with the openssl program")
@pytest.mark.parametrize(("suite", "spoken"), SUITES.items())
def test_of_1_3_the_three_strong_cipher_suites_are_spoken(
    port: int, tmp_path: Path, silo: Identity, suite: str, spoken: bool
) -> None:
    IdentityStore(tmp_path).save(silo)
    own = tmp_path / "live"
    done = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_3", "-ciphersuites", suite,
         "-alpn", "h2", "-verify_return_error", "-CAfile", str(own / "authorities.pem"),
         "-cert", str(own / "certificate.pem"), "-key", str(own / "key.pem")],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
        check=False, timeout=WAIT_S,
    )  # fmt: skip
    assert (f"New, TLSv1.3, Cipher is {suite}" in done.stdout) is spoken
    assert ("ALPN protocol: h2" in done.stdout) is spoken


def test_nobody_without_a_certificate_is_let_in(port: int, folder: Path) -> None:
    with pytest.raises(REFUSED):
        shaken_hands(port, folder, None)


def test_nobody_of_another_authority_is_let_in(
    port: int, folder: Path, federation: Federation
) -> None:
    other = Federation.founded(now_s=federation.now_s, name=federation.name)
    with pytest.raises(REFUSED):
        shaken_hands(port, folder, other.leaf(Role.SILO, "north"))


def test_the_server_shows_a_certificate_of_the_federation_for_its_host(
    port: int, folder: Path, silo: Identity, federation: Federation
) -> None:
    stranger = Federation.founded(now_s=federation.now_s).server()
    elsewhere = folder.parent / "stranger"
    IdentityStore(elsewhere).save(stranger)
    with pytest.raises(ssl.SSLCertVerificationError):
        shaken_hands(port, elsewhere, silo)


def started(settings: dict[str, str]) -> list[str]:
    """The environment of a program that prepares itself, and whether it stayed one process."""
    program = (
        "import os; before = os.getpid(); from fedreid import launch; launch.prepare(); "
        "print(os.getpid()); print(sorted(k for k in os.environ if 'FEDREID' in k)); "
        "print(os.environ['GRPC_SSL_CIPHER_SUITES']); print(os.environ['MALLOC_ARENA_MAX'])"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FEDREID_")}
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env={**environment, **settings},
    ) as child:
        out, _ = child.communicate(timeout=WAIT_S)
    assert child.returncode == 0
    pid, *lines = str(out).splitlines()
    assert int(pid) == child.pid
    return lines


def test_a_program_starts_anew_once_with_the_settings_and_keeps_its_process_id() -> None:
    marks, ciphers, arenas = started({"MALLOC_ARENA_MAX": "7"})
    assert marks == "[]"
    assert ciphers.startswith("ECDHE-RSA-")
    assert arenas == "7"  # what an operator tuned stays


def test_an_environment_that_allows_tls_1_2_is_overruled() -> None:
    _, ciphers, _ = started({"GRPC_SSL_CIPHER_SUITES": "ECDHE-ECDSA-AES128-GCM-SHA256"})
    assert "ECDSA" not in ciphers
