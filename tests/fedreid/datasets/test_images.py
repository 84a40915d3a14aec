from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedreid.datasets import images
from fedreid.datasets.images import decode, is_image
from fedreid.errors import DatasetError

RED = (200, 10, 30)


def saved(path: Path, mode: str, colour: float | tuple[int, ...], **options: int) -> Path:
    Image.new(mode, (12, 24), colour).save(path, None, **options)
    return path


def colour_of(path: Path) -> tuple[int, ...]:
    image = decode(path)
    assert image.mode == "RGB"
    assert image.size == (12, 24)
    pixels = np.asarray(image).reshape(-1, 3)
    assert (pixels == pixels[0]).all()
    return tuple(int(value) for value in pixels[0])


def test_colour_images_stay_as_they_are(tmp_path: Path) -> None:
    assert colour_of(saved(tmp_path / "a.png", "RGB", RED)) == RED
    assert colour_of(saved(tmp_path / "a.bmp", "RGB", RED)) == RED


def test_transparency_is_dropped(tmp_path: Path) -> None:
    assert colour_of(saved(tmp_path / "a.png", "RGBA", (*RED, 255))) == RED


def test_palette_grey_and_bilevel_become_rgb(tmp_path: Path) -> None:
    palette = Image.new("RGB", (12, 24), RED).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "palette.png")
    assert colour_of(tmp_path / "palette.png") == RED
    assert colour_of(saved(tmp_path / "grey.jpg", "L", 90)) == (90, 90, 90)
    assert colour_of(saved(tmp_path / "alpha.png", "LA", (90, 255))) == (90, 90, 90)
    assert colour_of(saved(tmp_path / "bilevel.png", "1", 1)) == (255, 255, 255)


def test_cmyk_becomes_rgb(tmp_path: Path) -> None:
    red, green, blue = colour_of(saved(tmp_path / "a.jpg", "CMYK", (0, 255, 255, 0), quality=95))
    assert red > 200
    assert green < 60
    assert blue < 60


def test_deep_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    assert colour_of(saved(tmp_path / "a.png", "I;16", 32896)) == (128, 128, 128)
    assert colour_of(saved(tmp_path / "b.tif", "I", 32896)) == (128, 128, 128)
    assert colour_of(saved(tmp_path / "c.tif", "F", 0.5)) == (127, 127, 127)
    assert colour_of(saved(tmp_path / "d.tif", "I", 0)) == (0, 0, 0)


def test_exif_rotation_is_undone(tmp_path: Path) -> None:
    image = Image.new("RGB", (24, 12))
    image.paste(RED, (0, 0, 12, 12))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the top is at the right
    image.save(tmp_path / "turned.png", exif=exif)
    upright = decode(tmp_path / "turned.png")
    assert upright.size == (12, 24)
    assert upright.getpixel((6, 2)) == RED


def refused(path: Path) -> str:
    with pytest.raises(DatasetError) as caught:
        decode(path)
    assert str(path) in caught.value.what
    return caught.value.why


def test_each_bad_file_is_named_with_its_cause(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "folder.jpg").mkdir()
    assert refused(tmp_path / "empty.jpg") == "it is empty"
    assert refused(tmp_path / "text.jpg") == "it is no image of a known kind"
    assert refused(tmp_path / "missing.jpg") == "it is not there any more"
    assert refused(tmp_path / "folder.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "webp", "tif"])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str) -> None:
    random = np.random.default_rng(0)
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(random.integers(0, 256, (64, 32, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert refused(path)


def test_a_bomb_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "IMAGE_PIXELS", 100)
    assert "24 pixels" in refused(saved(tmp_path / "large.png", "RGB", RED))


def test_images_are_told_by_their_endings() -> None:
    assert all(is_image(name) for name in ("a.jpg", "b.JPEG", "c.png", "d.jpg.jpg"))
    assert not any(is_image(name) for name in ("a.txt", "Thumbs.db", ".hidden.jpg", "._a.jpg", "b"))
