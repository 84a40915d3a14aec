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
        (without("0001_c", "0002_c2"), "There is one training image"),
        (without("0002_c1"), "All training images show one identity"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_in_a_sentence(
    tmp_path: Path, names: list[str], sentence: str
) -> None:
    (refusal,) = check(draw(tmp_path, *names)).refusals
    assert sentence in refusal


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (without("0001_c2"), "No training identity has two images"),
        (
            [*without("0001_c2"), "bounding_box_train/0002_c2s1_000002_01.jpg"],
            "1 of 2 training identities have a single image",
        ),
        (
            [
                *without("0001_c2"),
                "bounding_box_train/0001_c1s1_000002_01.jpg",
                "bounding_box_train/0003_c2s1_000002_01.jpg",
            ],
            "No training identity is seen by two cameras",
        ),
        (
            [*without("0001_c2"), "bounding_box_train/0001_c1s1_000002_01.jpg"],
            "All training images are of one camera",
        ),
        (without("query"), "no query image: it can be trained on, but nothing can be measured"),
        (without("_test"), "no gallery image: it can be trained on, but nothing can be measured"),
        (without("0003_c2"), "No query has its person in another camera"),
    ],
)
def test_what_makes_training_or_figures_poor_is_warned_of(
    tmp_path: Path, names: list[str], sentence: str
) -> None:
    found = check(draw(tmp_path, *names))
    assert not found.refusals
    assert len([warning for warning in found.warnings if sentence in warning]) == 1


def test_one_unreadable_file_is_listed_and_left_out(tmp_path: Path) -> None:
    draw(tmp_path, *GOOD)
    (tmp_path / GOOD[3]).write_bytes(b"")
    found = check(tmp_path)
    assert [(bad.path, bad.why) for bad in found.unreadable] == [
        (tmp_path / GOOD[3], "it is empty")
    ]
    assert not found.refusals
    assert any(
        f"1 of 6 image files can't be read, the first is {tmp_path / GOOD[3]}" in sentence
        for sentence in found.warnings
    )


def test_many_unreadable_files_are_refused(tmp_path: Path) -> None:
    draw(tmp_path, *GOOD)
    (tmp_path / GOOD[3]).write_bytes(b"")
    (tmp_path / GOOD[4]).write_bytes(b"no image")
    (refusal,) = check(tmp_path).refusals
    assert "2 of 6 image files can't be read" in refusal
    assert "no accident" in refusal


def test_lost_queries_and_shared_identities_are_warned_of(tmp_path: Path) -> None:
    draw(tmp_path, *GOOD, "query/0001_c1s1_000009_01.jpg", "query/notes.jpg")
    warnings = check(tmp_path).warnings
    assert any("1 of 2 queries have no match" in sentence for sentence in warnings)
    assert any("1 identities are both trained on" in sentence for sentence in warnings)
    assert any("1 image files have a name" in sentence for sentence in warnings)
    assert any(str(tmp_path / "query/notes.jpg") in sentence for sentence in warnings)


def test_an_incomplete_public_set_is_warned_of_with_both_figures(tmp_path: Path) -> None:
    warnings = check(draw(tmp_path, *GOOD)).warnings
    assert any("training identities 2 (official 751)" in sentence for sentence in warnings)


def test_every_stored_form_of_an_image_counts_and_is_measured_upright(tmp_path: Path) -> None:
    forms = {"L": ".jpg", "CMYK": ".jpg", "P": ".png", "I;16": ".png", "LA": ".png", "1": ".bmp"}
    for number, (mode, suffix) in enumerate(forms.items()):
        path = tmp_path / f"train/person {number}/c{number % 2}/{mode.replace(';', '')}{suffix}"
        path.parent.mkdir(parents=True)
        Image.new(mode, (8, 16)).save(path)
    turned = Image.Exif()
    turned[0x0112] = 6  # its top is at the right
    Image.new("RGB", (16, 8)).save(tmp_path / "train/person 0/c0/turned.jpg", exif=turned)
    found = check(tmp_path)
    assert not found.unreadable
    assert found.splits["train"].images == 7
    assert (found.width_px, found.height_px) == ((8, 8), (16, 16))
