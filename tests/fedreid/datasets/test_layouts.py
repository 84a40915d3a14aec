from collections.abc import Iterable
from pathlib import Path

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from fedreid.datasets.layouts import Dataset, load
from fedreid.datasets.records import ImageRecord
from fedreid.errors import DatasetError, UsageError


def draw(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 16)).save(path)
    return root


def market(root: Path) -> Path:
    return draw(
        root,
        "bounding_box_train/0002_c1s1_000451_03.jpg",
        "bounding_box_train/0002_c15s2_000452_01.jpg",
        "query/0007_c1s1_000151_01.jpg",
        "bounding_box_test/0007_c2s3_000151_01.jpg",
        "bounding_box_test/-1_c3s1_000401_00.jpg",
        "bounding_box_test/0000_c6s1_000401_00.jpg",
    )


def facts(records: Iterable[ImageRecord]) -> list[tuple[str, int, int]]:
    return [(record.path.name, record.pid, record.camid) for record in records]


def marks(dataset: Dataset) -> dict[str, set[tuple[str, str]]]:
    """Identity and camera folder of each record, by split."""
    parts = {"train": dataset.train, "query": dataset.query, "gallery": dataset.gallery}
    return {
        split: {(r.path.parent.parent.name, r.path.parent.name) for r in records}
        for split, records in parts.items()
    }


def test_market_names_give_person_and_camera(tmp_path: Path) -> None:
    dataset = load(market(tmp_path))
    assert dataset.layout == "market1501"
    assert facts(dataset.train) == [
        ("0002_c15s2_000452_01.jpg", 2, 15),
        ("0002_c1s1_000451_03.jpg", 2, 1),
    ]
    assert facts(dataset.query) == [("0007_c1s1_000151_01.jpg", 7, 1)]
    assert facts(dataset.gallery) == [
        ("-1_c3s1_000401_00.jpg", -1, 3),
        ("0000_c6s1_000401_00.jpg", 0, 6),
        ("0007_c2s3_000151_01.jpg", 7, 2),
    ]
    assert {record.split for record in dataset.gallery} == {"gallery"}


def test_strays_are_passed_over_and_misnamed_images_counted(tmp_path: Path) -> None:
    draw(
        market(tmp_path),
        "bounding_box_train/thumb_0002.jpg",
        "bounding_box_train/0002_c1_000451_03.jpg",
        "bounding_box_train/-1_c1s1_000401_00.jpg",
        "query/0000_c1s1_000401_00.jpg",
        "query/.0007_c1s1_000151_01.jpg",
        "bounding_box_train/deeper/0009_c1s1_000451_03.jpg",
    )
    (tmp_path / "bounding_box_train/readme.txt").write_text("hello")
    (tmp_path / "bounding_box_train/Thumbs.db").write_bytes(b"x")
    dataset = load(tmp_path)
    assert (len(dataset.train), len(dataset.query), dataset.ignored) == (2, 1, 4)
    assert dataset.first_ignored == tmp_path / "bounding_box_train/-1_c1s1_000401_00.jpg"


def test_market_without_tests_can_still_be_loaded(tmp_path: Path) -> None:
    dataset = load(draw(tmp_path, "bounding_box_train/0002_c1s1_000451_03.jpg"))
    assert len(dataset.train) == 1
    assert dataset.query == dataset.gallery == ()


def test_other_names_are_told_what_is_expected(tmp_path: Path) -> None:
    draw(tmp_path, "bounding_box_train/0001-camera-2.jpg")
    with pytest.raises(
        DatasetError, match=r"1 image files .*0001-camera-2\.jpg\. .* 0001_c1s1_000151_01\.jpg"
    ):
        load(tmp_path)


def test_folders_with_splits(tmp_path: Path) -> None:
    draw(
        tmp_path,
        "train/anna/door/1.jpg",
        "train/anna/yard/2.jpg",
        "train/12/door/3.jpg",
        "train/-1/door/4.jpg",
        "query/bert/door/5.jpg",
        "gallery/bert/yard/6.jpg",
        "gallery/-1/yard/7.jpg",
        "gallery/stray.jpg",
        "gallery/bert/stray.jpg",
        "gallery/bert/@eaDir/thumbnail.jpg",
        "gallery/bert/.thumbnails/thumbnail.jpg",
    )
    dataset = load(tmp_path)
    assert dataset.layout == "folders"
    assert marks(dataset) == {
        "train": {("anna", "door"), ("anna", "yard"), ("12", "door")},
        "query": {("bert", "door")},
        "gallery": {("bert", "yard"), ("-1", "yard")},
    }
    assert {12} < {record.pid for record in dataset.train}
    assert [r.pid for r in dataset.gallery if r.path.name == "7.jpg"] == [-1]
    assert dataset.ignored == 3
    (asked,) = dataset.query
    (answer,) = (record for record in dataset.gallery if record.pid == asked.pid)
    assert answer.camid != asked.camid
    assert dataset.train[-1].camid == answer.camid


def test_a_name_keeps_its_number_whoever_else_is_there(tmp_path: Path) -> None:
    few = load(draw(tmp_path / "few", "train/anna/door/1.jpg"))
    assert few.identity_names == {few.train[0].pid: "anna"}
    assert few.camera_names == {few.train[0].camid: "door"}
    many = load(draw(tmp_path / "many", "train/abel/door/1.jpg", "train/anna/door/1.jpg"))
    assert few.train[0].pid == many.train[1].pid != many.train[0].pid


def test_folders_without_split_train_on_a_fixed_half(tmp_path: Path) -> None:
    people = [f"person{index}" for index in range(7)]
    for person in people:
        draw(
            tmp_path,
            f"{person}/door/1.jpg",
            f"{person}/door/2.jpg",
            f"{person}/yard/3.jpg",
        )
    draw(tmp_path, "-1/door/9.jpg")
    dataset = load(tmp_path)
    trained = {r.pid for r in dataset.train}
    asked = {r.pid for r in dataset.query}
    assert (len(trained), len(asked)) == (4, 3)
    assert not trained & asked
    assert len(dataset.query) == 3 * 2
    assert {r.path.name for r in dataset.query} == {"1.jpg", "3.jpg"}
    assert len(dataset.gallery) == 3 * 3 + 1
    assert load(tmp_path) == dataset


def write_manifest(root: Path, text: str) -> Path:
    root.mkdir(exist_ok=True)
    (root / "manifest.csv").write_text(text, encoding="utf-8-sig")
    return root


def test_manifest_names_every_image(tmp_path: Path) -> None:
    write_manifest(
        tmp_path,
        "path,identity,camera,split,note\n"
        'a/1.jpg,anna,door,train,"one, two"\n'
        "a/2.jpg,bert,door,query,\n"
        "/far/3.jpg,bert,yard,gallery,\n",
    )
    dataset = load(tmp_path)
    assert dataset.layout == "folders"
    assert [r.path for r in dataset.train] == [tmp_path / "a/1.jpg"]
    assert [r.path for r in dataset.gallery] == [Path("/far/3.jpg")]
    assert dataset.query[0].pid == dataset.gallery[0].pid
    assert tmp_path / "manifest.csv" in dataset.folders
    assert tmp_path / "a" in dataset.folders


def write_parquet(root: Path, columns: dict[str, list[object]]) -> Path:
    root.mkdir(exist_ok=True)
    parquet.write_table(arrow.table(columns), root / "manifest.parquet")
    return root


def test_a_parquet_manifest_says_what_csv_says(tmp_path: Path) -> None:
    csv = write_manifest(
        tmp_path / "csv",
        "path,identity,camera,split\n1.jpg,anna,4,train\n2.jpg,12,door,query\n3.jpg,12,4,gallery\n",
    )
    columns: dict[str, list[object]] = {
        "note": [1.5, None, 2.0],
        "path": ["1.jpg", "2.jpg", "3.jpg"],
        "split": ["train", "query", "gallery"],
        "identity": ["anna", "12", "12"],
        "camera": ["4", "door", "4"],
    }
    found = load(write_parquet(tmp_path / "parquet", columns))
    assert facts(found.train + found.query + found.gallery) == facts(
        load(csv).train + load(csv).query + load(csv).gallery
    )
    assert found.identity_names == load(csv).identity_names


def test_parquet_numbers_are_numbers_and_no_split_is_split(tmp_path: Path) -> None:
    columns: dict[str, list[object]] = {
        "path": [f"{p}{c}.jpg" for p in range(1, 5) for c in (10, 11)],
        "identity": [p for p in range(1, 5) for c in (10, 11)],
        "camera": [c for p in range(1, 5) for c in (10, 11)],
    }
    dataset = load(write_parquet(tmp_path, columns))
    assert (len(dataset.train), len(dataset.query), len(dataset.gallery)) == (4, 4, 4)
    assert {r.camid for r in dataset.train} == {10, 11}


@pytest.mark.parametrize(
    ("columns", "why"),
    [
        ({"path": ["1.jpg"], "identity": ["a"]}, "no column 'camera'"),
        ({"path": ["1.jpg", "2.jpg"], "identity": ["a", "b"], "camera": [1, None]}, "row 2 has no"),
        (
            {"path": ["1.jpg"], "identity": ["a"], "camera": [1], "split": ["test"]},
            "row 1 has the split 'test'",
        ),
    ],
)
def test_a_wrong_parquet_manifest_names_its_row(
    tmp_path: Path, columns: dict[str, list[object]], why: str
) -> None:
    with pytest.raises(DatasetError, match=why):
        load(write_parquet(tmp_path, columns))


def test_a_damaged_parquet_manifest_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DatasetError, match=r"manifest\.parquet can't be used"):
        load(tmp_path)


def test_two_manifests_are_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, "path,identity,camera\n1.jpg,a,c\n")
    write_parquet(tmp_path, {"path": ["1.jpg"], "identity": ["a"], "camera": ["c"]})
    with pytest.raises(DatasetError, match="two manifests"):
        load(tmp_path)


def test_manifest_without_splits_is_split(tmp_path: Path) -> None:
    lines = [f"{p}{c}.jpg,{p},{c}" for p in "abcd" for c in "xy"]
    dataset = load(write_manifest(tmp_path, "path,identity,camera\n" + "\n".join(lines)))
    assert (len(dataset.train), len(dataset.query), len(dataset.gallery)) == (4, 4, 4)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no column 'path'"),
        ("path,identity\n", "no column 'camera'"),
        ("path,identity,camera,split\n1.jpg,,c,train\n", "line 2 has no identity"),
        (
            "path,identity,camera,split\n1.jpg,a,c,train\n2.jpg,a,c,test\n",
            "line 3 has the split 'test'",
        ),
        ("path,identity,camera,split\n1.jpg,a,c,train\n2.jpg,a,c,\n", "line 3 has the split ''"),
        ('path,identity,camera\n"1.jpg,a,c\n', "end of data"),
    ],
)
def test_a_wrong_manifest_names_its_line(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(DatasetError, match=why):
        load(write_manifest(tmp_path, text))


def test_a_missing_folder_has_a_cause_and_a_next_step(tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        load(tmp_path / "nowhere")
    assert "not mounted" in caught.value.why
    assert caught.value.next_step


def test_an_empty_folder_is_told_what_is_expected(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no image .* identity/camera"):
        load(tmp_path)


def test_a_folder_that_fails_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    market(tmp_path)
    monkeypatch.setattr("fedreid.datasets.layouts.walking.os.scandir", denied)
    with pytest.raises(DatasetError, match="access is denied"):
        load(tmp_path)


def test_an_unknown_layout_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"auto, market1501, dukemtmc-reid, .*, folders"):
        load(tmp_path, "market")


@pytest.mark.parametrize(
    "name",
    ["Анна", "安娜", "أمينة", "José", "Jose\u0301", "two words", "emoji 🚶", "x" * 200, "a\udcffb"],
)
def test_identities_and_cameras_may_have_any_name(tmp_path: Path, name: str) -> None:
    draw(tmp_path, f"train/{name}/{name}/{name}.jpg", f"train/other/{name}/1.jpg")
    dataset = load(tmp_path)
    assert len({record.pid for record in dataset.train}) == 2
    assert len({record.camid for record in dataset.train}) == 1
    assert name in dataset.identity_names.values()


def test_an_accent_is_the_same_however_it_was_composed(tmp_path: Path) -> None:
    dataset = load(draw(tmp_path, "query/Jos\u00e9/c/1.jpg", "gallery/Jose\u0301/d/1.jpg"))
    assert dataset.query[0].pid == dataset.gallery[0].pid


def test_digits_of_other_alphabets_are_names(tmp_path: Path) -> None:
    dataset = load(draw(tmp_path, "train/3/c/1.jpg", "train/\u0663/c/1.jpg"))
    assert len({record.pid for record in dataset.train}) == 2
