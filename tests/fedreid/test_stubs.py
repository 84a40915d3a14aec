"""Are the committed stubs what ``proto/`` gives?"""

from pathlib import Path

from tests.stubs import ROOT, generate

STUBS = Path("fedreid/v1")
PATTERNS = ("*_pb2*.py", "*_pb2*.pyi")


def stubs_in(root: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for pattern in PATTERNS
        for path in sorted((root / STUBS).glob(pattern))
    }


def test_the_committed_stubs_are_generated_from_the_contract_byte_for_byte(tmp_path: Path) -> None:
    generate(tmp_path)
    made, committed = stubs_in(tmp_path), stubs_in(ROOT)
    assert made.keys() == committed.keys()
    assert [name for name in made if made[name] != committed[name]] == []


def test_every_file_of_the_contract_has_its_stubs() -> None:
    contracts = {path.stem for path in (ROOT / "proto" / STUBS).glob("*.proto")}
    modules = {name.removesuffix("_pb2.py") for name in stubs_in(ROOT) if name.endswith("_pb2.py")}
    assert modules == contracts
