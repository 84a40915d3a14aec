import math

import pytest
import torch

from silo_agent.learning.losses import classification_loss, proximal_loss


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
