"""Does a compiled network compute what the plain one does, and is a missing compiler told of?"""

import shutil
from pathlib import Path

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor, nn

from fedreid.errors import UsageError
from fedreid.plan import BackbonePlan
from fedreid.reid.backbone import ReIDBackbone
from silo_agent.learning.compiling import compiled_forward
from silo_agent.learning.holding import Holding
from silo_agent.learning.jobs import Silo
from silo_agent.learning.training import Learner, train
from tests.silo_agent.learning.sites import TRAINING, draw_silo
from tests.silo_agent.learning.test_training import CPU

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")


PLAN = BackbonePlan(height_px=32, width_px=16)


class _Trunk(nn.Module):
    """One that is compiled in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, images_NCHW: Tensor) -> Tensor:
        pooled_NP: Tensor = self.maps(images_NCHW).mean((2, 3))
        return pooled_NP


def small_backbone() -> ReIDBackbone:
    torch.manual_seed(0)
    return ReIDBackbone(PLAN, _Trunk(), nn.Linear(8, 4), 4)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that was compiled before is found."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))


@needs_compiler
@pytest.mark.slow
def test_each_batch_size_gives_what_the_plain_network_gives() -> None:
    backbone = small_backbone().eval()
    forward = compiled_forward(backbone)
    for count in (4, 3):
        images_NCHW = torch.rand(count, 3, 8, 4)
        for compiled, plain in zip(
            forward(images_NCHW), backbone.with_pooled(images_NCHW), strict=True
        ):
            torch.testing.assert_close(compiled, plain)


def test_without_a_compiler_the_operator_is_told_what_to_install() -> None:
    from torch._inductor import config

    without = config.patch({"cpp.cxx": ("no-such-compiler",)})
    with without, pytest.raises(UsageError, match="compiled = false") as raised:
        compiled_forward(small_backbone())(torch.rand(4, 3, 8, 4))
    assert "ompile" in (raised.value.why or "")


@needs_compiler
@pytest.mark.slow
def test_compiled_training_goes_nearly_the_plain_way_and_repeats_its_bits(tmp_path: Path) -> None:
    folder = draw_silo(tmp_path / "silo")
    silo = Silo(federation="f", name="north", dataset=str(folder), layout="auto")
    data = Holding().get(silo, PLAN).train
    losses, weights = [], []
    for compiled in (False, True, True):
        backbone = small_backbone()
        outcome = train(
            Learner(backbone=backbone, classifier=nn.Linear(4, 3)),
            data,
            replace(TRAINING, batch_size=5, epochs=2),  # two sizes of batches
            learning_rate_factor=1.0,
            seed=1,
            device=CPU,
            tell=lambda done, total, mean: None,
            compiled=compiled,
        )
        losses.append(outcome.loss)
        weights.append(torch.cat([value.flatten() for value in backbone.state_dict().values()]))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-3, atol=1e-4)
    assert torch.equal(weights[1], weights[2])
