"""Are the procedural pedestrians reproducible, well named, and neither too easy nor impossible?"""

import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from fedreid.datasets.layouts import Dataset, load
from fedreid.datasets.records import ImageRecord
from fedreid.datasets.synthetic import (
    SyntheticSpec,
    SyntheticSummary,
    colour_histogram,
    render,
)
from fedreid.errors import UsageError
from fedreid.reid.retrieval import evaluate

SPEC = SyntheticSpec(
    silos=2,
    ratio=(2, 1),
    unit_identities=3,
    test_identities=6,
    distractors=4,
    junk=2,
    public_images=6,
)
GRAMMAR = re.compile(r"(-1|\d{4})_c[1-6]s[1-3]_\d{6}_\d{2}\.jpg")
Features = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SyntheticSummary:
    return render(tmp_path_factory.mktemp("made") / "out", SPEC, workers=1)


@pytest.fixture(scope="module")
def silos(made: SyntheticSummary) -> dict[str, Dataset]:
    return {silo.name: load(made.out / silo.name) for silo in made.silos}


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below the folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def pixels(records: tuple[ImageRecord, ...]) -> npt.NDArray[np.uint8]:
    return np.stack([np.asarray(Image.open(record.path)) for record in records])


def mean_ap(dataset: Dataset, feats_QD: Features, feats_GD: Features) -> float:
    q_pids, g_pids = (np.array([r.pid for r in part]) for part in (dataset.query, dataset.gallery))
    q_cams, g_cams = (
        np.array([r.camid for r in part]) for part in (dataset.query, dataset.gallery)
    )
    return evaluate(feats_QD, feats_GD, q_pids, g_pids, q_cams, g_cams).map


def histogram_map(dataset: Dataset) -> float:
    return mean_ap(
        dataset,
        colour_histogram(pixels(dataset.query)),
        colour_histogram(pixels(dataset.gallery)),
    )


def random_map(dataset: Dataset, seed: int) -> float:
    rng = np.random.default_rng(seed)
    feats = rng.standard_normal((len(dataset.query) + len(dataset.gallery), 64), np.float32)
    feats /= np.linalg.norm(feats, axis=1, keepdims=True)
    return mean_ap(dataset, feats[: len(dataset.query)], feats[len(dataset.query) :])


def test_the_same_spec_gives_the_same_bytes_with_any_number_of_workers(
    made: SyntheticSummary, tmp_path: Path
) -> None:
    render(tmp_path / "again", SPEC, workers=2)
    assert contents(tmp_path / "again") == contents(made.out)


def test_another_seed_gives_other_images(tmp_path: Path) -> None:
    tiny = {"silos": 1, "unit_identities": 1, "ratio": (1,), "test_identities": 1}
    for seed in (0, 1):
        spec = SyntheticSpec(**tiny, distractors=0, junk=0, public_images=2, seed=seed)  # type: ignore[arg-type]
        render(tmp_path / str(seed), spec, workers=1)
    first, second = (contents(tmp_path / str(seed) / "public") for seed in (0, 1))
    assert first.keys() == second.keys()
    assert all(first[name] != second[name] for name in first)


def test_an_image_does_not_depend_on_how_many_others_are_asked_for(
    made: SyntheticSummary, tmp_path: Path
) -> None:
    fewer = SyntheticSpec(
        silos=1,
        ratio=(1,),
        unit_identities=1,
        test_identities=1,
        distractors=1,
        junk=0,
        public_images=1,
    )
    render(tmp_path / "fewer", fewer, workers=1)
    shared = [*(tmp_path / "fewer/station/bounding_box_train").iterdir()]
    shared += (tmp_path / "fewer/public").iterdir()
    for path in shared:
        assert path.read_bytes() == (made.out / path.relative_to(tmp_path / "fewer")).read_bytes()


def test_every_name_follows_the_market_grammar(made: SyntheticSummary) -> None:
    names = [path.name for silo in made.silos for path in (made.out / silo.name).rglob("*.jpg")]
    assert len(names) == sum(silo.train + silo.query + silo.gallery for silo in made.silos)
    assert [name for name in names if not GRAMMAR.fullmatch(name)] == []


def test_images_have_the_size_asked_for(tmp_path: Path) -> None:
    spec = SyntheticSpec(
        silos=1,
        ratio=(1,),
        unit_identities=1,
        test_identities=1,
        distractors=2,
        public_images=2,
        height_px=96,
        width_px=40,
    )
    summary = render(tmp_path / "out", spec, workers=1)
    assert summary.images == len(list((tmp_path / "out").rglob("*.jpg")))
    sizes = {Image.open(path).size for path in (tmp_path / "out").rglob("*.jpg")}
    assert sizes == {(40, 96)}


def test_silos_are_as_unbalanced_as_asked(
    made: SyntheticSummary, silos: dict[str, Dataset]
) -> None:
    assert [silo.train_identities for silo in made.silos] == [6, 3]
    for silo in made.silos:
        train = silos[silo.name].train
        assert len({record.pid for record in train}) == silo.train_identities
        assert len(train) == silo.train


def test_the_default_is_unbalanced_twelve_to_one() -> None:
    spec = SyntheticSpec()
    sizes = [spec.train_identities(silo) for silo in range(spec.silos)]
    assert [size / sizes[-1] for size in sizes] == [12, 6, 3, 1]


def test_nobody_is_both_trained_on_and_searched_for(silos: dict[str, Dataset]) -> None:
    for dataset in silos.values():
        trained = {record.pid for record in dataset.train}
        tested = {record.pid for record in (*dataset.query, *dataset.gallery)}
        assert not trained & tested


def test_every_query_has_a_match_in_another_camera(silos: dict[str, Dataset]) -> None:
    for dataset in silos.values():
        cameras = defaultdict(set)
        for record in dataset.gallery:
            cameras[record.pid].add(record.camid)
        assert dataset.query
        assert all(cameras[query.pid] - {query.camid} for query in dataset.query)


def test_the_gallery_has_distractors_and_junk(silos: dict[str, Dataset]) -> None:
    for dataset in silos.values():
        pids = [record.pid for record in dataset.gallery]
        assert pids.count(0) == SPEC.distractors
        assert pids.count(-1) == SPEC.junk


def test_contact_sheets_and_counts_are_written(made: SyntheticSummary) -> None:
    for silo in made.silos:
        with Image.open(made.out / f"{silo.name}.png") as sheet:
            assert sheet.width > 3 * SPEC.width_px
            assert sheet.height > 5 * SPEC.height_px
    written = json.loads((made.out / "synthetic.json").read_text())
    assert written["spec"]["seed"] == SPEC.seed
    assert [silo["train"] for silo in written["silos"]] == [silo.train for silo in made.silos]
    assert len(list((made.out / "public").iterdir())) == SPEC.public_images


def test_progress_ends_at_the_number_of_images(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    spec = SyntheticSpec(
        silos=1, ratio=(1,), unit_identities=1, test_identities=1, public_images=30
    )
    summary = render(
        tmp_path / "out", spec, workers=1, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == sorted(seen)
    assert seen[-1] == (summary.images, summary.images)


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(UsageError, match="not empty"):
        render(tmp_path, SPEC, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"silos": 0},
        {"ratio": ()},
        {"ratio": (3, 0)},
        {"cameras_per_identity": 1},
        {"images_per_identity_and_camera": 1},
        {"unit_identities": 9000},
        {"seed": -1},
    ],
)
def test_a_spec_out_of_range_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        SyntheticSpec(**wrong)  # type: ignore[arg-type]


def test_a_histogram_has_unit_length_and_tells_red_from_blue() -> None:
    images = np.zeros((3, 24, 8, 3), np.uint8)
    images[0, ..., 0] = images[1, ..., 0] = 200
    images[2, ..., 2] = 200
    feats_ND = colour_histogram(images)
    assert feats_ND.shape == (3, 144)
    np.testing.assert_allclose(np.linalg.norm(feats_ND, axis=1), 1.0, rtol=1e-5)
    assert feats_ND[0] @ feats_ND[1] > feats_ND[0] @ feats_ND[2] + 0.3


def test_a_histogram_of_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="expected N"):
        colour_histogram(np.zeros((24, 8, 3), np.uint8))


def test_colour_tells_less_where_cameras_shift_it(tmp_path: Path) -> None:
    maps: dict[bool, list[float]] = {}
    for shift in (False, True):
        spec = SyntheticSpec(
            ratio=(1,),
            unit_identities=1,
            test_identities=14,
            distractors=0,
            junk=0,
            public_images=0,
            colour_shift=shift,
        )
        summary = render(tmp_path / str(shift), spec, workers=1)
        datasets = [load(summary.out / silo.name) for silo in summary.silos]
        maps[shift] = [histogram_map(dataset) for dataset in datasets]
        chance = float(np.mean([random_map(d, seed) for d in datasets for seed in range(5)]))
        assert chance == pytest.approx(expected_chance(datasets), abs=0.015)
    assert np.mean(maps[False]) > 1.15 * np.mean(maps[True])


def expected_chance(datasets: list[Dataset]) -> float:
    """Mean average precision of a random order, by drawing orders."""
    rng = np.random.default_rng(0)
    precisions = []
    for dataset in datasets:
        for query in dataset.query:
            pids = np.array(
                [g.pid for g in dataset.gallery if (g.pid, g.camid) != (query.pid, query.camid)]
            )
            ranks = np.flatnonzero(rng.permutation(pids) == query.pid)
            precisions.append(np.mean((np.arange(len(ranks)) + 1) / (ranks + 1)))
    return float(np.mean(precisions))
