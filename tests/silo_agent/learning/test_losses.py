import math

import pytest
import torch

from silo_agent.learning.losses import (
    batch_hard_triplet_loss,
    classification_loss,
    proximal_loss,
)


def test_cross_entropy_of_even_logits_is_the_logarithm_of_the_identities() -> None:
    loss = classification_loss(torch.zeros(3, 5), torch.tensor([0, 1, 4]), smoothing=0.0)
    assert float(loss) == pytest.approx(math.log(5))


def test_smoothing_spreads_the_target_over_all_identities() -> None:
    logits = torch.tensor([[2.0, 0.0, -1.0]])
    log_p = [float(v) for v in torch.log_softmax(logits, dim=1)[0]]
    expected = -(0.9 * log_p[1] + 0.1 * sum(log_p) / 3)
    loss = classification_loss(logits, torch.tensor([1]), smoothing=0.1)
    assert float(loss) == pytest.approx(expected)


def test_proximal_loss_is_half_mu_times_the_squared_way() -> None:
    weights = [torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([[3.0]])]
    base = [torch.tensor([0.0, 4.0]), torch.tensor([[1.0]])]
    loss = proximal_loss(weights, base, mu=0.1)
    assert float(loss.detach()) == pytest.approx(0.05 * (1 + 4 + 4))
    loss.backward()  # type: ignore[no-untyped-call]
    assert weights[0].grad is not None
    assert weights[0].grad.tolist() == pytest.approx([0.1, -0.2])


def slow_triplet(pooled: torch.Tensor, labels: torch.Tensor, margin: float) -> float:
    """The definition, anchor by anchor."""
    losses = []
    for a in range(len(labels)):
        others = [i for i in range(len(labels)) if i != a]
        way = {i: math.dist(pooled[a].tolist(), pooled[i].tolist()) for i in others}
        positives = [way[i] for i in others if labels[i] == labels[a]]
        negatives = [way[i] for i in others if labels[i] != labels[a]]
        if positives and negatives:
            losses.append(max(0.0, max(positives) - min(negatives) + margin))
    return sum(losses) / len(losses) if losses else 0.0


@pytest.mark.parametrize(
    "labels",
    [
        [0, 0, 1, 1, 2, 2],
        [0, 0, 0, 0, 1, 2],  # two images are alone: no anchors
        [0, 1, 2, 3, 4, 5],  # none has a positive
        [7, 7, 7, 7, 7, 7],  # none has a negative
    ],
)
@pytest.mark.parametrize("margin", [0.05, 0.3, 3.0])
def test_batch_hard_triplet_is_what_its_slow_twin_says(labels: list[int], margin: float) -> None:
    generator = torch.Generator().manual_seed(len(set(labels)))
    pooled = torch.rand(6, 5, generator=generator, dtype=torch.float64)
    told = batch_hard_triplet_loss(pooled, torch.tensor(labels), margin=margin)
    assert float(told) == pytest.approx(slow_triplet(pooled, torch.tensor(labels), margin))


def test_batch_hard_triplet_pulls_and_pushes_and_survives_equal_features() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    equal = torch.ones(4, 3, requires_grad=True)
    batch_hard_triplet_loss(equal, labels, margin=0.3).backward()  # type: ignore[no-untyped-call]
    assert equal.grad is not None and torch.isfinite(equal.grad).all()
    lonely = torch.rand(4, 3, requires_grad=True)
    batch_hard_triplet_loss(lonely, torch.arange(4), margin=0.3).backward()  # type: ignore[no-untyped-call]
    assert lonely.grad is not None and not lonely.grad.any()
    # on a line: 0 and 2 are one person, 3 and 9 another; 3 is too near to 2
    line = torch.tensor([[0.0], [2.0], [3.0], [9.0]], requires_grad=True)
    batch_hard_triplet_loss(line, labels, margin=0.3).backward()  # type: ignore[no-untyped-call]
    assert line.grad is not None
    assert float(line.grad[2]) < 0.0  # a step against it moves 3 away from 2
