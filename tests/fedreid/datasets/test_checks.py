from pathlib import Path

import pytest
from PIL import Image

from fedreid.datasets.checks import check

GOOD = (
    "bounding_box_train/0001_c1s1_000001_01.jpg",
    "bounding_box_train/0001_c2s1_000002_01.jpg",
    "bounding_box_train/0002_c1s1_000003_01.jpg",
    "query/0003_c1s1_000004_01.jpg",
    "bounding_box_test/0003_c2s1_000005_01.jpg",
    "bounding_box_test/-1_c1s1_000006_01.jpg",
)


def draw(root: Path, *names: str, size: tuple[int, int] = (8, 16)) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(root / name)
    return root


def without(*parts: str) -> list[str]:
    return [name for name in GOOD if not any(part in name for part in parts)]


def test_a_good_dataset_is_counted_and_not_refused(tmp_path: Path) -> None:
    draw(tmp_path, *GOOD)
    draw(tmp_path, GOOD[0], size=(20, 50))
    heard: list[tuple[int, int]] = []
    found = check(tmp_path, tell=lambda done, total: heard.append((done, total)))
    counts = {s: (c.images, c.identities, c.cameras) for s, c in found.splits.items()}
    assert counts == {"train": (3, 2, 2), "query": (1, 1, 1), "gallery": (2, 1, 2)}
    assert (found.width_px, found.height_px) == ((8, 20), (16, 50))
    assert not found.refusals
    assert not found.unreadable
    assert any("only 3 training images" in sentence for sentence in found.warnings)
    assert any("1 of 2 training identities have a single" in s for s in found.warnings)
    assert heard[-1] == (6, 6)


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (without("train"), "no training image"),
        (without("0001_c2"), "No training identity has two images"),
        (
            [*without("0001_c2"), "bounding_box_train/0001_c1s1_000002_01.jpg"],
            "No training identity is seen by two cameras",
        ),
        (without("query"), "no query image"),
        (without("_test"), "no gallery image"),
        (without("0003_c2"), "No query has its person in another camera"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(
    tmp_path: Path, names: list[str], sentence: str
) -> None:
    (refusal,) = check(draw(tmp_path, *names)).refusals
    assert sentence in refusal


def test_unreadable_files_are_listed_and_refused(tmp_path: Path) -> None:
    draw(tmp_path, *GOOD)
    (tmp_path / GOOD[3]).write_bytes(b"")
    found = check(tmp_path)
    assert [(bad.path, bad.why) for bad in found.unreadable] == [
        (tmp_path / GOOD[3], "it is empty")
    ]
    assert "1 image files can't be read" in found.refusals[0]


def test_lost_queries_and_shared_identities_are_warned_of(tmp_path: Path) -> None:
    draw(tmp_path, *GOOD, "query/0001_c1s1_000009_01.jpg", "query/notes.jpg")
    warnings = check(tmp_path).warnings
    assert any("1 of 2 queries have no match" in sentence for sentence in warnings)
    assert any("1 identities are both trained on" in sentence for sentence in warnings)
    assert any("1 image files have a name" in sentence for sentence in warnings)
