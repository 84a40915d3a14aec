"""How far did local training move the model? The cosine distance weight (reid-spec §3).

The reference takes a shuffled batch with dropout on, so its distance carries noise of its own.
Here both models are in eval mode, on a probe that is drawn once in a run; what the reference
does can be chosen to measure the difference.

Letters: N probe images, C identities of the silo.
"""

import numpy as np
import torch
from torch import nn

from fedreid.limits import DISTANCE_RANGE
from fedreid.reid.features import EVALUATION_BATCH
from fedreid.reid.transforms import ImageStore, normalise
from fedreid.wire.tensors import FloatArray
from silo_agent.learning.sampling import IndexArray
from silo_agent.learning.training import Learner, diverged

_TINY = 1e-12
"""Stands in for the product of norms where a model's logits are all zero: the cosine is 0."""


def draw_probe(num_images: int, *, batches: int, batch_size: int, seed: int) -> IndexArray:
    """Indices of the probe's images, ascending; the same in every round of a run."""
    count = min(num_images, batches * batch_size)
    return np.sort(np.random.default_rng(seed).permutation(num_images)[:count])


def probe_logits(
    learner: Learner,
    images: ImageStore,
    probe_N: IndexArray,
    *,
    device: torch.device,
    dropout: bool = False,
) -> FloatArray:
    """logits_NC of the probe's images in evaluation form; leaves the learner in eval mode.

    ``dropout`` leaves dropout on, drawn from torch's generator: the reference's noise.

    Raises:
        DatasetError: an image can't be read.
        JobFailed: a logit is not finite. (The loss can still be: it saw batch statistics.)
    """
    learner.backbone.eval()
    learner.classifier.eval()
    for layer in learner.backbone.modules():
        if dropout and isinstance(layer, nn.Dropout):
            layer.train()
    blocks = []
    with torch.inference_mode():
        for start in range(0, len(probe_N), EVALUATION_BATCH):
            pixels_NCHW = images.batch(probe_N[start : start + EVALUATION_BATCH])
            blocks.append(learner.logits(normalise(pixels_NCHW, device)).cpu().numpy())
    learner.backbone.eval()
    logits_NC = np.concatenate(blocks)
    if not np.isfinite(logits_NC).all():
        raise diverged("the classifier's output")
    return logits_NC


def cosine_distance(before_NC: FloatArray, after_NC: FloatArray) -> float:
    """Mean over x of 1 − cos(v_t(w_t(x)), v_{t+1}(w_{t+1}(x))), in 0..2 (MM'20 §6)."""
    before = before_NC.astype(np.float64)
    after = after_NC.astype(np.float64)
    norms_N = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    cosines_N = (before * after).sum(axis=1) / np.maximum(norms_N, _TINY)
    return float(np.clip(np.mean(1.0 - cosines_N), *DISTANCE_RANGE))
