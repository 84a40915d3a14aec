import numpy as np
import pytest

from silo_agent.learning.sampling import epoch_batches


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
