from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedreid.errors import DatasetError
from fedreid.reid.transforms import (
    MEAN_C,
    STD_C,
    ByteArray,
    ImageStore,
    augment,
    normalise,
)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    random = np.random.default_rng(0)
    made = [tmp_path / f"{index}.png" for index in range(5)]
    for path in made:
        Image.fromarray(random.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(path)
    return made


def some_pixels(count: int = 6) -> ByteArray:
    return np.random.default_rng(1).integers(0, 256, (count, 3, 32, 16), dtype=np.uint8)


def test_images_are_resized_bicubically(paths: list[Path]) -> None:
    store = ImageStore(paths, height_px=32, width_px=16)
    expected = Image.open(paths[2]).resize((16, 32), Image.Resampling.BICUBIC)
    batch = store.batch(np.array([2]))
    assert np.array_equal(batch[0], np.asarray(expected).transpose(2, 0, 1))


def test_images_are_decoded_once_where_they_fit(paths: list[Path]) -> None:
    store = ImageStore(paths, height_px=32, width_px=16)
    first = store.batch(np.array([3, 1, 3]))
    for path in paths:
        path.unlink()
    assert np.array_equal(store.batch(np.array([3, 1, 3])), first)
    with pytest.raises(DatasetError, match="not there"):
        store.batch(np.array([0]))


def test_images_that_do_not_fit_are_decoded_each_time(paths: list[Path]) -> None:
    small = ImageStore(paths, height_px=32, width_px=16, cache_bytes=100)
    whole = ImageStore(paths, height_px=32, width_px=16)
    indices = np.array([4, 0])
    assert np.array_equal(small.batch(indices), whole.batch(indices))
    paths[4].unlink()
    with pytest.raises(DatasetError):
        small.batch(indices)


def test_a_batch_is_a_copy(paths: list[Path]) -> None:
    store = ImageStore(paths, height_px=32, width_px=16)
    store.batch(np.array([0]))[:] = 0
    assert store.batch(np.array([0])).any()


def test_normalisation_is_imagenets() -> None:
    pixels = some_pixels()
    scaled = pixels.transpose(0, 2, 3, 1) / 255.0
    expected = ((scaled - MEAN_C) / STD_C).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(normalise(pixels).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("padding_px", [0, 3, 10])
def test_every_training_crop_is_a_shift_or_flip_of_the_padded_image(padding_px: int) -> None:
    pixels = some_pixels()
    made = augment(pixels.copy(), np.random.default_rng(2), padding_px=padding_px)
    pad = ((0, 0), (padding_px, padding_px), (padding_px, padding_px))
    for image, crop in zip(pixels, made, strict=True):
        padded = np.pad(image, pad)
        crops = (
            view
            for top in range(2 * padding_px + 1)
            for left in range(2 * padding_px + 1)
            for shift in [padded[:, top : top + 32, left : left + 16]]
            for view in (shift, shift[..., ::-1])
        )
        candidates = np.stack(list(crops))
        difference = (normalise(candidates) - crop).abs().amax(dim=(1, 2, 3))
        assert float(difference.min()) < 1e-6


def test_equal_random_numbers_give_equal_batches() -> None:
    pixels = some_pixels()
    first, again, other = (
        augment(pixels.copy(), np.random.default_rng(seed), erasing=0.5) for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_random_erasing_blanks_a_rectangle_of_the_published_size() -> None:
    white = np.full((40, 3, 64, 32), 255, dtype=np.uint8)
    made = augment(white, np.random.default_rng(5), erasing=1.0)
    erased = (made == 0.0).all(dim=1).flatten(1).float().mean(dim=1)
    assert float(erased.min()) > 0.01
    assert float(erased.max()) <= 0.45


def test_augmentation_leaves_its_input_alone() -> None:
    pixels = some_pixels()
    kept = pixels.copy()
    augment(pixels, np.random.default_rng(6), erasing=1.0)
    assert np.array_equal(pixels, kept)
