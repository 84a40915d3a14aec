"""How does a site that nobody scrapes show its figures? A file that node_exporter reads.

Put it into the folder of node_exporter's ``--collector.textfile.directory``, with the ending
``.prom``. It is replaced in one step, so a reader never finds half of it.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path

from fedreid.errors import ConfigRefused, StorageError
from fedreid.exposition import Exposition
from fedreid.files import remove_file, write_bytes
from fedreid.limits import TEXTFILE_S
from fedreid.work import off_loop

_SUFFIX = ".prom"


def check_textfile(path: Path) -> None:
    """Check that node_exporter would find the file.

    Raises:
        ConfigRefused: its name has another ending, or there is no such folder.
    """
    if path.suffix != _SUFFIX or not path.parent.is_dir():
        raise ConfigRefused(
            f"Metrics can't be written to {path}",
            why=f"the name must end in {_SUFFIX}, in a folder that exists",
            next_step="Choose one in node_exporter's --collector.textfile.directory.",
        )


async def keep_textfile(path: Path, figures: Exposition, say: Callable[[str], None]) -> None:
    """Write the figures from time to time until cancelled; then take the file away.

    A disk that does not take it is told once, and tried again.
    """
    told = ""
    try:
        while True:
            try:
                await off_loop(write_bytes, path, figures.text())
                told = ""
            except StorageError as error:
                if str(error) != told:
                    say(str(error))
                told = str(error)
            await asyncio.sleep(TEXTFILE_S)
    finally:
        remove_file(path)  # node_exporter would show the last figures for ever
