"""The commands that keep a data folder safe: doctor, backup, restore."""

from pathlib import Path
from typing import Annotated

import typer

from coordinator.options import Data, Json
from fedreid.console import instant, say


def doctor(
    data: Data,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended.")] = False,
    as_json: Json = False,
) -> None:
    """Look through a stopped coordinator's data folder; the exit code says if it is whole."""
    from coordinator.config import load_config
    from coordinator.doctor import Doctor
    from coordinator.folders import Folders
    from fedreid.checkup import print_findings
    from fedreid.clock import SystemClock
    from fedreid.files import held_alone

    folders = Folders(data)
    load_config(folders)  # a folder without a coordinator is not to become one
    with held_alone(folders.root, by="coordinator"):
        examined = Doctor(folders, SystemClock(), repair=repair).examined()
        raise typer.Exit(print_findings(examined, as_json=as_json))


def backup(
    out_file: Annotated[Path, typer.Argument(help="Where to write the backup.")], data: Data
) -> None:
    """Write all that another machine needs to go on; also while the coordinator runs."""
    from coordinator.backup import back_up
    from coordinator.folders import Folders
    from fedreid.clock import SystemClock

    written = back_up(Folders(data), out_file, SystemClock())
    say(f"wrote {out_file}: {len(written.files)} files, up to model {written.newest_version}")
    say(
        "IT HOLDS THE FEDERATION'S PRIVATE KEYS: whoever reads it can let silos in and sign "
        "models. Its mode is 0600; keep it as you keep the data folder."
    )


def restore(
    backup_file: Annotated[Path, typer.Argument(help="What 'coordinator backup' wrote.")],
    data: Annotated[Path, typer.Option("--data", help="A new or empty folder.")],
) -> None:
    """Make a data folder from a backup; the coordinator that it is of must not run any more."""
    from coordinator.backup import restore as restore_backup
    from fedreid.clock import SystemClock

    restored = restore_backup(backup_file, data, SystemClock())
    since = instant(restored.made_at_s)
    say(f"restored the federation {restored.federation} of {since} in {data}")
    say("What has happened since then is not in it:")
    say("  silos that were revoked or suspended since are let in again: revoke them again")
    say("  silos that joined since are not known: give them new tokens (silo-agent join --rejoin)")
    say("  join tokens that were not used by then are good no longer")
    say("  models published since are gone; newer versions go beyond what silos have taken")
    say(f"next: coordinator serve --data {data}, and never the old folder beside it")
