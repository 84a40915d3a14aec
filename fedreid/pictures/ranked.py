"""What does a model find? A picture of queries, each with its best gallery images.

A match is framed green and ticked, a wrong one framed red and crossed, so that the picture can
be read without colours too. Where nobody knows who is shown, frames are grey.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from fedreid.datasets.images import decode
from fedreid.files import write_bytes
from fedreid.pictures.theme import LIGHT, Theme

_TILE = (104, 208)
_FRAME_PX = 6
_GAP_PX = 14
_QUERY_GAP_PX = 40
_TITLE_PX = 52
_TOP_PX = 44
_BADGE_PX = 30
_CAPTION_PX = 28
_FONT_PX = 24
_SMALL_FONT_PX = 17


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedQuery:
    """One query image and its gallery images, best first."""

    query: Path
    gallery: tuple[Path, ...]
    correct: tuple[bool | None, ...]
    """For each gallery image, whether it shows the query's person; None where nobody knows."""
    captions: tuple[str, ...] = ()
    """A word below each gallery image, or none below any."""


def ranked_picture(
    rows: Sequence[RankedQuery], out: Path, *, theme: Theme = LIGHT, title: str = ""
) -> Path:
    """Write a PNG with one row per query: the query, then its gallery images by rank.

    Raises:
        ValueError: there is no row, or a row's flags or captions do not fit its images.
        DatasetError: an image can't be read.
        StorageError: the picture can't be written.
    """
    if not rows or any(len(row.gallery) != len(row.correct) for row in rows):
        raise ValueError("a ranked picture needs rows with one flag per gallery image")
    if any(row.captions and len(row.captions) != len(row.gallery) for row in rows):
        raise ValueError("a row with captions needs one per gallery image")
    page = _Page(
        rows=len(rows),
        ranks=max(1, *(len(row.gallery) for row in rows)),
        title=title,
        captioned=any(row.captions for row in rows),
        theme=theme,
    )
    for index, row in enumerate(rows):
        page.draw_row(index, row)
    buffer = BytesIO()
    page.canvas.save(buffer, format="PNG")
    write_bytes(out, buffer.getvalue())
    return out


class _Page:
    """The canvas, and where what stands on it."""

    def __init__(self, *, rows: int, ranks: int, title: str, captioned: bool, theme: Theme) -> None:
        self._theme = theme
        self._first_top = _TOP_PX + (_TITLE_PX if title else 0)
        self._row_px = _TILE[1] + 2 * _FRAME_PX + _GAP_PX + (_CAPTION_PX if captioned else 0)
        words_px = ImageFont.load_default(_FONT_PX).getlength(title) + 2 * (_GAP_PX + _FRAME_PX)
        size = (max(_left(ranks), round(words_px)), self._top(rows))
        self.canvas = Image.new("RGB", size, theme.surface)
        self._draw = ImageDraw.Draw(self.canvas)
        if title:
            corner = (_GAP_PX + _FRAME_PX, _TITLE_PX / 2 + _FRAME_PX)
            self._text(corner, title, theme.ink, _FONT_PX, "lm")
        for left, text in (
            (_GAP_PX, "query"), *((_left(rank), str(rank + 1)) for rank in range(ranks)),
        ):  # fmt: skip
            place = (_middle(left), self._first_top - _TOP_PX / 2)
            self._text(place, text, theme.muted, _FONT_PX, "mm")

    def draw_row(self, index: int, row: RankedQuery) -> None:
        """The row's query, then its gallery images."""
        theme, top = self._theme, self._top(index)
        self._tile(row.query, (_GAP_PX, top), theme.muted)
        for rank, (path, correct) in enumerate(zip(row.gallery, row.correct, strict=True)):
            place = (_left(rank), top)
            if correct is None:
                self._tile(path, place, theme.grid)
            else:
                colour = theme.good if correct else theme.bad
                self._tile(path, place, colour)
                self._badge(place, colour, correct=correct)
        below = top + _TILE[1] + 2 * _FRAME_PX + _CAPTION_PX / 2
        for rank, caption in enumerate(row.captions):
            self._text((_middle(_left(rank)), below), caption, theme.muted, _SMALL_FONT_PX, "mm")

    def _top(self, index: int) -> int:
        return self._first_top + index * self._row_px

    def _text(
        self, place: tuple[float, float], text: str, colour: str, size: int, anchor: str
    ) -> None:
        self._draw.text(place, text, fill=colour, font=ImageFont.load_default(size), anchor=anchor)

    def _tile(self, path: Path, place: tuple[int, int], colour: str) -> None:
        left, top = place
        box = (left, top, left + _TILE[0] + 2 * _FRAME_PX - 1, top + _TILE[1] + 2 * _FRAME_PX - 1)
        self._draw.rounded_rectangle(box, radius=_FRAME_PX, fill=colour)
        picture = decode(path).resize(_TILE, Image.Resampling.BICUBIC)
        self.canvas.paste(picture, (left + _FRAME_PX, top + _FRAME_PX))

    def _badge(self, place: tuple[int, int], colour: str, *, correct: bool) -> None:
        """A tick or a cross in the tile's lower right corner."""
        draw, ground = self._draw, self._theme.surface
        x = place[0] + _TILE[0] + 2 * _FRAME_PX - _BADGE_PX
        y = place[1] + _TILE[1] + 2 * _FRAME_PX - _BADGE_PX
        draw.rounded_rectangle((x, y, x + _BADGE_PX - 1, y + _BADGE_PX - 1), _FRAME_PX, fill=colour)
        a, b, c = x + 9, x + 14, x + 22
        if correct:
            draw.line([(a - 1, y + 16), (b - 1, y + 21), (c, y + 10)], fill=ground, width=4)
        else:
            draw.line([(a, y + 9), (c - 1, y + 21)], fill=ground, width=4)
            draw.line([(c - 1, y + 9), (a, y + 21)], fill=ground, width=4)


def _left(rank: int) -> int:
    """Left edge of a gallery tile; the query stands before all of them, a little apart."""
    tile = _TILE[0] + 2 * _FRAME_PX
    return _GAP_PX + tile + _QUERY_GAP_PX + rank * (tile + _GAP_PX)


def _middle(left: int) -> float:
    return left + _FRAME_PX + _TILE[0] / 2
