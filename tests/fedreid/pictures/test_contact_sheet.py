from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedreid.pictures import contact_sheet
from fedreid.pictures.contact_sheet import Heading, Row, Sheet, draw_sheet, legible
from fedreid.pictures.theme import LIGHT

RED = (200, 10, 30)


def heading(title: str) -> Heading:
    return Heading(title=title, note="2 images", other_title="other")


def sheet(*images: Path, title: str = "identity 1") -> Sheet:
    rows = (
        Row(heading=heading(title), cells=(images, ())),
        Row(heading=heading("identity 2"), cells=((), images[:1])),
    )
    return Sheet(
        title="station", caption=("two", "lines"), columns=(heading("camera 1"), heading("door")),
        rows=rows, footer="2 of 2 identities are shown.",
    )  # fmt: skip


def pixels_of(path: Path, colour: tuple[int, ...]) -> int:
    with Image.open(path) as image:
        return int((np.asarray(image) == np.array(colour)).all(axis=2).sum())


@pytest.fixture
def red(tmp_path: Path) -> Path:
    Image.new("RGB", (20, 40), RED).save(tmp_path / "red.png")
    return tmp_path / "red.png"


def test_every_image_is_on_the_sheet_in_full(tmp_path: Path, red: Path) -> None:
    written = draw_sheet(sheet(red, red), tmp_path / "sheet.png")
    width, height = contact_sheet._TILE
    assert pixels_of(written, RED) == 3 * width * height


def test_an_unreadable_image_is_a_box_and_not_an_error(tmp_path: Path, red: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    written = draw_sheet(sheet(tmp_path / "empty.jpg", red), tmp_path / "sheet.png")
    width, height = contact_sheet._TILE
    assert pixels_of(written, RED) == width * height
    bad = tuple(bytes.fromhex(LIGHT.bad[1:]))
    assert pixels_of(written, bad) > 2 * (width + height)


def test_long_and_foreign_titles_do_not_widen_the_sheet(tmp_path: Path, red: Path) -> None:
    plain = draw_sheet(sheet(red), tmp_path / "plain.png")
    for number, title in enumerate(("x" * 300, "安娜", "\U000f0000", "")):
        other = draw_sheet(sheet(red, title=title), tmp_path / f"{number}.png")
        with Image.open(plain) as one, Image.open(other) as two:
            assert one.size == two.size


def test_letters_without_a_glyph_are_noticed() -> None:
    assert legible("Jose 12")
    assert not legible("\U000f0000")
    assert not legible("caf\udce9")
