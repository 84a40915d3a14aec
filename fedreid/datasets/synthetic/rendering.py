"""How do the planned images get onto the disk, quickly and the same every time?"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path

from PIL import Image

from fedreid.datasets.synthetic.climate import silo_climate, silo_name
from fedreid.datasets.synthetic.image import draw_image
from fedreid.datasets.synthetic.shots import GALLERY, QUERY, TRAIN, Kind, Shot, plan_shots
from fedreid.datasets.synthetic.spec import SiloCounts, SyntheticSpec, SyntheticSummary
from fedreid.errors import UsageError, storage_errors
from fedreid.files import make_folder, write_bytes

SHOTS_PER_TASK = 24  # a quarter of a second of drawing: progress moves, pickling does not count
SHEET_ROWS = 10
SHEET_COLUMNS = 12
SHEET_GAP_PX = 3


def render(
    out: Path,
    spec: SyntheticSpec,
    *,
    workers: int,
    progress: Callable[[int, int], None] | None = None,
) -> SyntheticSummary:
    """Draw every image of the spec below `out`, in Market-1501 folders and names.

    `out/SILO/{bounding_box_train,query,bounding_box_test}/`, `out/public/`, a contact sheet
    `out/SILO.png` for each silo, and at last `out/synthetic.json`: a folder without it is
    half-made. The bytes depend on the spec alone, not on `workers`.

    Args:
        out: a folder that does not exist yet or is empty.
        spec: what to draw.
        workers: processes that draw; 1 draws in this process.
        progress: called with (images done, images in all) after every few images.

    Raises:
        UsageError: `out` holds something already, or workers is below 1.
        StorageError: the disk is full, read-only or fails.
    """
    if workers < 1:
        raise UsageError(f"workers is {workers}", next_step="Give 1 or more.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(
            f"{out} is not empty",
            why="synthetic images are never mixed with what is there",
            next_step="Choose a new folder, or empty this one.",
        )
    begun = time.monotonic()
    shots = plan_shots(spec)
    for folder in sorted({Path(shot.path).parent for shot in shots}):
        make_folder(out / folder)
    done = 0
    for drawn in _drawn(out, spec, shots, workers):
        done += drawn
        if progress is not None:
            progress(done, len(shots))
    for silo in range(spec.silos):
        _write_sheet(out, silo_name(silo), shots)
    summary = SyntheticSummary(
        out=out,
        silos=tuple(_counts(spec, silo, shots) for silo in range(spec.silos)),
        public_images=spec.public_images,
        images=len(shots),
        seconds=time.monotonic() - begun,
    )
    counts = [asdict(silo) for silo in summary.silos]
    made = {"spec": asdict(spec), "silos": counts, "public_images": spec.public_images}
    write_bytes(out / "synthetic.json", json.dumps(made, indent=2).encode() + b"\n")
    return summary


def _drawn(out: Path, spec: SyntheticSpec, shots: list[Shot], workers: int) -> Iterator[int]:
    """Numbers of images drawn, task by task."""
    tasks = [shots[i : i + SHOTS_PER_TASK] for i in range(0, len(shots), SHOTS_PER_TASK)]
    draw = partial(_draw_task, out, spec)
    if workers == 1:
        yield from map(draw, tasks)
        return
    # Spawned, for the caller may hold threads (torch, gRPC) that a fork would break.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(draw, tasks)


def _draw_task(out: Path, spec: SyntheticSpec, shots: list[Shot]) -> int:
    # Written plainly: syncing each image would double the time, and synthetic.json, which is
    # written last and durably, tells whether all of them are there.
    for shot in shots:
        path = out / shot.path
        with storage_errors("write", path):
            path.write_bytes(draw_image(spec, shot))
    return len(shots)


def _counts(spec: SyntheticSpec, silo: int, shots: list[Shot]) -> SiloCounts:
    name = silo_name(silo)
    images = Counter(Path(shot.path).parent.name for shot in shots if shot.place == name)
    return SiloCounts(
        name=name,
        cameras=silo_climate(silo).cameras,
        train_identities=spec.train_identities(silo),
        test_identities=spec.test_identities,
        train=images[TRAIN],
        query=images[QUERY],
        gallery=images[GALLERY],
    )


def _write_sheet(out: Path, place: str, shots: list[Shot]) -> None:
    """A row for each of the first identities of the silo, a column for each image by camera."""
    rows: dict[int, list[Shot]] = {}
    for shot in shots:
        if (
            shot.place == place
            and shot.kind is Kind.PERSON
            and len(rows | {shot.person: 0}) <= SHEET_ROWS
        ):
            rows.setdefault(shot.person, []).append(shot)
    pictures = [[_open(out / shot.path) for shot in row[:SHEET_COLUMNS]] for row in rows.values()]
    width, height = (side + SHEET_GAP_PX for side in pictures[0][0].size)
    columns = max(len(row) for row in pictures)
    sheet = Image.new("RGB", (columns * width, len(pictures) * height), "white")
    for r, row in enumerate(pictures):
        for c, picture in enumerate(row):
            sheet.paste(picture, (c * width, r * height))
    stream = BytesIO()
    sheet.save(stream, "PNG")
    write_bytes(out / f"{place}.png", stream.getvalue())


def _open(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
