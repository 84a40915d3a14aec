"""Is a coordinator installed from files as it is by hand, and again without losing anything?"""

from collections.abc import Mapping
from pathlib import Path

import pytest
import tomli_w
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from coordinator.cli import app
from coordinator.cluster import found_federation
from coordinator.config import (
    dialled_address,
    initialise,
    load_authority,
    load_config,
    load_model_key,
    read_config,
    renew_config,
)
from coordinator.folders import Folders
from coordinator.founding import admin_files, keys_from, keys_in, new_keys
from fedreid.errors import ConfigRefused, IdentityBroken, StorageError
from fedreid.names import FederationName, Role
from fedreid.pki.certificates import holder_of, key_to_pem
from fedreid.pki.files import IdentityFiles
from fedreid.pki.identity import issued_by
from tests.parties import FakeClock

HARBOUR = FederationName("harbour")


def settings(folder: Path, **changed: object) -> Path:
    """A file of settings."""
    path = folder / "settings.toml"
    path.write_text(tomli_w.dumps({"federation": "harbour", "hostnames": ["a.example"], **changed}))
    return path


def written(folder: Path, files: dict[str, bytes]) -> Path:
    """A folder of files."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_kept_keys_make_the_same_federation_again(tmp_path: Path, clock: FakeClock) -> None:
    keys = new_keys(HARBOUR, now_s=clock.now_s())
    kept = written(tmp_path / "keys", keys.files())
    for name in ("first", "second"):
        folders = Folders(tmp_path / name)
        initialise(folders, read_config(settings(tmp_path)), clock, keys_in(kept))
        assert load_authority(folders).certificate == keys.authority.certificate
        assert load_model_key(folders) is not None
        assert folders.model_key.read_bytes() == keys.model_key_pem


def test_a_second_init_renews_settings_and_nothing_else(tmp_path: Path, clock: FakeClock) -> None:
    folders = Folders(tmp_path / "data")
    initialise(folders, read_config(settings(tmp_path)), clock)
    before = files_below(folders.root)
    assert not renew_config(folders, read_config(settings(tmp_path)))
    assert files_below(folders.root) == before
    assert renew_config(folders, read_config(settings(tmp_path, approval=True)))
    assert load_config(folders).approval
    changed = {
        path for path, content in files_below(folders.root).items() if before[path] != content
    }
    assert changed == {str(folders.config)}


def test_settings_of_another_federation_are_refused(tmp_path: Path, clock: FakeClock) -> None:
    folders = Folders(tmp_path / "data")
    initialise(folders, read_config(settings(tmp_path)), clock)
    with pytest.raises(ConfigRefused, match="is of the federation harbour"):
        renew_config(folders, read_config(settings(tmp_path, federation="airport")))


def test_settings_are_read_strictly(tmp_path: Path) -> None:
    with pytest.raises(ConfigRefused, match="Did you mean 'approval'"):
        read_config(settings(tmp_path, aproval=True))
    with pytest.raises(ConfigRefused, match="Harbour"):
        read_config(settings(tmp_path, federation="Harbour"))
    with pytest.raises(StorageError):
        read_config(tmp_path / "nothing.toml")


def test_tokens_name_the_address_that_silos_dial(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    plain = read_config(settings(tmp_path))
    assert dialled_address(folders, plain) == "a.example:443"
    folders.endpoint.write_text("127.0.0.1:8443\n")
    assert dialled_address(folders, plain) == "a.example:8443"
    fixed = read_config(settings(tmp_path, address="b.example:443"))
    assert dialled_address(folders, fixed) == "b.example:443"


@pytest.mark.parametrize("damage", ["missing", "other key", "no pem"])
def test_damaged_keys_are_refused(clock: FakeClock, damage: str) -> None:
    files = new_keys(HARBOUR, now_s=clock.now_s()).files()
    if damage == "missing":
        del files["model-key.pem"]
    elif damage == "other key":
        files["ca.key"] = key_to_pem(ec.generate_private_key(ec.SECP256R1()))
    else:
        files["ca.crt"] = b"nothing"
    with pytest.raises(IdentityBroken, match="can't be used"):
        keys_from(files, "the Secret keys")


def test_an_administrators_files_are_an_identity_of_the_federation(
    tmp_path: Path, clock: FakeClock
) -> None:
    keys = new_keys(HARBOUR, now_s=clock.now_s())
    files = admin_files(keys, HARBOUR, "admin", now_s=clock.now_s())
    identity = IdentityFiles.in_folder(written(tmp_path / "admin", files)).load()
    holder = holder_of(identity.certificate_pem)
    assert (holder.principal.role, holder.principal.name) == (Role.ADMIN, "admin")


class Kept:
    """Secrets in memory."""

    def __init__(self) -> None:
        self.secrets: dict[str, dict[str, bytes]] = {}

    def create(self, name: str, files: Mapping[str, bytes], kind: str) -> bool:
        if name in self.secrets:
            return False
        self.secrets[name] = dict(files)
        return True

    def read(self, name: str) -> dict[str, bytes]:
        return self.secrets[name]


def test_secrets_are_made_once_and_a_lost_one_anew_from_the_same_authority(
    clock: FakeClock,
) -> None:
    kept = Kept()
    said: list[str] = []

    def found() -> None:
        found_federation(
            kept,
            HARBOUR,
            authority="keys",
            admin="admin",
            clock=clock,
            say=said.append,
        )

    found()
    before = dict(kept.secrets)
    found()
    assert kept.secrets == before
    del kept.secrets["admin"]
    found()
    assert kept.secrets["keys"] == before["keys"] != kept.secrets["admin"]
    authority = keys_from(kept.secrets["keys"], "").authority.certificate
    assert issued_by(authority, x509.load_pem_x509_certificate(kept.secrets["admin"]["tls.crt"]))
    assert not any("PRIVATE KEY" in line for line in said)


def test_init_and_its_repetition_by_command(tmp_path: Path) -> None:
    data = tmp_path / "data"
    keys = written(tmp_path / "keys", new_keys(HARBOUR, now_s=1_900_000_000.0).files())
    command = [
        "init",
        "--data",
        str(data),
        "--settings",
        str(settings(tmp_path)),
        "--keys",
        str(keys),
    ]
    assert CliRunner().invoke(app, command).exit_code == 0
    before = files_below(data)
    again = CliRunner().invoke(app, command)
    assert isinstance(again.exception, ConfigRefused)
    assert CliRunner().invoke(app, [*command, "--if-absent"]).exit_code == 0
    assert files_below(data) == before
