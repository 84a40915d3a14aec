"""How do a dataset's check and an upload look on a terminal?"""

import msgspec

from fedreid.console import print_json, print_table, say
from fedreid.datasets.checks import DatasetCheck
from fedreid.errors import UsageError
from fedreid.wire.tensors import TensorFile
from silo_agent.config import Folders, load_config
from silo_agent.egress import Parcel, pack
from silo_agent.outbox import UPDATE_FILE, Outbox


def print_check(found: DatasetCheck, *, as_json: bool) -> None:
    """Counts per split, image sizes, unreadable files, warnings and refusals."""
    if as_json:
        print_json(msgspec.to_builtins(found, enc_hook=str))
        return
    rows = [
        (split, str(count.images), str(count.identities), str(count.cameras))
        for split, count in found.splits.items()
    ]
    title = f"{found.root} in the layout {found.layout}"
    print_table(title, ("split", "images", "identities", "cameras"), rows)
    (narrow, wide), (low, high) = found.width_px, found.height_px
    say(f"image sizes: {narrow} to {wide} wide, {low} to {high} high, in pixels")
    for file in found.unreadable:
        say(f"unreadable: {file.path}: {file.why}")
    for sentence in found.warnings:
        say(f"warning: {sentence}")
    for sentence in found.refusals:
        say(f"refused: {sentence}")


def print_parcel(folders: Folders, *, as_json: bool) -> None:
    """Every tensor and number of the newest upload.

    Raises:
        UsageError: no round has been trained yet.
    """
    outbox = Outbox(folders)
    last = outbox.last()
    if last is None:
        raise UsageError(
            "This silo has not trained a round yet", next_step="Take part first: silo-agent run."
        )
    update = outbox.folder(last) / UPDATE_FILE
    with TensorFile(update) as file:
        layout = file.layout
    parcel = pack(
        outbox.folder(last),
        update,
        layout,
        bn=last.bn,
        encoding=last.encoding,
        policy=load_config(folders).policy,
    )
    numbers = {**msgspec.to_builtins(last.report), "run": last.run, "round": last.round}
    if as_json:
        print_json({"numbers": numbers, "tensors": _tensors(parcel), **_totals(parcel)})
        return
    rows = [(name, "×".join(map(str, shape))) for name, shape in _tensors(parcel).items()]
    print_table(f"Round {last.round} of {last.run} sends these tensors", ("tensor", "shape"), rows)
    say(f"and these numbers: {numbers}")
    say(f"in all {parcel.manifest.byte_count} bytes of tensors in {parcel.manifest.encoding}")


def _tensors(parcel: Parcel) -> dict[str, list[int]]:
    return {spec.name: list(spec.shape) for spec in parcel.manifest.layout.specs}


def _totals(parcel: Parcel) -> dict[str, object]:
    return {
        "encoding": parcel.manifest.encoding,
        "byte_count": parcel.manifest.byte_count,
        "payload_digest": parcel.manifest.payload_digest,
    }
