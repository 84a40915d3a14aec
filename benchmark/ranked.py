"""What does a model find? A picture of queries, each with its best gallery images.

A match is framed green and ticked, a wrong one framed red and crossed, so that the picture can
be read without colours too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from benchmark.theme import LIGHT, Theme
from fedreid.datasets.images import decode
from fedreid.files import write_bytes

_TILE = (104, 208)
_FRAME_PX = 6
_GAP_PX = 14
_QUERY_GAP_PX = 40
_TOP_PX = 44
_BADGE_PX = 30
_FONT_PX = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedQuery:
    """One query image and its gallery images, best first."""

    query: Path
    gallery: tuple[Path, ...]
    correct: tuple[bool, ...]
    """For each gallery image, whether it shows the query's person."""


def ranked_picture(rows: Sequence[RankedQuery], out: Path, *, theme: Theme = LIGHT) -> Path:
    """Write a PNG with one row per query: the query, then its gallery images by rank.

    Raises:
        ValueError: there is no row, or a row's flags do not fit its images.
        DatasetError: an image can't be read.
    """
    if not rows or any(len(row.gallery) != len(row.correct) for row in rows):
        raise ValueError("a ranked picture needs rows with one flag per gallery image")
    ranks = max(len(row.gallery) for row in rows)
    canvas = Image.new("RGB", (_left(ranks), _top(len(rows))), theme.surface)
    draw = ImageDraw.Draw(canvas)
    _label(draw, _left(0) - _QUERY_GAP_PX - _TILE[0] - 2 * _FRAME_PX, "query", theme)
    for rank in range(ranks):
        _label(draw, _left(rank), str(rank + 1), theme)
    for index, row in enumerate(rows):
        _draw_row(canvas, row, _top(index), theme)
    buffer = BytesIO()
    canvas.save(buffer, format="PNG", optimize=True)
    write_bytes(out, buffer.getvalue())
    return out


def _draw_row(canvas: Image.Image, row: RankedQuery, top: int, theme: Theme) -> None:
    _tile(canvas, row.query, (_GAP_PX, top), theme.muted)
    for rank, (path, correct) in enumerate(zip(row.gallery, row.correct, strict=True)):
        colour = theme.good if correct else theme.bad
        _tile(canvas, path, (_left(rank), top), colour)
        _badge(canvas, (_left(rank), top), colour, theme, correct=correct)


def _tile(canvas: Image.Image, path: Path, place: tuple[int, int], colour: str) -> None:
    left, top = place
    box = (left, top, left + _TILE[0] + 2 * _FRAME_PX - 1, top + _TILE[1] + 2 * _FRAME_PX - 1)
    ImageDraw.Draw(canvas).rounded_rectangle(box, radius=_FRAME_PX, fill=colour)
    picture = decode(path).resize(_TILE, Image.Resampling.BICUBIC)
    canvas.paste(picture, (left + _FRAME_PX, top + _FRAME_PX))


def _badge(
    canvas: Image.Image, place: tuple[int, int], colour: str, theme: Theme, *, correct: bool
) -> None:
    """A tick or a cross in the tile's lower right corner."""
    draw = ImageDraw.Draw(canvas)
    x = place[0] + _TILE[0] + 2 * _FRAME_PX - _BADGE_PX
    y = place[1] + _TILE[1] + 2 * _FRAME_PX - _BADGE_PX
    draw.rounded_rectangle((x, y, x + _BADGE_PX - 1, y + _BADGE_PX - 1), _FRAME_PX, fill=colour)
    a, b, c = x + 9, x + 14, x + 22
    if correct:
        draw.line([(a - 1, y + 16), (b - 1, y + 21), (c, y + 10)], fill=theme.surface, width=4)
    else:
        draw.line([(a, y + 9), (c - 1, y + 21)], fill=theme.surface, width=4)
        draw.line([(c - 1, y + 9), (a, y + 21)], fill=theme.surface, width=4)


def _left(rank: int) -> int:
    """Left edge of a gallery tile; the query stands before all of them, a little apart."""
    tile = _TILE[0] + 2 * _FRAME_PX
    return _GAP_PX + tile + _QUERY_GAP_PX + rank * (tile + _GAP_PX)


def _top(index: int) -> int:
    return _TOP_PX + index * (_TILE[1] + 2 * _FRAME_PX + _GAP_PX)


def _label(draw: ImageDraw.ImageDraw, left: int, text: str, theme: Theme) -> None:
    middle = left + _FRAME_PX + _TILE[0] / 2
    font = ImageFont.load_default(_FONT_PX)
    draw.text((middle, _TOP_PX / 2), text, fill=theme.muted, font=font, anchor="mm")
