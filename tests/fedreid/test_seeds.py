"""Does every step of a run have random numbers of its own, the same on every machine?"""

from hypothesis import given
from hypothesis import strategies as some

from fedreid.seeds import derive_seed

seeds = some.integers(0, 2**63 - 1)
labels = some.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
places = some.lists(labels | some.integers(0, 10**6), max_size=4).map(tuple)


@given(seeds, places)
def test_equal_places_have_equal_seeds_in_torchs_range(
    seed: int, place: tuple[str | int, ...]
) -> None:
    derived = derive_seed(seed, *place)
    assert derived == derive_seed(seed, *place)
    assert 0 <= derived < 2**63


@given(seeds, places, places)
def test_different_places_have_different_seeds(
    seed: int, one: tuple[str | int, ...], other: tuple[str | int, ...]
) -> None:
    same = [str(part) for part in one] == [str(part) for part in other]
    assert (derive_seed(seed, *one) == derive_seed(seed, *other)) == same


@given(seeds, seeds)
def test_different_runs_have_different_seeds(one: int, other: int) -> None:
    assert (derive_seed(one, "round", 1) == derive_seed(other, "round", 1)) == (one == other)


def test_seeds_do_not_change_between_releases() -> None:
    # a published model is reproducible only as long as these stand
    assert derive_seed(0) == GOLDEN[0]
    assert derive_seed(7, "harbour", "spring", 3, "distil") == GOLDEN[1]


GOLDEN = (2775124097485065509, 4261456725830511641)
