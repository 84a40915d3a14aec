"""What does colour alone achieve? The baseline that a trained net has to beat."""

import numpy as np
import numpy.typing as npt

STRIPES = 6  # head, shoulders, chest, hip, thighs, feet
BINS = 8  # of each channel


def colour_histogram(images_NHW3: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Joint-free RGB histograms of six horizontal stripes: the classic hand-made ReID feature.

    Letters: N images, H W pixels, D = 6 stripes x 3 channels x 8 bins = 144.

    Args:
        images_NHW3: RGB, 0 to 255, at least six rows.

    Returns:
        Features of shape ND with unit Euclidean length; square roots of the shares, so that the
        cosine of two features is the Hellinger affinity of their histograms.

    Raises:
        ValueError: the images are not N x H x W x 3, or have fewer than six rows.
    """
    if images_NHW3.ndim != 4 or images_NHW3.shape[3] != 3 or images_NHW3.shape[1] < STRIPES:
        raise ValueError(f"images of shape {images_NHW3.shape}; expected N, H >= {STRIPES}, W, 3")
    count = len(images_NHW3)
    bins_NHW3 = (images_NHW3.astype(np.intp) * BINS) // 256
    feats = []
    for stripe_NRW3 in np.array_split(bins_NHW3, STRIPES, axis=1):
        size = stripe_NRW3.shape[1] * stripe_NRW3.shape[2]
        for channel in range(3):
            at_NP = stripe_NRW3[..., channel].reshape(count, size)
            at_NP = at_NP + np.arange(count)[:, None] * BINS
            hits_NB = np.bincount(at_NP.ravel(), minlength=count * BINS).reshape(count, BINS)
            feats.append(np.sqrt(hits_NB / (size * 3 * STRIPES)))
    return np.concatenate(feats, axis=1).astype(np.float32)
