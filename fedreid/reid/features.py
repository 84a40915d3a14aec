"""Which feature does a backbone give each image? f(x) + f(flip x), scaled to length 1 (§8).

Letters: N images, C channels, H height, W width, D feature width.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fedreid.ahead import made_ahead
from fedreid.errors import JobFailed
from fedreid.reid.transforms import ByteArray, ImageStore, normalise
from fedreid.wire.tensors import FloatArray

EVALUATION_BATCH = 64
"""Images per forward pass: larger ones gain nothing on a CPU and cost memory everywhere."""


def features_of(backbone: nn.Module, images_NCHW: Tensor) -> Tensor:
    """features_ND of a batch, L2-normalised; the backbone must be in eval mode."""
    features_ND: Tensor = backbone(images_NCHW) + backbone(images_NCHW.flip(3))
    return functional.normalize(features_ND)


def extract_features(
    backbone: nn.Module,
    images: ImageStore,
    *,
    batch_size: int = EVALUATION_BATCH,
    device: torch.device | None = None,
    tell: Callable[[int], None] = lambda done: None,
) -> FloatArray:
    """feats_ND of all images of the store, in its order; leaves the backbone in eval mode.

    ``tell`` hears the number of images done after every batch.

    Raises:
        DatasetError: an image can't be read.
        JobFailed: the model gives values that are not finite.
    """
    backbone.eval()
    blocks: list[FloatArray] = []
    batches = [
        np.arange(start, min(start + batch_size, len(images)))
        for start in range(0, len(images), batch_size)
    ]
    ready = made_ahead(lambda indices_N: normalise(images.batch(indices_N), device), batches)
    for indices_N, images_NCHW in zip(batches, ready, strict=True):
        blocks.append(_finite_features(backbone, images_NCHW))
        tell(int(indices_N[-1]) + 1)
    return np.concatenate(blocks) if blocks else np.zeros((0, 0), dtype=np.float32)


def pixel_features(
    backbone: nn.Module, pixels_NCHW: ByteArray, *, device: torch.device | None = None
) -> FloatArray:
    """feats_ND of one batch of decoded images; the backbone must be in eval mode.

    Raises:
        JobFailed: the model gives values that are not finite.
    """
    return _finite_features(backbone, normalise(pixels_NCHW, device))


def _finite_features(backbone: nn.Module, images_NCHW: Tensor) -> FloatArray:
    with torch.inference_mode():
        features_ND = features_of(backbone, images_NCHW)
    feats_ND: FloatArray = features_ND.cpu().numpy()
    if not np.isfinite(feats_ND).all():
        raise JobFailed(
            "The model's features are not finite",
            why="its training has diverged",
            next_step="Lower the plan's learning rates, or roll back to an earlier model.",
        )
    return feats_ND
