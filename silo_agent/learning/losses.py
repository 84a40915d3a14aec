"""What does local training minimise? Cross entropy, a triplet loss, FedProx's pull to the base.

Letters: N images, C identities of the silo, P width of the pooled feature.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

_TINY = 1e-12
"""Squared distance below which two features count as equal: the root has no slope at zero."""


def classification_loss(logits_NC: Tensor, labels_N: Tensor, *, smoothing: float) -> Tensor:
    """Mean cross entropy; ``smoothing`` of the target is spread evenly over all identities."""
    return functional.cross_entropy(logits_NC, labels_N, label_smoothing=smoothing)


def batch_hard_triplet_loss(pooled_NP: Tensor, labels_N: Tensor, *, margin: float) -> Tensor:
    """Mean over anchors of max(0, farthest positive − nearest negative + margin).

    Euclidean distances within the batch (Hermans et al. 2017, eq. 5). Images without a positive
    or without a negative in the batch are no anchors; a batch without any gives 0.
    """
    squares_N = pooled_NP.square().sum(dim=1)
    squared_NN = squares_N[:, None] + squares_N[None, :] - 2.0 * (pooled_NP @ pooled_NP.T)
    dist_NN = squared_NN.clamp(min=_TINY).sqrt()
    same_NN = labels_N[:, None] == labels_N[None, :]
    itself_NN = torch.eye(len(labels_N), dtype=torch.bool, device=labels_N.device)
    positive_NN = same_NN & ~itself_NN
    farthest_N = dist_NN.masked_fill(~positive_NN, 0.0).amax(dim=1)
    nearest_N = dist_NN.masked_fill(same_NN, torch.inf).amin(dim=1)
    anchor_N = positive_NN.any(dim=1) & ~same_NN.all(dim=1)
    if not anchor_N.any():
        return pooled_NP.sum() * 0.0
    return functional.relu(farthest_N[anchor_N] - nearest_N[anchor_N] + margin).mean()


def proximal_loss(weights: Sequence[Tensor], base: Sequence[Tensor], *, mu: float) -> Tensor:
    """(μ/2)·‖w − w_t‖² over the backbone's parameters (FedProx, Li et al. 2020, eq. 2)."""
    squares = [(w - w_t).square().sum() for w, w_t in zip(weights, base, strict=True)]
    return 0.5 * mu * torch.stack(squares).sum()
