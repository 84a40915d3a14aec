"""Which silo has sent too many suspect updates in a row? Pure functions of counts and flags."""

from collections.abc import Iterable, Mapping, Sequence

from coordinator.learning.jobs import SUSPECT, Flag


def streaks_after(
    streaks: Mapping[str, int], silos: Iterable[str], flags: Mapping[str, Sequence[Flag]]
) -> dict[str, int]:
    """Suspect updates in a row of each silo, where these ``silos`` sent updates with these flags.

    A round in which a silo has no update neither adds to its streak nor ends it. An update that
    was merely clipped is not suspect: a large silo's is clipped again and again.
    """
    after = dict(streaks)
    for silo in silos:
        after[silo] = after.get(silo, 0) + 1 if SUSPECT & set(flags.get(silo, ())) else 0
    return {silo: count for silo, count in sorted(after.items()) if count}


def due(streaks: Mapping[str, int], rounds: int) -> list[str]:
    """The silos to keep out, where ``rounds`` suspect updates in a row are too many; 0 = never."""
    return sorted(silo for silo, count in streaks.items() if 0 < rounds <= count)
