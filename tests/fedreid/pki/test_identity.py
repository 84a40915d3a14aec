"""Is an identity kept whole, private, and silent?"""

import os
import pprint
from pathlib import Path

import pytest
from rich.pretty import pretty_repr

from fedreid.errors import FedreidError, IdentityBroken, IdentityMissing, StorageError
from fedreid.names import Role
from fedreid.pki.certificates import key_to_pem, new_key
from fedreid.pki.identity import (
    Identity,
    IdentityStore,
    check_fits,
    check_not_expired,
    renewal_due_s,
)
from tests.parties import HOUR_S, FakeClock, Federation


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def store(tmp_path: Path) -> IdentityStore:
    """An empty store."""
    return IdentityStore(tmp_path / "identity")


@pytest.fixture
def silo(federation: Federation) -> Identity:
    """A silo's identity."""
    return federation.leaf(Role.SILO, "north")


def with_key(identity: Identity, key_pem: bytes) -> Identity:
    return Identity(
        key_pem=key_pem,
        certificate_pem=identity.certificate_pem,
        authorities_pem=identity.authorities_pem,
    )


def with_authorities(identity: Identity, authorities_pem: bytes) -> Identity:
    return Identity(
        key_pem=identity.key_pem,
        certificate_pem=identity.certificate_pem,
        authorities_pem=authorities_pem,
    )


def test_an_identity_comes_back_as_it_was_saved(store: IdentityStore, silo: Identity) -> None:
    assert not store.exists()
    store.save(silo)
    assert store.exists()
    assert store.load() == silo


def test_each_save_is_a_new_version_and_the_newest_older_ones_stay(
    store: IdentityStore, federation: Federation, tmp_path: Path
) -> None:
    versions = [federation.leaf(Role.SILO, "north") for _ in range(5)]
    for identity in versions:
        store.save(identity)
        assert store.load() == identity
    folder = tmp_path / "identity"
    assert names_in(folder) == ["live", "v0003", "v0004", "v0005"]
    assert (folder / "live").readlink() == Path("v0005")
    assert (folder / "v0003" / "key.pem").read_bytes() == versions[2].key_pem


def test_renewal_is_due_after_two_thirds_of_a_life_or_somewhat_earlier(
    federation: Federation,
) -> None:
    for life_s in (6.0, 7 * 86400.0):
        holder = federation.leaf(Role.SILO, "north", life_s=life_s).holder()
        latest, earliest = (
            (renewal_due_s(holder, jitter=jitter) - federation.now_s) / life_s
            for jitter in (0.0, 1.0)
        )
        assert latest == pytest.approx(2 / 3, abs=0.2)  # certificates count whole seconds
        assert earliest == pytest.approx(latest - 0.1, abs=0.01)


def test_key_and_folders_are_private(store: IdentityStore, silo: Identity, tmp_path: Path) -> None:
    store.save(silo)
    folder = tmp_path / "identity"
    for path, mode in (
        (folder, 0o700),
        (folder / "v0001", 0o700),
        (folder / "v0001" / "key.pem", 0o600),
    ):
        assert path.stat().st_mode & 0o777 == mode


def test_a_crash_before_the_link_is_turned_leaves_the_old_version(
    store: IdentityStore, federation: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = (federation.leaf(Role.SILO, "north") for _ in range(2))
    store.save(old)

    def power_cut(*_: object) -> None:
        raise OSError(5, "Input/output error")

    for step in ("symlink", "rename"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, power_cut)
            with pytest.raises(StorageError):
                store.save(new)
        assert store.load() == old
    store.save(new)
    assert store.load() == new


def test_a_copy_that_an_operator_left_beside_the_versions_is_in_nobodys_way(
    store: IdentityStore, silo: Identity, tmp_path: Path
) -> None:
    store.save(silo)
    (tmp_path / "identity" / "v0001.backup").mkdir()
    store.save(silo)
    assert store.load() == silo


def test_no_identity_is_told_apart_from_a_broken_one(store: IdentityStore) -> None:
    with pytest.raises(IdentityMissing):
        store.load()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_key_that_others_may_read_is_refused(
    store: IdentityStore, silo: Identity, tmp_path: Path, mode: int
) -> None:
    store.save(silo)
    (tmp_path / "identity" / "v0001" / "key.pem").chmod(mode)
    with pytest.raises(IdentityBroken, match="chmod 600"):
        store.load()


def test_files_that_do_not_belong_together_are_neither_saved_nor_loaded(
    store: IdentityStore, silo: Identity, tmp_path: Path
) -> None:
    stranger = Federation.founded(now_s=2e9).authority
    key = key_to_pem(new_key())
    cases = {
        "key.pem": with_key(silo, key),
        "authorities.pem": with_authorities(silo, stranger.certificate_pem),
    }
    for name, wrong in cases.items():
        with pytest.raises(IdentityBroken):
            store.save(wrong)
        assert not store.exists() or store.load() == silo
        store.save(silo)
        live = tmp_path / "identity" / "live"
        right = (live / name).read_bytes()
        (live / name).write_bytes(wrong.key_pem if name == "key.pem" else wrong.authorities_pem)
        with pytest.raises(IdentityBroken):
            store.load()
        (live / name).write_bytes(right)
        assert store.load() == silo


def test_an_authority_of_the_same_name_with_another_key_does_not_fit(
    silo: Identity, federation: Federation, tmp_path: Path
) -> None:
    impostor = Federation.founded(now_s=federation.now_s, name=federation.name)
    with pytest.raises(IdentityBroken, match="none of the authorities"):
        check_fits(with_authorities(silo, impostor.authority.certificate_pem), tmp_path)


def test_one_of_several_authorities_is_enough(
    silo: Identity, federation: Federation, tmp_path: Path
) -> None:
    next_one = Federation.founded(now_s=federation.now_s, name=federation.name)
    both = next_one.authority.certificate_pem + silo.authorities_pem
    check_fits(with_authorities(silo, both), tmp_path)


@pytest.mark.parametrize("name", ["key.pem", "certificate.pem", "authorities.pem"])
@pytest.mark.parametrize("damage", [b"", b"garbage", None], ids=["empty", "garbage", "missing"])
def test_a_damaged_or_missing_file_is_an_error_of_our_tree(
    store: IdentityStore, silo: Identity, tmp_path: Path, name: str, damage: bytes | None
) -> None:
    store.save(silo)
    path = tmp_path / "identity" / "live" / name
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage)
    with pytest.raises((IdentityBroken, StorageError)):
        store.load()


def test_a_link_to_nowhere_is_an_error_of_our_tree(store: IdentityStore, tmp_path: Path) -> None:
    folder = tmp_path / "identity"
    folder.mkdir()
    (folder / "live").symlink_to("v0007")
    with pytest.raises(FedreidError):
        store.load()


def test_an_identity_expires_at_its_last_second(federation: Federation) -> None:
    identity = federation.leaf(Role.SILO, "north", life_s=HOUR_S)
    clock = FakeClock(now=identity.holder().not_after_s - 0.001)
    check_not_expired(identity, clock)
    clock.move(0.001)
    with pytest.raises(IdentityBroken, match="has expired"):
        check_not_expired(identity, clock)


def test_no_way_of_printing_an_identity_shows_its_key(silo: Identity) -> None:
    secret = silo.key_pem.decode().splitlines()[1]
    shown = [repr(silo), str(silo), f"{silo}", f"{silo!r}", pprint.pformat(silo)]
    assert secret not in "".join([*shown, pretty_repr(silo), repr([silo])])
