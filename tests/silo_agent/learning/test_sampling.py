import numpy as np
import pytest

from silo_agent.learning.sampling import IndexArray, epoch_batches, identity_batches


@pytest.mark.parametrize(
    ("images", "size", "lengths"),
    [
        (8, 4, [4, 4]),
        (10, 4, [4, 4, 2]),
        (9, 4, [4, 5]),  # a batch of one is merged into its neighbour
        (3, 4, [3]),
        (2, 4, [2]),
        (3, 2, [3]),
        (5, 4, [5]),
    ],
)
def test_every_image_is_used_once_and_no_batch_has_one(
    images: int, size: int, lengths: list[int]
) -> None:
    batches = epoch_batches(images, size, np.random.default_rng(1))
    assert [len(batch) for batch in batches] == lengths
    assert sorted(np.concatenate(batches).tolist()) == list(range(images))


def test_order_follows_from_the_seed() -> None:
    def order(seed: int) -> list[int]:
        batches = epoch_batches(20, 4, np.random.default_rng(seed))
        return [int(index) for batch in batches for index in batch]

    assert order(1) == order(1) != order(2)


def people(*counts: int) -> IndexArray:
    """Labels of so many images each."""
    return np.repeat(np.arange(len(counts)), counts)


@pytest.mark.parametrize(
    ("counts", "length"),
    [
        ((4, 4, 4, 4), 16),
        ((6, 6, 6, 6, 6, 6, 6, 6), 64),  # 1.5 turns are two
        ((1, 2, 3, 9), 20),  # whoever has few repeats them
        ((40, 1, 1), 48),
        ((2, 2), 8),
    ],
)
def test_identity_batches_hold_k_images_of_each_and_cover_every_identity(
    counts: tuple[int, ...], length: int
) -> None:
    labels = people(*counts)
    batches = identity_batches(labels, 8, 4, np.random.default_rng(2))
    drawn = np.concatenate(batches)
    assert len(drawn) == length
    assert set(labels[drawn]) == set(labels)
    for batch in batches:
        _, images = np.unique(labels[batch], return_counts=True)
        assert not (images % 4).any()
    for label, count in enumerate(counts):
        own = drawn[labels[drawn] == label]
        assert len(set(own.tolist())) == min(count, len(own))  # none twice while others wait


def test_the_identities_of_a_batch_differ_while_enough_are_left() -> None:
    labels = people(*[8] * 20)
    batches = identity_batches(labels, 16, 4, np.random.default_rng(3))
    assert [len(batch) for batch in batches] == [16] * 10
    assert all(len(set(labels[batch].tolist())) == 4 for batch in batches[:-2])


def test_a_last_batch_of_one_identity_is_merged() -> None:
    batches = identity_batches(people(4, 4, 4), 8, 4, np.random.default_rng(4))
    assert [len(batch) for batch in batches] == [12]
    batches = identity_batches(people(2, 0), 8, 4, np.random.default_rng(4))
    assert [len(batch) for batch in batches] == [4]


def test_identity_batches_follow_from_the_seed() -> None:
    def order(seed: int) -> list[int]:
        batches = identity_batches(people(9, 3, 5, 8), 8, 2, np.random.default_rng(seed))
        return [int(index) for batch in batches for index in batch]

    assert order(1) == order(1) != order(2)
