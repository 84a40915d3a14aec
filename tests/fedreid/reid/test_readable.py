from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedreid.datasets.records import ImageRecord
from fedreid.errors import DatasetError
from fedreid.reid.measuring import Labelled
from fedreid.reid.transforms import ImageStore

SIZE = {"height_px": 8, "width_px": 4}


def draw(root: Path, count: int, *, damaged: frozenset[int]) -> list[ImageRecord]:
    records = []
    for number in range(count):
        path = root / f"{number:03d}.png"
        Image.new("RGB", (4, 8), (number, 0, 0)).save(path)
        if number in damaged:
            path.write_bytes(path.read_bytes()[:40])
        records.append(ImageRecord(path=path, pid=number, camid=1, split="gallery"))
    return records


@pytest.mark.parametrize("cache_bytes", [0, 10**6])
def test_the_unreadable_images_are_found_whether_or_not_all_fit(
    tmp_path: Path, cache_bytes: int
) -> None:
    records = draw(tmp_path, 150, damaged=frozenset({0, 64, 149}))
    store = ImageStore([r.path for r in records], **SIZE, cache_bytes=cache_bytes)
    assert store.unreadable() == (0, 64, 149)
    assert store.batch(np.array([63, 148]))[:, 0, 0, 0].tolist() == [63, 148]


def test_labels_stay_with_their_images_where_some_are_left_out(tmp_path: Path) -> None:
    labelled = Labelled.readable(draw(tmp_path, 12, damaged=frozenset({3})), **SIZE)
    assert labelled.pids.tolist() == [n for n in range(12) if n != 3]
    reds = labelled.images.batch(np.arange(11))[:, 0, 0, 0]
    assert reds.tolist() == labelled.pids.tolist()


def test_more_than_a_tenth_is_refused_and_the_first_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"005\.png can't be read"):
        Labelled.readable(draw(tmp_path, 12, damaged=frozenset({5, 9})), **SIZE)
    assert len(Labelled.readable([], **SIZE).pids) == 0
