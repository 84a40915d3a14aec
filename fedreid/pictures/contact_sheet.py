"""How does a contact sheet look? A row per person, a group of columns per camera, all with words.

What stands where is decided by the caller; this module only lays it out and draws.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from fedreid.datasets.images import decode
from fedreid.errors import DatasetError
from fedreid.files import write_bytes
from fedreid.pictures.theme import LIGHT, Theme

_TILE = (84, 168)
_GAP_PX = 6
_GROUP_GAP_PX = 26
_ROW_GAP_PX = 22
_MARGIN_PX = 36
_LABELS_PX = 190
_TITLE_PX = 34
_TEXT_PX = 20
_NOTE_PX = 16
_BOX_PX = 13
_HEAD_PX = 150
"""Height of title and caption."""
_HEADING_PX = 66
"""Height of the cameras' headings."""
_FOOT_PX = 56
_NARROWEST_PX = 900
"""Width that a caption needs, however few columns there are."""

_FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial.ttf")
"""Looked for on the machine in this order: they know more alphabets than Pillow's own font."""

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """What is written beside a row or above a group of columns."""

    title: str
    note: str
    other_title: str
    """Stands in for a title whose letters no font on this machine has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One person: for each camera some images, or none."""

    heading: Heading
    cells: tuple[tuple[Path, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A whole contact sheet; every row has as many cells as there are columns."""

    title: str
    caption: tuple[str, ...]
    """One or two lines below the title."""
    columns: tuple[Heading, ...]
    rows: tuple[Row, ...]
    footer: str


def draw_sheet(sheet: Sheet, out: Path, *, theme: Theme = LIGHT) -> Path:
    """Durably write the sheet as PNG; an unreadable image is drawn as a box that says so.

    Raises:
        StorageError: the file can't be written.
    """
    widths = [_group_width(sheet, index) for index in range(len(sheet.columns))]
    width = max(_NARROWEST_PX, 2 * _MARGIN_PX + _LABELS_PX + sum(widths))
    height = _HEAD_PX + _HEADING_PX + len(sheet.rows) * (_TILE[1] + _ROW_GAP_PX) + _FOOT_PX
    canvas = Image.new("RGB", (width, height), theme.surface)
    draw = ImageDraw.Draw(canvas)
    _draw_head(draw, sheet, theme)
    lefts = [_MARGIN_PX + _LABELS_PX + sum(widths[:index]) for index in range(len(widths))]
    for left, group_width, heading in zip(lefts, widths, sheet.columns, strict=True):
        _draw_camera(draw, left, group_width - _GROUP_GAP_PX, heading, theme)
    for number, row in enumerate(sheet.rows):
        top = _HEAD_PX + _HEADING_PX + number * (_TILE[1] + _ROW_GAP_PX)
        _draw_row(canvas, top, lefts, row, theme)
    foot = (_MARGIN_PX, height - _FOOT_PX / 2)
    _write(draw, foot, sheet.footer, _NOTE_PX, theme.muted, width - 2 * _MARGIN_PX, anchor="lm")
    stream = BytesIO()
    canvas.save(stream, "PNG", optimize=True)
    write_bytes(out, stream.getvalue())
    return out


def legible(text: str, size: int = _TEXT_PX) -> bool:
    """Whether this machine's font has a letter for each character."""
    font = _font(size)
    nothing = bytes(font.getmask("\uffff"))
    return all(
        letter.isspace() or (letter.isprintable() and bytes(font.getmask(letter)) != nothing)
        for letter in text
    )


def _group_width(sheet: Sheet, column: int) -> int:
    images = max([len(row.cells[column]) for row in sheet.rows] + [1])
    words = max(_length(sheet.columns[column].title, _TEXT_PX), 1.6 * _TILE[0])
    tiles = images * (_TILE[0] + _GAP_PX) - _GAP_PX
    return max(tiles, int(min(words, 3 * _TILE[0]))) + _GROUP_GAP_PX


def _draw_head(draw: ImageDraw.ImageDraw, sheet: Sheet, theme: Theme) -> None:
    room = draw.im.size[0] - 2 * _MARGIN_PX
    place = (_MARGIN_PX, 50)
    _write(draw, place, sheet.title, _TITLE_PX, theme.ink, room, anchor="ls", bold=True)
    for number, line in enumerate(sheet.caption):
        place = (_MARGIN_PX, 84 + 28 * number)
        _write(draw, place, line, _TEXT_PX, theme.muted, room, anchor="ls")


def _draw_camera(
    draw: ImageDraw.ImageDraw, left: int, width: int, heading: Heading, theme: Theme
) -> None:
    top = _HEAD_PX
    title = heading.title if legible(heading.title) else heading.other_title
    _write(draw, (left, top + 20), title, _TEXT_PX, theme.ink, width, anchor="ls", bold=True)
    _write(draw, (left, top + 42), heading.note, _NOTE_PX, theme.muted, width, anchor="ls")
    draw.line([(left, top + 53), (left + width - 1, top + 53)], fill=theme.series[0], width=3)


def _draw_row(canvas: Image.Image, top: int, lefts: list[int], row: Row, theme: Theme) -> None:
    draw = ImageDraw.Draw(canvas)
    if top > _HEAD_PX + _HEADING_PX:
        line = top - _ROW_GAP_PX // 2
        right = canvas.width - _MARGIN_PX
        draw.line([(_MARGIN_PX, line), (right, line)], fill=theme.grid, width=1)
    room = _LABELS_PX - _GAP_PX
    title = row.heading.title if legible(row.heading.title) else row.heading.other_title
    _write(draw, (_MARGIN_PX, top + 20), title, _TEXT_PX, theme.ink, room, anchor="ls", bold=True)
    for number, line_of_note in enumerate(row.heading.note.split("\n")):
        place = (_MARGIN_PX, top + 44 + 22 * number)
        _write(draw, place, line_of_note, _NOTE_PX, theme.muted, room, anchor="ls")
    for left, images in zip(lefts, row.cells, strict=True):
        for number, path in enumerate(images):
            _draw_tile(canvas, (left + number * (_TILE[0] + _GAP_PX), top), path, theme)
        if not images:
            right, bottom = left + _TILE[0] - 1, top + _TILE[1] - 1
            draw.rectangle((left, top, right, bottom), outline=theme.grid)


def _draw_tile(canvas: Image.Image, place: tuple[int, int], path: Path, theme: Theme) -> None:
    try:
        picture = decode(path).resize(_TILE, Image.Resampling.BICUBIC)
    except DatasetError:
        draw = ImageDraw.Draw(canvas)
        left, top = place
        box = (left, top, left + _TILE[0] - 1, top + _TILE[1] - 1)
        draw.rectangle(box, outline=theme.bad, width=2)
        middle = (left + _TILE[0] // 2, top + _TILE[1] // 2)
        _write(draw, middle, "unreadable", _BOX_PX, theme.bad, _TILE[0] - 6, anchor="mm")
        return
    canvas.paste(picture, place)


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    size: int,
    colour: str,
    room: float,
    *,
    anchor: str,
    bold: bool = False,
) -> None:
    """Write one line, cut with an ellipsis where it is longer than ``room`` pixels."""
    fitting = text
    while fitting and _length(fitting, size) > room:
        fitting = fitting[:-2].rstrip() + "…"
    font = _font(size)
    draw.text(place, fitting, fill=colour, font=font, anchor=anchor, stroke_width=0.4 * bold)


def _length(text: str, size: int) -> float:
    return float(_font(size).getlength(text))


@cache
def _font(size: int) -> _Font:
    for name in _candidates():
        return ImageFont.truetype(name, size)
    return ImageFont.load_default(size)


def _candidates() -> Iterator[str]:
    for name in _FONTS:
        try:
            ImageFont.truetype(name)
        except OSError:
            continue
        yield name
