"""Which images does a site's own table name? ``manifest.csv``: path, identity, camera, split.

One line an image, comma-separated, UTF-8, with a heading line. ``path`` is relative to the
manifest's folder, or absolute; ``split`` is train, query or gallery. The split may be left out
for all images, and is then made by :func:`fedreid.datasets.records.split_identities`.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

from fedreid.datasets.records import SPLITS, ImageRecord, number_of, split_identities
from fedreid.errors import DatasetError

MANIFEST_NAME = "manifest.csv"

_NEEDED = ("path", "identity", "camera")


def read_manifest(manifest: Path) -> list[ImageRecord]:
    """The records of all lines.

    Raises:
        DatasetError: the table can't be read, lacks a column, or a line is wrong.
    """
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            _check_columns(manifest, reader.fieldnames or ())
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _wrong(manifest, str(error)) from error
    splits = {_text(row, "split") for _, row in rows}
    if splits <= {""}:
        return split_identities(_record(manifest, n, row, "train") for n, row in rows)
    return [_record(manifest, number, row, _text(row, "split")) for number, row in rows]


def _check_columns(manifest: Path, names: Sequence[str]) -> None:
    missing = [name for name in _NEEDED if name not in names]
    if missing:
        raise _wrong(manifest, f"it has no column {missing[0]!r}")


def _record(manifest: Path, number: int, row: dict[str, str | None], split: str) -> ImageRecord:
    for name in _NEEDED:
        if not _text(row, name):
            raise _wrong(manifest, f"line {number} has no {name}")
    for known in SPLITS:
        if split == known:
            return ImageRecord(
                path=manifest.parent / _text(row, "path"),
                pid=number_of(_text(row, "identity")),
                camid=number_of(_text(row, "camera")),
                split=known,
            )
    raise _wrong(manifest, f"line {number} has the split {split!r}, not train, query or gallery")


def _text(row: dict[str, str | None], name: str) -> str:
    return (row.get(name) or "").strip()


def _wrong(manifest: Path, why: str) -> DatasetError:
    return DatasetError(
        f"The manifest {manifest} can't be used",
        why=why,
        next_step="Give it the columns path,identity,camera,split and correct that line.",
    )
