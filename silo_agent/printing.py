"""How do a dataset's check, an upload, a dry run and a signed release look on a terminal?"""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from fedreid.clock import SystemClock
from fedreid.console import print_json, print_table, say
from fedreid.contract import Release, UpdateReport
from fedreid.datasets.checks import DatasetCheck
from fedreid.errors import ExitCode, UsageError
from fedreid.wire.encoding import payload_bytes
from fedreid.wire.tensors import Layout, TensorFile
from silo_agent.config import Folders, load_config
from silo_agent.egress import Outline, outline, pack
from silo_agent.held import find_held, newest_held
from silo_agent.ledger import read_entries, totals
from silo_agent.outbox import UPDATE_FILE, FinishedRound, Outbox

if TYPE_CHECKING:  # it needs gRPC, and nothing else here does
    from silo_agent.trust.dry_run import Check


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


def print_egress(folders: Folders, base: Path | None, *, as_json: bool) -> None:
    """What the newest upload consists of; before the first one, or of ``base``, what the next may.

    Raises:
        UsageError: there is no model yet to tell it from.
        PolicyRefused: the policy does not let it leave.
    """
    last = Outbox(folders).last()
    tree = _foreseen(folders, base) if base or last is None else _packed(folders, last)
    now_s = SystemClock().now_s()
    tree["left_so_far"] = msgspec.to_builtins(totals(read_entries(folders), now_s))
    if as_json:
        print_json(tree)
        return
    rows = [
        (name, "×".join(map(str, tensor["shape"])), str(tensor["bytes"]))
        for name, tensor in tree["tensors"].items()
    ]
    print_table(tree["what"], ("tensor", "shape", "bytes"), rows)
    numbers = ", ".join(
        name if value is None else f"{name} {value}" for name, value in tree["numbers"].items()
    )
    say(f"and these numbers: {numbers}")
    say(
        f"in all {tree['byte_count']} bytes of tensors in {tree['encoding']} "
        f"to {tree['destination']} and nowhere else"
    )
    left = ", ".join(f"{name} {value}" for name, value in tree["left_so_far"].items())
    say(f"has left so far: {left}")


def print_checks(checks: Iterable["Check"], *, as_json: bool) -> ExitCode:
    """One line for each step of a dry run, as it comes; the exit code of the first that failed."""
    done = []
    for check in checks:
        done.append(check)
        if not as_json:
            say(f"{check.state:<8}{check.name:<10}{check.told}")
            if check.next_step:
                say(f"{'':<18}next: {check.next_step}")
    if as_json:
        print_json([msgspec.to_builtins(check) for check in done])
    return next((check.exit_code for check in done if check.state == "failed"), ExitCode.OK)


def print_release(file: Path, release: Release, *, as_json: bool) -> None:
    """Which published model a file is."""
    if as_json:
        print_json(msgspec.to_builtins(release))
        return
    say(
        f"{file} is model {release.version} of the federation {release.federation}, published by "
        f"round {release.round} of {release.run}: signature and bytes hold"
    )


def _packed(folders: Folders, last: FinishedRound) -> dict[str, Any]:
    """The newest trained round, packed as for sending but in a folder of its own."""
    config = load_config(folders)
    held = find_held(folders, last.base_digest)
    if held is None:
        raise UsageError(
            f"The model that round {last.round} of {last.run} started from is not here any more",
            next_step="silo-agent audit show tells what has left; the next round can be shown.",
        )
    with TensorFile(Path(held.path)) as file:
        layout = file.layout
    with tempfile.TemporaryDirectory(dir=folders.rounds, prefix=".shown-") as scratch:
        parcel = pack(
            last,
            folder=Path(scratch),
            update=Outbox(folders).folder(last) / UPDATE_FILE,
            base=layout,
            policy=config.policy,
            destination=config.coordinator,
        )
    return {
        "what": f"Round {last.round} of {last.run} sends these tensors",
        "destination": parcel.destination,
        "numbers": {
            **msgspec.to_builtins(parcel.report), "run": parcel.run, "round": parcel.round,
        },
        **_tensors(Outline(layout=parcel.manifest.layout, encoding=parcel.manifest.encoding)),
        "payload_digest": parcel.manifest.payload_digest,
    }  # fmt: skip


def _foreseen(folders: Folders, base: Path | None) -> dict[str, Any]:
    """The most that a plan can make leave; values and digest are not known before training."""
    config = load_config(folders)
    policy = config.policy
    with TensorFile(base or _newest(folders)) as file:
        layout = file.layout
    leaving = outline(
        layout,
        bn="pooled" if policy.batchnorm_statistics else "local",
        encoding="fp32" if "fp32" in (policy.encodings or ("fp32",)) else policy.encodings[0],
        policy=policy,
    )
    names = (*UpdateReport.__struct_fields__, "run", "round")
    return {
        "what": "An upload sends at most these tensors",
        "destination": config.coordinator,
        "numbers": dict.fromkeys(names),
        **_tensors(leaving),
        "payload_digest": None,
    }


def _newest(folders: Folders) -> Path:
    held = newest_held(folders)
    if held is None:
        raise UsageError(
            "This silo has no model yet, and so nothing that could leave",
            next_step="Name a model file of the coordinator's with --base, or take part: "
            "silo-agent run.",
        )
    return Path(held.path)


def _tensors(leaving: Outline) -> dict[str, Any]:
    return {
        "tensors": {
            spec.name: {
                "shape": list(spec.shape),
                "bytes": payload_bytes(Layout((spec,)), leaving.encoding),
            }
            for spec in leaving.layout.specs
        },
        "encoding": leaving.encoding,
        "byte_count": leaving.byte_count,
    }
