"""Is an upload let in only where its bytes fit?"""

import shutil
from pathlib import Path

import pytest

from coordinator.rounds import spool
from fedreid.errors import StorageError
from fedreid.limits import SPOOL_KEPT_FREE_BYTES
from fedreid.names import Digest
from fedreid.plan import Encoding
from fedreid.wire.encoding import payload_bytes
from fedreid.wire.manifest import Manifest
from fedreid.wire.tensors import Layout, TensorSpec

ELEMENTS = 1000


def announced(encoding: Encoding = "fp32") -> Manifest:
    layout = Layout.of([TensorSpec("w", (ELEMENTS,))])
    return Manifest(
        layout=layout,
        encoding=encoding,
        byte_count=payload_bytes(layout, encoding),
        payload_digest=Digest("0" * 64),
    )


def test_an_upload_takes_what_has_not_come_yet_and_its_decoded_copy(tmp_path: Path) -> None:
    part = tmp_path / "part"
    assert spool.bytes_to_come(announced(), part) == 4 * ELEMENTS
    assert spool.bytes_to_come(announced("bf16"), part) == (2 + 4) * ELEMENTS
    part.write_bytes(bytes(ELEMENTS))
    assert spool.bytes_to_come(announced(), part) == 3 * ELEMENTS
    part.write_bytes(bytes(9 * ELEMENTS))
    assert spool.bytes_to_come(announced(), part) == 0


@pytest.mark.parametrize(("silos", "fits"), [(1, True), (2, True), (3, False)])
def test_what_all_unfinished_uploads_will_take_must_fit_beside_what_stays_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silos: int, fits: bool
) -> None:
    free = SPOOL_KEPT_FREE_BYTES + 2 * 4 * ELEMENTS
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    updates = [(announced(), tmp_path / str(number)) for number in range(silos)]
    if fits:
        spool.check_room(tmp_path, updates)
    else:
        with pytest.raises(StorageError, match="disk is full"):
            spool.check_room(tmp_path, updates)


def test_a_spool_that_can_not_be_looked_at_is_told(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        spool.check_room(tmp_path / "gone", [])
