from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from fedreid.errors import JobFailed
from fedreid.reid.features import extract_features
from fedreid.reid.transforms import ImageStore, normalise


class Flat(nn.Module):
    """Features that flipping changes: the left columns."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return images_NCHW[..., :4].flatten(1) * self.factor


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    random = np.random.default_rng(0)
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (32, 16, 3), dtype=np.uint8)).save(path)
    return ImageStore(paths, height_px=32, width_px=16)


def test_a_feature_is_the_sum_over_both_views_scaled_to_length_one(store: ImageStore) -> None:
    images = normalise(store.batch(np.arange(5)))
    expected = np.array([(Flat()(x[None]) + Flat()(x[None].flip(3))).numpy()[0] for x in images])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    heard: list[int] = []
    feats = extract_features(Flat(), store, batch_size=2, tell=heard.append)
    np.testing.assert_allclose(feats, expected, atol=1e-6)
    assert heard == [2, 4, 5]


def test_features_that_are_not_finite_stop_the_job(store: ImageStore) -> None:
    with pytest.raises(JobFailed, match="diverged"):
        extract_features(Flat(float("nan")), store)


def test_no_images_give_no_features() -> None:
    feats = extract_features(Flat(), ImageStore([], height_px=32, width_px=16))
    assert feats.shape == (0, 0)
    assert torch.is_grad_enabled()
