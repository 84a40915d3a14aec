"""How do a dataset's check, an upload, a dry run and a signed release look on a terminal?"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from fedreid.clock import SystemClock
from fedreid.console import print_json, print_table, say
from fedreid.contract import Release
from fedreid.datasets.checks import DatasetCheck
from fedreid.errors import ExitCode
from silo_agent.config import Folders
from silo_agent.contents import contents_of
from silo_agent.ledger import read_entries, totals

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
    contents = contents_of(folders, base)
    left = totals(read_entries(folders), SystemClock().now_s())
    if as_json:
        print_json({**msgspec.to_builtins(contents), "left_so_far": msgspec.to_builtins(left)})
        return
    rows = [
        (name, "×".join(map(str, tensor.shape)), str(tensor.bytes))
        for name, tensor in contents.tensors.items()
    ]
    print_table(contents.title, ("tensor", "shape", "bytes"), rows)
    numbers = ", ".join(
        name if value is None else f"{name} {value}" for name, value in contents.numbers.items()
    )
    say(f"and these numbers: {numbers}")
    say(
        f"in all {contents.byte_count} bytes of tensors in {contents.encoding} "
        f"to {contents.destination} and nowhere else"
    )
    say(
        f"{left.bytes_today} bytes of {left.rounds_today} rounds have left today (UTC), "
        f"{left.rounds_total} rounds in all"
    )


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
