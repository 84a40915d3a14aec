"""Is a join token read only from where it is safe, only if whole, and never shown?"""

import base64
import io
import pprint
import sys
from pathlib import Path

import blake3
import msgspec
import pytest
import typer.main
from hypothesis import given
from hypothesis import strategies as some
from rich.pretty import pretty_repr

from fedreid.errors import TokenRefused
from fedreid.names import Role
from fedreid.pki.tokens import (
    ENVIRONMENT_VARIABLE,
    PREFIX,
    JoinToken,
    decode,
    new_secret,
    read,
    secret_hash,
)
from silo_agent.cli import app
from tests.parties import Federation

TOKEN = JoinToken(
    silo="north",
    coordinator="127.0.0.1:443",
    secret="s3cr3t-" * 4,
    expires_at_s=1.5e9,
    bootstrap_key_pem=b"-----BEGIN PRIVATE KEY-----\nbootstrapkey\n",
    bootstrap_certificate_pem=b"certificate",
    authorities_pem=b"authorities",
)
TEXT = TOKEN.encode()


@pytest.fixture(autouse=True)
def no_token_around(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's own environment has no say."""
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)


def token_file(tmp_path: Path, text: str = TEXT, mode: int = 0o600) -> Path:
    path = tmp_path / "token"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_token_comes_back_from_its_text() -> None:
    assert decode(TEXT) == TOKEN
    assert decode(f"  {TEXT}\n") == TOKEN


def test_a_token_is_one_word_that_survives_a_shell() -> None:
    assert TEXT.startswith(PREFIX)
    assert set(TEXT) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


def test_a_token_holds_a_usable_bootstrap_identity(federation: Federation) -> None:
    bootstrap = federation.leaf(Role.BOOTSTRAP, "north")
    token = msgspec.structs.replace(
        TOKEN,
        bootstrap_key_pem=bootstrap.key_pem,
        bootstrap_certificate_pem=bootstrap.certificate_pem,
        authorities_pem=bootstrap.authorities_pem,
    )
    assert decode(token.encode()).identity() == bootstrap


@given(some.integers(0, len(TEXT) - 1), some.sampled_from("aZ09-_. "))
def test_a_token_with_one_letter_changed_is_refused(place: int, letter: str) -> None:
    changed = TEXT[:place] + letter + TEXT[place + 1 :]
    if changed.strip() != TEXT:
        with pytest.raises(TokenRefused):
            decode(changed)


@given(some.integers(0, len(TEXT) - 1))
def test_a_token_that_lost_its_end_is_refused(length: int) -> None:
    with pytest.raises(TokenRefused):
        decode(TEXT[:length])


def test_a_token_broken_into_two_lines_is_refused_with_what_to_do() -> None:
    with pytest.raises(TokenRefused, match="Copy the whole line again"):
        decode(TEXT[:80] + "\n" + TEXT[80:])


@pytest.mark.parametrize("text", ["", " ", "frj2.abc.def", "token", PREFIX, PREFIX + ".", "ä"])
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(TokenRefused):
        decode(text)


def with_checksum(body: str) -> str:
    return f"{PREFIX}{body}.{blake3.blake3(body.encode()).hexdigest()[:8]}"


@pytest.mark.parametrize("body", ["!!!!", "a", "gA", "AAAA", "ä", "wA", "3wAAAAAAAAA"])
def test_a_right_checksum_over_something_else_is_refused(body: str) -> None:
    with pytest.raises(TokenRefused):
        decode(with_checksum(body))


@given(some.binary(max_size=60))
def test_any_bytes_under_a_right_checksum_are_refused(data: bytes) -> None:
    with pytest.raises(TokenRefused):
        decode(with_checksum(base64.urlsafe_b64encode(data).decode().rstrip("=")))


def test_a_refusal_does_not_quote_the_token() -> None:
    for text in (TEXT[:-1], TEXT[:40], "x" + TEXT):
        with pytest.raises(TokenRefused) as refused:
            decode(text)
        assert text[10:30] not in str(refused.value)


def test_a_token_is_read_from_a_private_file(tmp_path: Path) -> None:
    assert read(token_file(tmp_path)) == TOKEN
    assert read(token_file(tmp_path, TEXT + "\n", 0o600)) == TOKEN


@pytest.mark.parametrize("mode", [0o400, 0o600])
def test_a_file_of_ones_own_is_good(tmp_path: Path, mode: int) -> None:
    assert read(token_file(tmp_path, mode=mode)) == TOKEN


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o602, 0o610, 0o777])
def test_a_file_that_others_may_touch_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(TokenRefused, match="chmod 600"):
        read(token_file(tmp_path, mode=mode))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(TokenRefused, match="Can't read"):
            read(path)


def test_a_file_that_never_ends_is_refused() -> None:
    source = Path("/dev/zero")
    real = Path.read_text

    def bounded(path: Path, *arguments: str, **options: str) -> str:
        assert path != source, "a whole endless file was asked for"
        return real(path, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_text", bounded)
        with pytest.raises(TokenRefused):
            read(source)


def test_a_file_of_no_text_is_refused(tmp_path: Path) -> None:
    path = token_file(tmp_path)
    path.write_bytes(b"\xff\xfe" * 100)
    with pytest.raises(TokenRefused):
        read(path)


def test_a_token_is_read_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(TEXT + "\n"))
    assert read(Path("-")) == TOKEN


def test_a_token_is_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, TEXT)
    assert read(None) == TOKEN


def test_a_file_goes_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "frj1.other")
    assert read(token_file(tmp_path)) == TOKEN


def test_without_a_token_one_is_told_how_to_get_it() -> None:
    with pytest.raises(TokenRefused, match="coordinator token create") as refused:
        read(None)
    assert ENVIRONMENT_VARIABLE in str(refused.value)


def test_a_token_is_never_taken_from_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["silo-agent", "join", "--token", TEXT, TEXT])
    with pytest.raises(TokenRefused):
        read(None)


def test_no_command_has_an_option_for_a_token_itself() -> None:
    command = typer.main.get_command(app)
    commands = getattr(command, "commands", {})
    options = {option for c in commands.values() for p in c.params for option in p.opts}
    assert "--token-file" in options
    assert not {option for option in options if "token" in option} - {"--token-file"}


def test_no_way_of_printing_a_token_shows_its_secrets() -> None:
    shown = [repr(TOKEN), str(TOKEN), f"{TOKEN}", pprint.pformat(TOKEN), repr([TOKEN])]
    shown += [pretty_repr(TOKEN), "north"]
    assert "north" in shown[0]
    for secret in (TOKEN.secret, "bootstrapkey"):
        assert secret not in "".join(shown)


def test_secrets_are_long_and_never_the_same() -> None:
    secrets = {new_secret() for _ in range(50)}
    assert len(secrets) == 50
    assert min(map(len, secrets)) >= 43  # 256 bits in base64


def test_what_the_coordinator_keeps_is_not_the_secret() -> None:
    assert secret_hash("a") != secret_hash("b")
    assert secret_hash("a") == secret_hash("a")
    assert "topsecret" not in secret_hash("topsecret")
