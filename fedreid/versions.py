"""Which versions of the two programs work together? Those of one minor version and its neighbours.

So either program can be upgraded first, one minor version at a time. What a newer one adds to a
message, an older one passes over; what it asks for and the other does not know is refused by name.
"""

import re
from pathlib import Path

from fedreid.errors import VersionsApart

NEIGHBOURS = 1
"""Minor versions that may lie between two programs that talk."""


def check_versions(*, agent: str, coordinator: str) -> None:
    """Refuse a pair of versions that was never tried together.

    A version that can't be read is let pass: it says nothing, and is no question of trust.

    Raises:
        VersionsApart: they lie too far apart.
    """
    old, new = _minor(agent), _minor(coordinator)
    if old is None or new is None:
        return
    if old[0] == new[0] and abs(old[1] - new[1]) <= NEIGHBOURS:
        return
    raise VersionsApart(
        f"The silo agent has version {agent} and the coordinator version {coordinator}",
        why="they work together when at most one minor version lies between them",
        next_step=f"Upgrade the {'silo agent' if old < new else 'coordinator'}; what it has "
        "stored stays.",
    )


def revision() -> str:
    """The source revision that this was built from; ``unknown`` where the builder wrote none.

    Whoever builds an image or a package writes it into ``fedreid/REVISION``.
    """
    path = Path(__file__).with_name("REVISION")
    return path.read_text("ascii").strip()[:40] if path.exists() else "unknown"


def _minor(version: str) -> tuple[int, int] | None:
    found = re.match(r"(\d{1,6})\.(\d{1,6})(?!\d)", version)
    return (int(found[1]), int(found[2])) if found else None
