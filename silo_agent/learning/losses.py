"""What does local training minimise? Cross entropy, and FedProx's pull towards the base model.

Letters: N images, C identities of the silo.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def classification_loss(logits_NC: Tensor, labels_N: Tensor, *, smoothing: float) -> Tensor:
    """Mean cross entropy; ``smoothing`` of the target is spread evenly over all identities."""
    return functional.cross_entropy(logits_NC, labels_N, label_smoothing=smoothing)


def proximal_loss(weights: Sequence[Tensor], base: Sequence[Tensor], *, mu: float) -> Tensor:
    """(μ/2)·‖w − w_t‖² over the backbone's parameters (FedProx, Li et al. 2020, eq. 2)."""
    squares = [(w - w_t).square().sum() for w, w_t in zip(weights, base, strict=True)]
    return 0.5 * mu * torch.stack(squares).sum()
