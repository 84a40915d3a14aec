from pathlib import Path

import numpy as np
import pytest
import torch

from fedreid.errors import StorageError
from silo_agent.learning.state import (
    ClassifierState,
    build_classifier,
    read_classifier,
    write_classifier,
)


def known() -> ClassifierState:
    return ClassifierState(
        identities=(3, 7, 9),
        weight=np.arange(12, dtype=np.float32).reshape(3, 4),
        bias=np.array([1, 2, 3], dtype=np.float32),
    )


def test_rows_of_known_identities_are_kept_and_new_ones_drawn() -> None:
    classifier = build_classifier(known(), (7, 8, 9), width=4, seed=1)
    fresh = build_classifier(None, (7, 8, 9), width=4, seed=1)
    assert classifier.weight[0].tolist() == [4, 5, 6, 7]
    assert classifier.weight[2].tolist() == [8, 9, 10, 11]
    assert classifier.bias.tolist() == [2, 0, 3]
    assert torch.equal(classifier.weight[1], fresh.weight[1])


def test_a_new_classifier_is_small_and_follows_from_the_seed() -> None:
    first, again, other = (
        build_classifier(None, tuple(range(100)), width=64, seed=seed).weight for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert float(first.detach().std()) == pytest.approx(0.001, rel=0.05)


def test_a_classifier_is_read_back_as_written(tmp_path: Path) -> None:
    write_classifier(tmp_path, known())
    read = read_classifier(tmp_path)
    assert read.identities == known().identities
    assert np.array_equal(read.weight, known().weight)
    assert np.array_equal(read.bias, known().bias)


@pytest.mark.parametrize("text", ["[3, 7]", "no list"])
def test_identities_that_do_not_fit_are_damage(tmp_path: Path, text: str) -> None:
    write_classifier(tmp_path, known())
    (tmp_path / "identities.json").write_text(text)
    with pytest.raises(StorageError, match="damaged"):
        read_classifier(tmp_path)


def test_a_missing_file_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        read_classifier(tmp_path)
