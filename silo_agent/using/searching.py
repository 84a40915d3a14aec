"""Where else was this person seen? Queries against a gallery, as a table and as a picture."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedreid.datasets.checks import Unreadable
from fedreid.files import write_bytes
from fedreid.pictures.ranked import RankedQuery, ranked_picture
from silo_agent.using.chosen import ChosenModel
from silo_agent.using.embedding import Embedded, embed
from silo_agent.using.gallery import Ranked, check_comparable, is_gallery_file, load, search
from silo_agent.using.provenance import Provenance

PICTURE_QUERIES = 20
"""Queries in one picture: more make it too high to look at."""
PICTURE_RANKS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search gave."""

    model: Provenance
    ranked: tuple[Ranked, ...]
    num_gallery: int
    skipped: tuple[Unreadable, ...]
    """Unreadable files of folders."""


def search_images(
    chosen: ChosenModel,
    queries: Sequence[Path],
    gallery: Path,
    *,
    top: int,
    tell: Callable[[int, int], None],
) -> Found:
    """Rank the gallery, a folder of images or a file of embeddings, for each query image.

    Raises:
        UsageError: the gallery was embedded by another model, or FAISS is not installed.
        DatasetError: images are missing, or a file named itself can't be decoded.
        StorageError: the gallery file is missing or damaged.
    """
    searched = _read(chosen, gallery) if is_gallery_file(gallery) else None
    asked = embed(chosen, queries, tell=tell)  # first: a mistyped name costs no gallery's work
    searched = searched or embed(chosen, [gallery], tell=tell)
    return Found(
        model=chosen.provenance,
        ranked=tuple(search(asked.embeddings, searched.embeddings, top=top)),
        num_gallery=len(searched.embeddings.paths),
        skipped=(*searched.skipped, *asked.skipped),
    )


def _read(chosen: ChosenModel, gallery: Path) -> Embedded:
    embeddings = load(gallery)
    check_comparable(chosen.provenance, embeddings.provenance)
    return Embedded(embeddings=embeddings, skipped=())


def write_table(found: Found, out: Path) -> None:
    """Durably write one CSV line per match: query, rank, path, similarity."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(("query", "rank", "path", "similarity"))
    for one in found.ranked:
        for rank, match in enumerate(one.matches, start=1):
            writer.writerow((one.query, rank, match.path, f"{match.similarity:.6f}"))
    write_bytes(out, stream.getvalue().encode())


def draw_matches(found: Found, out: Path) -> Path:
    """Draw the first queries with their best matches; frames are grey, nobody knows who it is.

    Raises:
        DatasetError: an image is gone since it was embedded.
    """
    rows = [
        RankedQuery(
            query=Path(one.query),
            gallery=tuple(Path(match.path) for match in one.matches[:PICTURE_RANKS]),
            correct=(None,) * len(one.matches[:PICTURE_RANKS]),
            captions=tuple(f"{match.similarity:.2f}" for match in one.matches[:PICTURE_RANKS]),
        )
        for one in found.ranked[:PICTURE_QUERIES]
    ]
    title = f"{found.model.named()} · {found.num_gallery} gallery images"
    return ranked_picture(rows, out, title=title[0].upper() + title[1:])
