"""In which batches does an epoch pass over the images?

Letters: N images, B batch size.
"""

import numpy as np
import numpy.typing as npt

IndexArray = npt.NDArray[np.int64]


def epoch_batches(
    num_images: int, batch_size: int, random: np.random.Generator
) -> list[IndexArray]:
    """All image indices once, shuffled, in batches of B; the last one may be shorter.

    A last batch of one image is merged into its neighbour: BatchNorm can't train on it.
    """
    assert num_images >= 2
    order_N = random.permutation(num_images)
    starts = list(range(batch_size, num_images, batch_size))
    if starts and num_images - starts[-1] == 1:
        starts.pop()
    return np.split(order_N, starts)
