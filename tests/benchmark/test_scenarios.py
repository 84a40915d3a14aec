"""Does each scenario give every training image to the silos that should have it, and no other?"""

from pathlib import Path

import pytest

from benchmark.scenarios import UNION, Source, build, union
from fedreid.datasets.layouts import Dataset, load
from fedreid.errors import UsageError


def market(root: Path, *, people: int = 6, cameras: int = 3, first: int = 1) -> Path:
    """Empty files with Market-1501's names: nobody opens them here."""
    for split, persons in (
        ("bounding_box_train", range(first, first + people)),
        ("query", range(100, 102)),
        ("bounding_box_test", range(100, 102)),
    ):
        (root / split).mkdir(parents=True)
        for person in persons:
            for camera in range(1, cameras + 1):
                (root / split / f"{person:04d}_c{camera}s1_{person:06d}_01.jpg").touch()
    (root / "bounding_box_test" / "0000_c1s1_000001_01.jpg").touch()
    (root / "bounding_box_test" / "-1_c1s1_000001_01.jpg").touch()
    return root


def source(root: Path, name: str = "market1501") -> Source:
    return Source(name=name, path=root)


def names(dataset: Dataset) -> list[str]:
    return sorted(record.path.name for record in dataset.train)


def test_by_dataset_every_dataset_is_a_silo_as_it_lies(tmp_path: Path) -> None:
    sources = {name: source(market(tmp_path / name), name) for name in ("north", "south")}
    scenario = build("by-dataset", sources, tmp_path / "out", parts=0, seed=0)
    assert {name: folder.path for name, folder in scenario.silos.items()} == {
        "north": tmp_path / "north",
        "south": tmp_path / "south",
    }
    assert len({folder.test for folder in scenario.silos.values()}) == 2
    assert scenario.uses["north"].train_images == 18
    assert scenario.uses["north"].train_identities == 6
    assert not scenario.uses["north"].generated


def test_by_camera_each_camera_trains_its_own_and_all_share_the_test_set(tmp_path: Path) -> None:
    root = market(tmp_path / "market")
    scenario = build("by-camera", {"m": source(root)}, tmp_path / "out", parts=0, seed=0)
    whole = load(root)
    assert sorted(scenario.silos) == ["camera-1", "camera-2", "camera-3"]
    seen: list[str] = []
    for place, (name, folder) in enumerate(sorted(scenario.silos.items()), start=1):
        own = load(folder.path, folder.layout)
        assert {record.camid for record in own.train} == {place}
        assert len({record.pid for record in own.train}) == 6
        assert [(r.path, r.pid, r.camid) for r in own.query] == [
            (r.path.resolve(), r.pid, r.camid) for r in whole.query
        ]
        assert sorted(r.pid for r in own.gallery) == sorted(r.pid for r in whole.gallery)
        assert scenario.uses[name].queries == 6 and scenario.uses[name].gallery == 8
        seen += names(own)
    assert sorted(seen) == names(whole)
    assert len({folder.test for folder in scenario.silos.values()}) == 1


def test_by_identity_people_are_dealt_out_evenly_and_to_one_silo_each(tmp_path: Path) -> None:
    root = market(tmp_path / "market", people=11)
    scenario = build("by-identity", {"m": source(root)}, tmp_path / "out", parts=3, seed=5)
    groups = [load(folder.path, folder.layout) for folder in scenario.silos.values()]
    people = [{record.pid for record in group.train} for group in groups]
    assert sorted(len(group) for group in people) == [3, 4, 4]
    assert set.union(*people) == set(range(1, 12)) and sum(map(len, people)) == 11
    assert sorted(name for group in groups for name in names(group)) == names(load(root))


def test_the_seed_decides_who_is_where(tmp_path: Path) -> None:
    sources = {"m": source(market(tmp_path / "market", people=12))}

    def first_group(seed: int) -> list[str]:
        out = tmp_path / f"out-{seed}"
        folder = build("by-identity", sources, out, parts=2, seed=seed).silos["group-1"]
        return names(load(folder.path, folder.layout))

    assert first_group(1) == first_group(1) != first_group(2)


def test_the_union_keeps_people_of_different_datasets_apart(tmp_path: Path) -> None:
    sources = {name: source(market(tmp_path / name), name) for name in ("north", "south")}
    folder = union(sources, tmp_path / UNION)
    whole = load(folder.path, folder.layout)
    assert len(whole.train) == 36 and not whole.query and not whole.gallery
    assert len({record.pid for record in whole.train}) == 12  # 6 + 6, though numbers are the same
    assert len({record.camid for record in whole.train}) == 6


def test_dividing_several_datasets_is_refused(tmp_path: Path) -> None:
    sources = {name: source(market(tmp_path / name), name) for name in ("north", "south")}
    with pytest.raises(UsageError, match="divides one dataset, and has 2"):
        build("by-camera", sources, tmp_path / "out", parts=0, seed=0)


@pytest.mark.parametrize("parts", [1, 4])
def test_too_few_or_too_many_parts_are_refused(tmp_path: Path, parts: int) -> None:
    sources = {"m": source(market(tmp_path / "market"))}
    with pytest.raises(UsageError, match="6 identities can't be dealt out"):
        build("by-identity", sources, tmp_path / "out", parts=parts, seed=0)
