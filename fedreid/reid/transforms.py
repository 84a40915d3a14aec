"""How do image files become training batches and evaluation batches?

Files are decoded and resized once (bicubic, reid-spec §2) and kept as bytes where they fit;
augmentation then works on whole batches of bytes with random numbers passed in.

Letters: N images, C channels (3), H height, W width, R bytes of a row.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from fedreid.datasets.images import decode
from fedreid.errors import DatasetError

ByteArray = npt.NDArray[np.uint8]
IndexArray = npt.NDArray[np.int64]

CACHE_BYTES = 4 * 1024**3
"""Decoded images that one store keeps in memory: MSMT17's training set at 256×128 is 3.2 GB."""

DECODERS = 4
"""Decoding threads: enough to outrun one process's training, few enough for a shared machine."""

_TRIED_TOGETHER = 64
"""Images decoded at once to find the unreadable ones: a few MB where they are not kept."""

MEAN_C = (0.485, 0.456, 0.406)
"""ImageNet's channel means, of values in 0..1."""
STD_C = (0.229, 0.224, 0.225)

ERASED_AREA = (0.02, 0.4)
"""Share of the image that random erasing removes (Zhong et al. 2020)."""
ERASED_ASPECT = (0.3, 1 / 0.3)


class ImageStore:
    """Images of one size, decoded at first use and from then on served from memory."""

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        height_px: int,
        width_px: int,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._paths = tuple(paths)
        self._size = (width_px, height_px)
        self._shape = (3, height_px, width_px)
        fits = len(self._paths) * 3 * height_px * width_px <= cache_bytes
        self._kept = np.zeros((len(self._paths) if fits else 0, *self._shape), dtype=np.uint8)
        self._present = np.zeros(len(self._kept), dtype=np.bool_)

    def __len__(self) -> int:
        return len(self._paths)

    def batch(self, indices_N: IndexArray) -> ByteArray:
        """pixels_NCHW as bytes.

        Raises:
            DatasetError: a file is gone or can't be decoded.
        """
        if not len(self._kept):
            return self._decode(indices_N)
        absent = np.unique(indices_N[~self._present[indices_N]])
        if len(absent):
            self._kept[absent] = self._decode(absent)
            self._present[absent] = True
        return self._kept[indices_N]

    def unreadable(self) -> tuple[int, ...]:
        """Which images can't be decoded; tries each, and keeps the others where they fit."""
        bad: list[int] = []
        for start in range(0, len(self), _TRIED_TOGETHER):
            block_N = np.arange(start, min(start + _TRIED_TOGETHER, len(self)))
            try:
                self.batch(block_N)
            except DatasetError:
                bad += [index for index in block_N.tolist() if not self._is_readable(index)]
        return tuple(bad)

    def _is_readable(self, index: int) -> bool:
        try:
            self.batch(np.array([index]))
        except DatasetError:
            return False
        return True

    def _decode(self, indices_N: IndexArray) -> ByteArray:
        pixels_NCHW = np.empty((len(indices_N), *self._shape), dtype=np.uint8)

        def fill(place: int) -> None:
            pixels_NCHW[place] = pixels_of(self._paths[indices_N[place]], self._size)

        with ThreadPoolExecutor(DECODERS) as pool:
            list(pool.map(fill, range(len(indices_N))))
        return pixels_NCHW


def pixels_of(path: Path, size: tuple[int, int]) -> ByteArray:
    """pixels_CHW of one file, resized to ``size`` (width, height).

    Raises:
        DatasetError: the file is gone or can't be decoded.
    """
    resized = decode(path).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(resized).transpose(2, 0, 1)


def normalise(pixels_NCHW: ByteArray, device: torch.device | None = None) -> Tensor:
    """images_NCHW for a backbone: 0..1, then ImageNet's mean and deviation; the evaluation form."""
    images_NCHW = torch.from_numpy(pixels_NCHW)
    if device is not None and device.type == "cuda":  # as bytes, and without waiting for the copy
        images_NCHW = images_NCHW.pin_memory().to(device, non_blocking=True)
    images_NCHW = images_NCHW.to(memory_format=torch.channels_last).to(torch.float32)
    scale_C = 1.0 / (255.0 * torch.tensor(STD_C, device=device))
    shift_C = torch.tensor(MEAN_C, device=device) / torch.tensor(STD_C, device=device)
    # Whole rows at once: with three values in a loop, the loop costs more than its work.
    rows_NHR = images_NCHW.permute(0, 2, 3, 1).flatten(2)
    width = pixels_NCHW.shape[3]
    rows_NHR.mul_(scale_C.repeat(width)).sub_(shift_C.repeat(width))
    return images_NCHW


def augment(
    pixels_NCHW: ByteArray,
    random: np.random.Generator,
    *,
    padding_px: int = 10,
    erasing: float = 0.0,
    device: torch.device | None = None,
) -> Tensor:
    """images_NCHW for training: pad and crop at random, flip half of them, normalise, erase.

    ``padding_px`` is the width of the black border from which a crop is cut.
    ``erasing`` is the probability that an image loses a rectangle, which becomes the mean colour.
    """
    images_NCHW = normalise(_flipped(_cropped(pixels_NCHW, random, padding_px), random), device)
    if erasing > 0.0:
        _erase(images_NCHW, random, erasing)
    return images_NCHW


def _cropped(pixels_NCHW: ByteArray, random: np.random.Generator, padding_px: int) -> ByteArray:
    pad = ((0, 0), (0, 0), (padding_px, padding_px), (padding_px, padding_px))
    padded = np.pad(pixels_NCHW, pad)
    windows = np.lib.stride_tricks.sliding_window_view(padded, pixels_NCHW.shape[2:], axis=(2, 3))
    count = len(pixels_NCHW)
    top_N, left_N = random.integers(0, 2 * padding_px + 1, size=(2, count))
    cropped: ByteArray = windows[np.arange(count), :, top_N, left_N]
    return cropped


def _flipped(pixels_NCHW: ByteArray, random: np.random.Generator) -> ByteArray:
    flip_N = random.random(len(pixels_NCHW)) < 0.5
    pixels_NCHW[flip_N] = pixels_NCHW[flip_N][..., ::-1]
    return pixels_NCHW


def _erase(images_NCHW: Tensor, random: np.random.Generator, probability: float) -> None:
    count, _, height, width = images_NCHW.shape
    for place in np.flatnonzero(random.random(count) < probability):
        area = random.uniform(*ERASED_AREA) * height * width
        aspect = np.exp(random.uniform(*np.log(ERASED_ASPECT)))
        rows = min(height, max(1, round(np.sqrt(area * aspect))))
        columns = min(width, max(1, round(np.sqrt(area / aspect))))
        top = int(random.integers(0, height - rows + 1))
        left = int(random.integers(0, width - columns + 1))
        images_NCHW[int(place), :, top : top + rows, left : left + columns] = 0.0
