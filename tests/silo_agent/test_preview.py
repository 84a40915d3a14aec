from pathlib import Path

import pytest

from fedreid.datasets.layouts import load
from silo_agent.preview import CAMERAS, TEST_ROWS, TRAINING_ROWS, contact_sheet
from tests.fixtures.layouts import Crop, write_crops, write_set


def many(root: Path, *, people: int, cameras: int, images: int) -> Path:
    crops = (
        Crop(f"{part}/{person}/{camera}/{image}.jpg", person, camera)
        for part, first in (("train", 1), ("gallery", 1 + people))
        for person in range(first, first + people)
        for camera in range(1, cameras + 1)
        for image in range(images)
    )
    write_crops(root, crops)
    return root


def test_rows_are_people_and_columns_their_cameras(tmp_path: Path) -> None:
    sheet = contact_sheet(load(write_set("folders", tmp_path)))
    assert sorted(column.title for column in sheet.columns) == ["door", "yard 2"]
    assert {row.heading.title for row in sheet.rows} == {"anna", "Борис", "identity 12"}
    for row in sheet.rows:
        for column, cell in zip(sheet.columns, row.cells, strict=True):
            assert cell
            assert {path.parent.name for path in cell} == {column.title}


def test_distractors_and_junk_have_rows_of_their_own(tmp_path: Path) -> None:
    sheet = contact_sheet(load(write_set("market1501", tmp_path)))
    assert [row.heading.title for row in sheet.rows[-2:]] == ["distractors", "junk"]
    assert sheet.footer.startswith("3 of 3 identities")
    assert sheet.caption[1].startswith("4 training images of 2 identities,  1 query image")


def test_a_large_set_is_sampled_evenly(tmp_path: Path) -> None:
    dataset = load(many(tmp_path, people=20, cameras=10, images=2))
    sheet = contact_sheet(dataset)
    assert len(sheet.columns) == CAMERAS
    assert len(sheet.rows) == TRAINING_ROWS + TEST_ROWS
    numbers = [int(row.heading.title.split()[1]) for row in sheet.rows[:TRAINING_ROWS]]
    assert numbers == sorted(numbers)
    assert numbers[0] < 4 < 15 < numbers[-1]
    assert {len(cell) for row in sheet.rows for cell in row.cells} == {1}
    assert "the 8 cameras with most images of 10" in sheet.footer


def test_people_seen_by_several_cameras_come_first(tmp_path: Path) -> None:
    write_crops(tmp_path, (Crop(f"train/{n}/1/1.jpg", n, 1) for n in range(1, 9)))
    write_crops(tmp_path, iter([Crop("train/5/2/1.jpg", 5, 2)]))
    sheet = contact_sheet(load(tmp_path))
    assert [row.heading.title for row in sheet.rows] == ["identity 5"]


def test_an_image_that_is_query_and_gallery_is_shown_once(tmp_path: Path) -> None:
    write_crops(tmp_path, (Crop(f"{p}/{c}/1.jpg", p, c) for p in (1, 2) for c in (1, 2)))
    sheet = contact_sheet(load(tmp_path))
    paths = [path for row in sheet.rows for cell in row.cells for path in cell]
    assert len(paths) == len(set(paths)) == 4


@pytest.mark.parametrize("name", ["cuhk02", "ilids", "prid2011"])
def test_sets_without_a_test_or_with_odd_cameras_have_a_sheet(tmp_path: Path, name: str) -> None:
    sheet = contact_sheet(load(write_set(name, tmp_path)))
    assert sheet.rows
    assert all(len(row.cells) == len(sheet.columns) for row in sheet.rows)
