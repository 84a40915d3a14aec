"""Is the authority replaced in whole steps, whatever breaks in between?"""

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509

from coordinator.trust import authorities as module
from coordinator.trust.authorities import ACTIVATED, PREPARED, SETTLED, Authorities
from fedreid.errors import IdentityMissing, UsageError
from fedreid.pki.certificates import Authority, authorities_digest, create_authority
from tests.parties import FEDERATION

Step = Callable[[Authorities], None]


def new() -> Authority:
    return create_authority(FEDERATION, now_s=1_900_000_000.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the authorities lie."""
    return tmp_path / "authority"


def everything(found: Authorities) -> tuple[str, str, list[bytes]]:
    return found.step, found.issuing.key_id, [each.certificate_pem for each in found.trusted]


def test_a_roll_over_goes_through_its_steps_and_a_restart_finds_each(folder: Path) -> None:
    old, young = new(), new()
    found = Authorities.create(folder, old)
    steps: list[tuple[Callable[[], None], str, list[Authority]]] = [
        (lambda: None, SETTLED, [old]),
        (lambda: found.prepare(young), PREPARED, [old, young]),
        (found.activate, ACTIVATED, [young, old]),
        (found.drop, SETTLED, [young]),
    ]
    for take, step, trusted in steps:
        take()
        pems = [each.certificate_pem for each in trusted]
        assert everything(found) == (step, trusted[0].key_id, pems)
        assert everything(Authorities(folder)) == everything(found)
        assert found.bundle_pem == b"".join(pems)


def test_the_digest_is_of_whom_is_trusted_not_of_who_issues(folder: Path) -> None:
    found = Authorities.create(folder, new())
    settled = found.digest
    found.prepare(new())
    prepared = found.digest
    found.activate()
    assert found.digest == prepared != settled
    first, second = x509.load_pem_x509_certificates(found.bundle_pem)
    pems = [each.certificate_pem for each in found.trusted]
    assert authorities_digest(b"\n".join(reversed(pems))) == prepared
    assert first.subject != second.subject


@pytest.mark.parametrize(
    ("taken", "refused"),
    [
        ([], ["activate", "drop"]),
        (["prepare"], ["prepare", "drop"]),
        (["prepare", "activate"], ["prepare", "activate"]),
    ],
)
def test_a_step_out_of_its_turn_is_refused(
    folder: Path, taken: list[str], refused: list[str]
) -> None:
    steps: dict[str, Step] = {
        "prepare": lambda found: found.prepare(new()),
        "activate": Authorities.activate,
        "drop": Authorities.drop,
    }
    found = Authorities.create(folder, new())
    for name in taken:
        steps[name](found)
    before = everything(found)
    for name in refused:
        with pytest.raises(UsageError):
            steps[name](found)
    assert everything(Authorities(folder)) == before


@pytest.mark.parametrize("fails", ["write_bytes", "flip_folder", "remove_folder"])
@pytest.mark.parametrize("after", range(4))
def test_a_crash_leaves_the_step_before_or_the_step_after(
    folder: Path, fails: str, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Step] = [
        lambda found: found.prepare(new()), Authorities.activate, Authorities.drop,
    ]  # fmt: skip
    Authorities.create(folder, new())
    real = getattr(module, fails)
    for expected, step in zip((PREPARED, ACTIVATED, SETTLED), taken, strict=True):
        calls = 0

        def crashing(*arguments: object, **named: object) -> object:
            nonlocal calls
            calls += 1
            if calls > after:
                raise ZeroDivisionError
            return real(*arguments, **named)

        before = everything(Authorities(folder))
        with monkeypatch.context() as patch:
            patch.setattr(module, fails, crashing)
            try:
                step(Authorities(folder))
            except ZeroDivisionError:
                found = Authorities(folder)
                assert found.step == expected or everything(found) == before
        if Authorities(folder).step != expected:
            step(Authorities(folder))
        assert Authorities(folder).step == expected


def test_the_key_of_a_dropped_authority_is_gone(folder: Path) -> None:
    old = new()
    found = Authorities.create(folder, old)
    found.prepare(new())
    found.activate()
    found.drop()
    assert len(list(folder.rglob("key.pem"))) == 1
    assert old.certificate_pem not in b"".join(p.read_bytes() for p in folder.rglob("*.pem"))


def test_keys_and_folders_are_private(folder: Path) -> None:
    Authorities.create(folder, new()).prepare(new())
    assert folder.stat().st_mode & 0o777 == 0o700
    for key in folder.rglob("key.pem"):
        assert key.stat().st_mode & 0o777 == 0o600
        assert key.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damage", [b"", b"{}", b'{"trusted":["a"],"issuing":"b"}'])
def test_a_damaged_state_is_an_error_of_our_tree(folder: Path, damage: bytes) -> None:
    Authorities.create(folder, new())
    (folder / "state.json").write_bytes(damage)
    with pytest.raises(IdentityMissing):
        Authorities(folder)
