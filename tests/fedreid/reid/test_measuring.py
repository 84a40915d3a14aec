from pathlib import Path

import pytest
import torch

from fedreid.contract import EvaluationResult
from fedreid.datasets.layouts import load
from fedreid.reid.backbone import build_backbone, initialise
from fedreid.reid.measuring import Labelled, QueryGallery, measure
from tests.silo_agent.learning.sites import TINY, draw_silo


def sized(root: Path) -> QueryGallery:
    dataset = load(root)
    return QueryGallery(
        query=Labelled.of(dataset.query, height_px=32, width_px=16),
        gallery=Labelled.of(dataset.gallery, height_px=32, width_px=16),
    )


def measured(root: Path, heard: list[tuple[int, int]]) -> EvaluationResult | None:
    backbone = build_backbone(TINY)
    initialise(backbone, 1)
    return measure(
        backbone,
        sized(root),
        "local",
        device=torch.device("cpu"),
        tell=lambda done, total: heard.append((done, total)),
    )


def test_a_model_is_measured_on_query_and_gallery(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    result = measured(draw_silo(tmp_path), heard)
    assert result is not None
    assert result.checked().model == "local"
    assert result.queries == 3
    assert 0.0 < result.map <= result.rank10 == 1.0
    assert heard == [(3, 6), (6, 6)]


@pytest.mark.parametrize("missing", ["query", "bounding_box_test"])
def test_without_query_or_gallery_there_is_nothing_to_tell(tmp_path: Path, missing: str) -> None:
    draw_silo(tmp_path)
    (tmp_path / missing).rename(tmp_path / "elsewhere")
    assert measured(tmp_path, []) is None


def test_without_a_match_in_another_camera_there_is_nothing_to_tell(tmp_path: Path) -> None:
    draw_silo(tmp_path)
    for path in (tmp_path / "bounding_box_test").iterdir():
        path.rename(path.with_name(path.name.replace("_c2", "_c1")))
    assert measured(tmp_path, []) is None
