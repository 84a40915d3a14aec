"""Every layout, on a generated set with its exact file grammar."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from fedreid.datasets.images import decode
from fedreid.datasets.layouts import LAYOUTS, REPEATS, Dataset, incompleteness, load
from fedreid.datasets.layouts.official import OFFICIAL
from fedreid.datasets.records import ImageRecord
from fedreid.errors import DatasetError, UsageError
from tests.fixtures.layouts import SETS, Crop, write_crops, write_set

SIZES = {
    "market1501": (4, 1, 3),
    "dukemtmc-reid": (4, 1, 1),
    "msmt17": (4, 1, 2),
    "msmt17 V2": (4, 1, 2),
    "msmt17 repackaged": (4, 1, 1),
    "cuhk03-np": (6, 1, 1),
    "cuhk03-np both": (6, 1, 1),
    "cuhk01": (12, 8, 8),
    "cuhk02": (16, 0, 0),
    "viper": (6, 3, 3),
    "prid2011": (60, 2, 5),
    "prid2011 single shot": (6, 2, 5),
    "prid2011 multi shot": (60, 2, 5),
    "3dpes": (12, 6, 12),
    "fedreid-preprocessed large": (4, 1, 3),
    "fedreid-preprocessed small": (8, 4, 4),
    "folders": (4, 1, 2),
}
"""Training, query and gallery images; of i-LIDS they depend on the draw."""

SMALL = ("cuhk01", "viper", "prid2011", "3dpes", "ilids")


def load_set(name: str, root: Path) -> Dataset:
    return load(write_set(name, root), withdrawn_confirmed=True)


def facts(records: Iterable[ImageRecord]) -> list[tuple[str, int, int]]:
    return [(record.path.name, record.pid, record.camid) for record in records]


def pids(records: Iterable[ImageRecord]) -> set[int]:
    return {record.pid for record in records}


def everything(dataset: Dataset) -> list[ImageRecord]:
    return [*dataset.train, *dataset.query, *dataset.gallery]


def test_every_layout_has_a_generated_set() -> None:
    assert {name.split()[0] for name in SETS} == set(LAYOUTS)


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_recognised_and_nothing_of_it_lost(tmp_path: Path, name: str) -> None:
    dataset = load_set(name, tmp_path)
    assert dataset.layout == name.split()[0]
    assert dataset.ignored == 0
    sizes = len(dataset.train), len(dataset.query), len(dataset.gallery)
    assert sizes == SIZES.get(name, sizes)
    for split in ("train", "query", "gallery"):
        records = getattr(dataset, split)
        assert {record.split for record in records} <= {split}
        assert records == tuple(sorted(records, key=lambda record: record.path))
    assert not pids(dataset.train) & pids(dataset.query)
    assert pids(dataset.query) <= pids(dataset.gallery)
    assert decode(dataset.train[0].path).size == (32, 64)
    assert load(dataset.root, dataset.layout, withdrawn_confirmed=True) == dataset


@pytest.mark.parametrize("name", [n for n in SETS if n != "folders"])
def test_misplaced_images_are_counted_and_named(tmp_path: Path, name: str) -> None:
    root = write_set(name, tmp_path)
    before = load(root, withdrawn_confirmed=True)
    stray = before.train[0].path.with_name("no-such grammar.png")
    write_crops(stray.parent, iter([Crop(stray.name, 1, 1)]))
    (stray.parent / "notes.txt").write_text("no image")
    after = load(root, before.layout, withdrawn_confirmed=True)
    multi_shot = "multi_shot" in stray.parts  # there the folder is the grammar
    assert (after.ignored, after.first_ignored) == ((0, None) if multi_shot else (1, stray))
    assert len(everything(after)) == len(everything(before))


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "folders"])
def test_a_folder_of_another_kind_is_told_what_is_expected(tmp_path: Path, layout: str) -> None:
    root = write_set("folders", tmp_path)
    with pytest.raises(DatasetError, match=f"no image in the layout '{layout}'.*Expected: "):
        load(root, layout, withdrawn_confirmed=True)


def test_msmt17_counts_persons_from_0_in_each_split_and_has_15_cameras(tmp_path: Path) -> None:
    dataset = load_set("msmt17", tmp_path)
    assert facts(dataset.train) == [
        ("0000_000_01_0303morning_0015_0.jpg", 1, 1),
        ("0000_001_15_0113noon_0320_1.jpg", 1, 15),
        ("0001_000_02_0303afternoon_0011_0.jpg", 2, 2),
        ("0001_001_10_0303morning_1015_0.jpg", 2, 10),
    ]
    assert facts(dataset.query) == [("0000_000_12_0303noon_0015_0.jpg", 100_001, 12)]
    assert pids(dataset.gallery) == {100_001, 100_002}
    assert tmp_path / "list_val.txt" in dataset.folders


def test_msmt17_repackaged_keeps_its_first_person(tmp_path: Path) -> None:
    dataset = load_set("msmt17 repackaged", tmp_path)
    assert pids(dataset.train) == {1, 782}
    assert {record.camid for record in everything(dataset)} == {1, 4, 11, 15}


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("0009/0009_000_01_0303morning_0015_0.jpg 9", "line 4 names 0009/"),
        ("0000/0000.jpg 0", "line 4 is no 'path person'"),
        ("nonsense", "line 4 is no 'path person'"),
    ],
)
def test_a_wrong_line_of_msmt17s_lists_is_named(tmp_path: Path, line: str, why: str) -> None:
    root = write_set("msmt17", tmp_path)
    with (root / "list_train.txt").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DatasetError, match=rf"list_train\.txt can't be used: {why}"):
        load(root)


def test_msmt17_without_its_test_lists_still_trains(tmp_path: Path) -> None:
    root = write_set("msmt17", tmp_path)
    (root / "list_query.txt").unlink()
    (root / "list_gallery.txt").unlink()
    dataset = load(root)
    assert (len(dataset.train), len(dataset.query), len(dataset.gallery)) == (4, 0, 0)
    assert dataset.ignored == 3


def test_cuhk03_takes_the_boxes_that_are_named(tmp_path: Path) -> None:
    root = write_set("cuhk03-np both", tmp_path)
    assert len(load(root).gallery) == 1
    assert len(load(root / "labeled").gallery) == 2
    assert "7,365" in incompleteness(load(root))
    assert "7,368" in incompleteness(load(root / "labeled"))


def test_duke_is_refused_until_the_operator_answers_for_it(tmp_path: Path) -> None:
    root = write_set("dukemtmc-reid", tmp_path / "images")
    (tmp_path / "duke").mkdir()
    preprocessed = tmp_path / "duke/DukeMTMC-reID"
    write_set("fedreid-preprocessed large", tmp_path / "duke")
    (tmp_path / "duke/Market").rename(preprocessed)
    for folder in (root, preprocessed):
        with pytest.raises(UsageError, match=r"withdrawn .* --confirm-withdrawn"):
            load(folder)
        assert load(folder, withdrawn_confirmed=True).train


def test_cuhk02_leaves_cuhk01_out_unless_asked(tmp_path: Path) -> None:
    dataset = load_set("cuhk02", tmp_path)
    assert not any("P1" in record.path.parts for record in dataset.train)
    assert {record.camid for record in dataset.train} == set(range(3, 11))
    assert len(pids(dataset.train)) == 4 * 2
    whole = load(tmp_path, exclude_p1=False)
    assert len(pids(whole.train)) == 5 * 2
    assert len(whole.train) == 5 * 2 * 2


def test_prid_trains_on_whom_only_camera_a_saw_and_searches_whom_only_b_saw(
    tmp_path: Path,
) -> None:
    dataset = load_set("prid2011", tmp_path)
    assert {201, 202} < pids(dataset.train)
    assert len(pids(dataset.train)) == 2 + 2
    assert {100_201, 100_202, 100_203} < pids(dataset.gallery)
    assert all(record.path.parts[-3] != "multi_shot" for record in dataset.query)
    frames = [r.path.name for r in dataset.train if r.pid == 201]
    assert len(frames) == 10
    assert (frames[0], frames[-1]) == ("0001.png", "0011.png")


def test_the_preprocessed_small_sets_count_persons_and_cameras_from_0(tmp_path: Path) -> None:
    root = write_set("fedreid-preprocessed small", tmp_path)
    (root / "pytorch/query/2").rename(root / "pytorch/query/2-3dpes")
    dataset = load(root)
    assert pids(dataset.train) == {1, 2}
    assert {(r.pid, r.camid) for r in dataset.query} == {(3, 0), (4, 0)}
    assert {(r.pid, r.camid) for r in dataset.gallery} == {(3, 1), (4, 1)}
    assert load(root / "pytorch").train[0].pid == 1


def test_preprocessed_junk_and_distractors_stay_in_the_gallery(tmp_path: Path) -> None:
    dataset = load_set("fedreid-preprocessed large", tmp_path)
    assert pids(dataset.gallery) == {-1, 0, 5}
    assert {record.camid for record in dataset.train} == {1, 6}


def test_preprocessed_msmt17_keeps_test_persons_apart(tmp_path: Path) -> None:
    root = write_set("fedreid-preprocessed large", tmp_path)
    (root / "pytorch/query/0005").rename(root / "pytorch/query/0002")
    dataset = load(root.rename(tmp_path / "MSMT17"))
    assert not pids(dataset.train) & pids(dataset.query)


@pytest.mark.parametrize("name", SMALL)
def test_a_small_set_has_ten_splits_that_are_the_same_everywhere(tmp_path: Path, name: str) -> None:
    first = load_set(name, tmp_path / "first")
    again = load_set(name, tmp_path / "again")
    assert facts(everything(first)) == facts(everything(again))
    trained = {frozenset(pids(load(tmp_path / "first", split=n).train)) for n in range(REPEATS)}
    assert len(trained) > 2
    assert len({len(people) for people in trained}) == 1
    with pytest.raises(UsageError, match="no split 10"):
        load(tmp_path / "first", split=10)


def crops(name: str) -> list[Crop]:
    """The files of a small set in its official size."""
    if name == "cuhk01":
        return [
            Crop(f"campus/{p:04d}{i:03d}.png", p, 1) for p in range(1, 972) for i in (1, 2, 3, 4)
        ]
    if name == "viper":
        return [Crop(f"VIPeR/cam_{c}/{p:03d}_0.bmp", p, 1) for p in range(632) for c in "ab"]
    if name == "3dpes":
        views = [(p, v, f) for p in range(193) for v in (1, 2) for f in (1, 2)]
        extra = [(p, 3, f) for p in range(120) for f in (1, 2)]
        return [Crop(f"RGB/{p}_{v}_FRAME_{f}_RGB.bmp", p, v) for p, v, f in views + extra]
    if name == "ilids":
        return [Crop(f"Persons/{p:04d}{i:03d}.jpg", p, 1) for p in range(1, 120) for i in range(4)]
    shots = [("a", p) for p in range(1, 386)] + [("b", p) for p in range(1, 750)]
    return [Crop(f"single_shot/cam_{c}/person_{p:04d}.png", p, 1) for c, p in shots]


@pytest.mark.parametrize("name", SMALL)
def test_splits_of_the_complete_small_sets_have_the_published_counts(
    tmp_path: Path, name: str
) -> None:
    for crop in crops(name):
        (tmp_path / crop.path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / crop.path).touch()
    dataset = load(tmp_path)
    official = OFFICIAL[name]
    assert dataset.layout == name
    assert len(pids(dataset.train)) == official.identities
    if name == "prid2011":  # training images come from multi_shot, which is not here
        assert "training images 385 (official 3,744)" in incompleteness(dataset)
        assert (len(dataset.query), len(dataset.gallery)) == (official.query, official.gallery)
    else:
        assert incompleteness(dataset) == ""


def test_a_mismatch_names_both_figures(tmp_path: Path) -> None:
    sentence = incompleteness(load_set("market1501", tmp_path))
    assert sentence.startswith("This is not the complete Market-1501: ")
    assert "training identities 2 (official 751)" in sentence
    assert "training images 4 (official 12,936)" in sentence
    assert "queries 1 (official 3,368)" in sentence
    assert "gallery images 3 (official 19,732)" in sentence
    assert incompleteness(load_set("folders", tmp_path / "own")) == ""


def test_a_camera_may_have_any_number_of_digits(tmp_path: Path) -> None:
    names = ("0001_c7s1_000001_01.jpg", "0001_c123456s1_000001_01.jpg")
    write_crops(tmp_path, (Crop(f"bounding_box_train/{name}", 1, 1) for name in names))
    assert {record.camid for record in load(tmp_path).train} == {7, 123_456}
