"""What does an exported model compute? Everything from pixels in 0..1 to comparable embeddings.

Normalisation, flip, sum and scaling to length 1 are part of the graph, so that whoever builds it
in can't leave one out.

Letters: N images, C channels (3, red, green, blue), H height, W width, D feature width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedreid.reid.backbone import ReIDBackbone
from fedreid.reid.transforms import MEAN_C, STD_C, ByteArray


class Embedder(nn.Module):
    """images_NCHW, float32 in 0..1, to embeddings_ND of length 1."""

    mean_C11: Tensor
    deviation_C11: Tensor

    def __init__(self, backbone: ReIDBackbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean_C11", torch.tensor(MEAN_C)[:, None, None])
        self.register_buffer("deviation_C11", torch.tensor(STD_C)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """f(x) + f(flip x), scaled to length 1 (reid-spec §8); one pass over both halves."""
        normalised_NCHW = (images - self.mean_C11) / self.deviation_C11
        both_2NCHW = torch.cat((normalised_NCHW, normalised_NCHW.flip(3)))
        features_ND = self.backbone(both_2NCHW).unflatten(0, (2, -1)).sum(0)
        return functional.normalize(features_ND)


def input_of(pixels_NCHW: ByteArray) -> Tensor:
    """Decoded images as the exported model takes them."""
    return torch.from_numpy(pixels_NCHW).to(torch.float32) / 255.0
