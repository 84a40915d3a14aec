"""Does a compiled network compute what the plain one does, and is a missing compiler told of?"""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fedreid.errors import UsageError
from fedreid.plan import BackbonePlan
from fedreid.reid.backbone import ReIDBackbone, shared_tensors
from silo_agent.learning.compiling import compiled_forward
from silo_agent.learning.holding import Holding
from silo_agent.learning.jobs import Silo
from silo_agent.learning.training import train
from tests.silo_agent.learning.sites import TRAINING, draw_silo
from tests.silo_agent.learning.test_training import CPU, learner

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")


class _Small(nn.Module):
    """A trunk that is compiled in seconds."""

    def forward(self, images_NCHW: Tensor) -> Tensor:
        return images_NCHW.square().mean((2, 3))


def small_backbone() -> ReIDBackbone:
    return ReIDBackbone(BackbonePlan(), _Small(), nn.Linear(3, 4), 4)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that was compiled before is found."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))


@needs_compiler
@pytest.mark.slow
def test_each_batch_size_gives_what_the_plain_network_gives() -> None:
    backbone = small_backbone()
    forward = compiled_forward(backbone)
    for count in (4, 3):
        images_NCHW = torch.rand(count, 3, 8, 4)
        for compiled, plain in zip(
            forward(images_NCHW), backbone.with_pooled(images_NCHW), strict=True
        ):
            torch.testing.assert_close(compiled, plain)


def test_without_a_compiler_the_operator_is_told_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(UsageError, match="compiled = false") as raised:
        compiled_forward(small_backbone())(torch.rand(4, 3, 8, 4))
    assert "ompile" in (raised.value.why or "")


@needs_compiler
@pytest.mark.slow
def test_compiled_training_goes_nearly_the_plain_way_and_repeats_its_bits(tmp_path: Path) -> None:
    plan = BackbonePlan(name="squeezenet1_1", height_px=64, width_px=32)
    silo = Silo(
        federation="f", name="north", dataset=str(draw_silo(tmp_path / "silo")), layout="auto"
    )
    data = Holding().get(silo, plan).train
    losses, weights = [], []
    for compiled in (False, True, True):
        made = learner(plan)
        outcome = train(
            made,
            data,
            TRAINING,
            learning_rate_factor=1.0,
            seed=1,
            device=CPU,
            tell=lambda done, total, mean: None,
            compiled=compiled,
        )
        losses.append(outcome.loss)
        weights.append(shared_tensors(made.backbone))
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert all((weights[1][name] == weights[2][name]).all() for name in weights[1])
