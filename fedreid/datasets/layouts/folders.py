"""How are a site's own crops read?

By a table (:mod:`fedreid.datasets.manifest`), else by their places: ``identity/camera/*.jpg``,
themselves in ``train``, ``query`` and ``gallery`` or in none of them; without a split,
:func:`fedreid.datasets.records.split_identities` makes one. Identities and cameras may have any
name in any alphabet.
"""

from collections.abc import Iterator
from pathlib import Path

from fedreid.datasets.layouts.base import Layout, Options
from fedreid.datasets.layouts.walking import Walk
from fedreid.datasets.manifest import MANIFEST_NAMES, find_manifest, read_manifest
from fedreid.datasets.records import JUNK_PID, SPLITS, ImageRecord, Split, split_identities


def _read(root: Path, walk: Walk, options: Options) -> list[ImageRecord]:
    manifest = find_manifest(root)
    splits = [split for split in SPLITS if (root / split).is_dir()]
    if manifest is not None:
        records = read_manifest(manifest, walk.identities, walk.cameras)
        walk.folders += [manifest, *sorted({record.path.parent for record in records})]
    elif splits:
        records = [r for split in splits for r in _people(root / split, split, walk)]
    else:
        records = split_identities(_people(root, "train", walk))
    junk = [r.path for r in records if r.pid == JUNK_PID and r.split != "gallery"]
    walk.ignore(*junk)
    return [r for r in records if r.split == "gallery" or r.pid != JUNK_PID] if junk else records


def _people(root: Path, split: Split, walk: Walk) -> Iterator[ImageRecord]:
    """Records of ``identity/camera/*``."""
    walk.ignore(*walk.images(root))
    for person in walk.below(root):
        walk.ignore(*walk.images(person))
        pid = walk.identities.of(person.name)
        for camera in walk.below(person):
            camid = walk.cameras.of(camera.name)
            for path in walk.images(camera):
                yield ImageRecord(path=path, pid=pid, camid=camid, split=split)


FOLDERS = Layout(
    name="folders",
    expected=f"{' or '.join(MANIFEST_NAMES)}, or files identity/camera/*.jpg, optionally inside "
    "train, query and gallery",
    recognises=lambda root: find_manifest(root) is not None,
    read=_read,
)
