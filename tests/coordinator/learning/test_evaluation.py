"""Does the coordinator's own test set measure a model, or say why it can't?"""

import shutil
from pathlib import Path

import pytest
import torch

from coordinator.learning.evaluation import evaluate
from coordinator.learning.jobs import EvaluateJob, EvaluateReport
from fedreid.contract import EvaluationResult
from fedreid.errors import DatasetError
from fedreid.jobs import Progress
from fedreid.reid.backbone import shared_tensors
from fedreid.wire.tensors import save_tensors
from tests.coordinator.learning.sites import TINY, backbone, labelled_folder

torch.set_num_threads(1)


def measured(folder: Path, labelled: Path, steps: list[Progress]) -> EvaluateReport:
    save_tensors(folder / "model", shared_tensors(backbone(1)))
    job = EvaluateJob(backbone=TINY, model=str(folder / "model"), folder=str(labelled), threads=1)
    return evaluate(job, steps.append)


def test_equal_pictures_in_the_other_camera_are_found_first(tmp_path: Path) -> None:
    steps: list[Progress] = []
    report = measured(tmp_path, labelled_folder(tmp_path), steps)
    perfect = EvaluationResult(
        model="global", rank1=1.0, rank5=1.0, rank10=1.0, map=1.0, minp=1.0, queries=4
    )
    assert report == EvaluateReport(result=perfect)
    assert [(step.done, step.total) for step in steps] == [(4, 14), (14, 14)]


@pytest.mark.parametrize("part", ["query", "bounding_box_test"])
def test_a_test_set_without_one_half_is_refused(tmp_path: Path, part: str) -> None:
    labelled = labelled_folder(tmp_path)
    shutil.rmtree(labelled / part)
    with pytest.raises(DatasetError, match="missing or empty"):
        measured(tmp_path, labelled, [])


def test_a_test_set_whose_queries_match_nobody_is_refused(tmp_path: Path) -> None:
    labelled = labelled_folder(tmp_path)
    for path in (labelled / "bounding_box_test").glob("*_c2s1_*"):
        path.unlink()
    with pytest.raises(DatasetError, match="another camera"):
        measured(tmp_path, labelled, [])


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="not there"):
        measured(tmp_path, tmp_path / "nowhere", [])
