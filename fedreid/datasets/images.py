"""What does an image file show, as 8-bit RGB, whatever form it was stored in?

Cameras and exporters leave grey, CMYK, palette, 16-bit and rotated files behind; a file that
can't be read is a :class:`DatasetError` that names it.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fedreid.errors import DatasetError
from fedreid.limits import UNREADABLE_SHARE

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
"""Endings, in lower case, of the files that count as images."""

IMAGE_PIXELS = 64 * 1024**2
"""Largest image that is decoded: a person crop is a hundredth of it, a bomb more."""

_DEEP = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N", "F"})


def is_image(name: str) -> bool:
    """Whether a file of that name counts as an image: a known ending, and not hidden."""
    stem, dot, ending = name.rpartition(".")
    return bool(stem) and not stem.startswith(".") and (dot + ending).lower() in SUFFIXES


def too_many_unreadable(unreadable: int, total: int) -> bool:
    """Whether so many of a silo's images are damaged that its disk or a copy must have failed.

    One damaged file never is: the smallest silo survives it.
    """
    return unreadable > max(1, UNREADABLE_SHARE * total)


def decode(path: Path) -> Image.Image:
    """The upright image in mode RGB.

    Raises:
        DatasetError: the file is missing, empty, truncated, no image, or far too large.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > IMAGE_PIXELS:
                raise ValueError(f"it has {image.width}×{image.height} pixels")
            return _to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and more
        raise DatasetError(
            f"The image {path} can't be read",
            why=_cause(path, error),
            next_step="Replace or remove the file; 'silo-agent data check' lists all such files.",
        ) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _DEEP:
        return _deep_to_grey(image).convert("RGB")
    return image.convert("RGB")


def _deep_to_grey(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit or float grey to 8 bit by the smallest range that holds it."""
    values_HW = np.asarray(image).astype(np.float64)
    top = float(values_HW.max(initial=0.0))
    white = next((limit for limit in (1.0, 255.0, 65535.0) if top <= limit), top)
    if image.mode.startswith("I;16"):
        white = 65535.0
    elif image.mode == "I":
        white = max(white, 255.0)
    return Image.fromarray(np.clip(values_HW * (255.0 / white), 0, 255).astype(np.uint8))


def _cause(path: Path, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it is not there any more"
    if isinstance(error, PermissionError):
        return "access is denied"
    if path.is_file() and path.stat().st_size == 0:
        return "it is empty"
    if isinstance(error, UnidentifiedImageError):
        return "it is no image of a known kind"
    return str(error).replace(str(path), "it").splitlines()[0] if str(error) else "it is damaged"
