"""Does a coordinator without torch start a run from a model, and say what it can't do?"""

from pathlib import Path

import numpy as np
import pytest

from coordinator.learning import without_torch
from coordinator.learning.jobs import InitialiseJob
from coordinator.learning.without_torch import check_torch, copy_start
from fedreid.errors import StorageError, UsageError
from fedreid.plan import BackbonePlan
from fedreid.wire.tensors import load_tensors, save_tensors

WHOLE = {
    "neck.weight": np.ones((2, 3), np.float32),
    "trunk.bn.running_mean": np.zeros(4, np.float32),
}


def job(folder: Path, start: str) -> InitialiseJob:
    return InitialiseJob(
        backbone=BackbonePlan(name="resnet18", start=start), seed=1, out=str(folder / "out")
    )


def test_a_run_starts_from_a_whole_backbones_file(tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    save_tensors(start, WHOLE)
    report = copy_start(job(tmp_path, str(start)))
    assert report.parameters == 6
    copied = load_tensors(tmp_path / "out")
    assert copied.keys() == WHOLE.keys()
    assert all(np.array_equal(copied[name], WHOLE[name]) for name in WHOLE)


@pytest.mark.parametrize("start", ["random", "imagenet", "/srv/start.pth"])
def test_start_weights_that_take_torch_are_refused(tmp_path: Path, start: str) -> None:
    with pytest.raises(UsageError, match="without torch"):
        copy_start(job(tmp_path, start))


def test_a_file_that_is_no_whole_backbone_is_refused(tmp_path: Path) -> None:
    start = tmp_path / "start.safetensors"
    save_tensors(start, {"layer1.weight": np.ones(1, np.float32)})
    with pytest.raises(UsageError, match="not the file of a whole backbone"):
        copy_start(job(tmp_path, str(start)))
    with pytest.raises(StorageError):
        copy_start(job(tmp_path, str(tmp_path / "nothing.safetensors")))


def test_jobs_of_networks_are_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    check_torch("distil")
    monkeypatch.setattr(without_torch, "has_torch", lambda: False)
    with pytest.raises(UsageError, match="without torch and can't distil"):
        check_torch("distil")
