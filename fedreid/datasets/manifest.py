"""Which images does a site's own table name? ``manifest.csv`` or ``manifest.parquet``.

The columns are path, identity, camera and split; others are passed over. ``path`` is relative to
the manifest's folder, or absolute; ``split`` is train, query or gallery, and may be left out for
all images: :func:`fedreid.datasets.records.split_identities` then makes one. CSV is
comma-separated UTF-8 with a heading line; Parquet columns hold text or whole numbers.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fedreid.datasets.records import SPLITS, ImageRecord, Numbering, Split, split_identities
from fedreid.errors import DatasetError

MANIFEST_NAME = "manifest.csv"
MANIFEST_NAMES = (MANIFEST_NAME, "manifest.parquet")

_NEEDED = ("path", "identity", "camera")
_COLUMNS = (*_NEEDED, "split")

_Row = tuple[str, Mapping[str, object]]
"""Where it stands, for messages ("line 3"), and its cells."""


def find_manifest(folder: Path) -> Path | None:
    """The manifest of a folder, if it has one.

    Raises:
        DatasetError: there are two, which may not say the same.
    """
    found = [folder / name for name in MANIFEST_NAMES if (folder / name).is_file()]
    if len(found) > 1:
        raise DatasetError(
            f"The folder {folder} has two manifests",
            why=f"{' and '.join(MANIFEST_NAMES)} may not say the same",
            next_step="Remove the one that is out of date.",
        )
    return found[0] if found else None


def read_manifest(manifest: Path, identities: Numbering, cameras: Numbering) -> list[ImageRecord]:
    """The records of all rows; names get their numbers from ``identities`` and ``cameras``.

    Raises:
        DatasetError: the table can't be read, lacks a column, or a row is wrong.
    """
    rows = list(_parquet_rows(manifest) if manifest.suffix == ".parquet" else _csv_rows(manifest))
    undivided = all(not _text(cells, "split") for _, cells in rows)
    records = [
        _record(manifest, row, identities, cameras, default="train" if undivided else None)
        for row in rows
    ]
    return split_identities(records) if undivided else records


def _csv_rows(manifest: Path) -> Iterator[_Row]:
    try:
        with manifest.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            _check_columns(manifest, reader.fieldnames or ())
            for cells in reader:
                yield f"line {reader.line_num}", cells
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _wrong(manifest, str(error)) from error


def _parquet_rows(manifest: Path) -> Iterator[_Row]:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(manifest) as file:
            names = file.schema_arrow.names
            _check_columns(manifest, names)
            table = file.read(columns=[name for name in _COLUMNS if name in names])
    except (OSError, arrow.ArrowException) as error:
        raise _wrong(manifest, str(error)) from error
    columns = table.to_pydict()
    for number, cells in enumerate(zip(*columns.values(), strict=True), start=1):
        yield f"row {number}", dict(zip(columns, cells, strict=True))


def _check_columns(manifest: Path, names: Sequence[str]) -> None:
    missing = [name for name in _NEEDED if name not in names]
    if missing:
        raise _wrong(manifest, f"it has no column {missing[0]!r}")


def _record(
    manifest: Path, row: _Row, identities: Numbering, cameras: Numbering, *, default: Split | None
) -> ImageRecord:
    where, cells = row
    for name in _NEEDED:
        if not _text(cells, name):
            raise _wrong(manifest, f"{where} has no {name}")
    written = _text(cells, "split")
    split = default or next((known for known in SPLITS if known == written), None)
    if split is None:
        raise _wrong(manifest, f"{where} has the split {written!r}, not train, query or gallery")
    return ImageRecord(
        path=manifest.parent / _text(cells, "path"),
        pid=identities.of(_text(cells, "identity")),
        camid=cameras.of(_text(cells, "camera")),
        split=split,
    )


def _text(cells: Mapping[str, object], name: str) -> str:
    value = cells.get(name)
    return "" if value is None else str(value).strip()


def _wrong(manifest: Path, why: str) -> DatasetError:
    return DatasetError(
        f"The manifest {manifest} can't be used",
        why=why,
        next_step=f"Give it the columns {','.join(_COLUMNS)} and correct that row.",
    )
