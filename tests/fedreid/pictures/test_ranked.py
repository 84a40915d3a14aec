"""Can a person tell matches from mistakes in a ranked picture?"""

from pathlib import Path

import pytest
from PIL import Image, ImageColor

from fedreid.errors import DatasetError
from fedreid.pictures.ranked import RankedQuery, ranked_picture
from fedreid.pictures.theme import DARK, LIGHT, Theme

Colour = tuple[int, int, int]


@pytest.fixture
def grey(tmp_path: Path) -> Path:
    """An image in a colour that no theme has."""
    path = tmp_path / "grey.png"
    Image.new("RGB", (32, 64), "#808000").save(path)
    return path


def row(image: Path, *correct: bool | None, captions: tuple[str, ...] = ()) -> RankedQuery:
    return RankedQuery(
        query=image, gallery=(image,) * len(correct), correct=correct, captions=captions
    )


def frames(picture: Path, theme: Theme) -> list[str]:
    """The colours of the frames of the first row, from left to right."""
    named = {
        ImageColor.getrgb(getattr(theme, name)): name for name in ("good", "bad", "grid", "muted")
    }
    with Image.open(picture) as image:
        height = image.height // 2
        line = [image.getpixel((x, height)) for x in range(image.width)]
    seen = [named[colour] for colour in line if colour in named]
    return [name for at, name in enumerate(seen) if at % 12 == 0]  # two sides of 6 pixels


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_matches_are_green_mistakes_red_and_the_unknown_grey(
    tmp_path: Path, grey: Path, theme: Theme
) -> None:
    out = ranked_picture([row(grey, True, False, None)], tmp_path / "out.png", theme=theme)
    assert frames(out, theme) == ["muted", "good", "bad", "grid"]


def test_captions_and_title_take_their_own_place(tmp_path: Path, grey: Path) -> None:
    def size(title: str = "", captions: tuple[str, ...] = ()) -> tuple[int, int]:
        rows = [row(grey, True, False, captions=captions)] * 2
        with Image.open(ranked_picture(rows, tmp_path / "out.png", title=title)) as image:
            return image.size

    plain = size()
    assert size(title="Who")[1] > plain[1]
    assert size(captions=("0.9", "0.8"))[1] > plain[1]
    assert size(title="A title that is wider than three tiles " * 3)[0] > plain[0]


def test_rows_that_do_not_fit_their_flags_are_refused(tmp_path: Path, grey: Path) -> None:
    wrong = RankedQuery(query=grey, gallery=(grey,), correct=())
    for rows in ([], [wrong], [row(grey, True, captions=("a", "b"))]):
        with pytest.raises(ValueError):
            ranked_picture(rows, tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()


def test_an_image_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"gone\.jpg"):
        ranked_picture([row(tmp_path / "gone.jpg", True)], tmp_path / "out.png")
