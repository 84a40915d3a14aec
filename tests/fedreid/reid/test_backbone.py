from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from msgspec.structs import replace
from safetensors.torch import save_file

from fedreid.errors import UsageError
from fedreid.plan import BackbonePlan
from fedreid.reid.backbone import (
    ReIDBackbone,
    build_backbone,
    initialise,
    load_shared,
    shared_tensors,
)

TINY = BackbonePlan(name="shufflenet_v2_x0_5", height_px=64, width_px=32)


def started(start: str = "random", seed: int = 1, *, neck: str = "paper") -> ReIDBackbone:
    plan = BackbonePlan(
        name=TINY.name,
        height_px=64,
        width_px=32,
        start=start,
        neck=neck,  # type: ignore[arg-type]
    )
    backbone = build_backbone(plan)
    initialise(backbone, seed)
    return backbone


@pytest.mark.parametrize(
    ("name", "pooled_width"),
    [
        ("resnet18", 512),
        ("mobilenet_v3_small", 576),
        ("mobilenet_v3_large", 960),
        ("shufflenet_v2_x1_0", 1024),
        ("efficientnet_b0", 1280),
        ("squeezenet1_1", 512),
    ],
)
def test_torchvision_models_lose_their_classifier(name: str, pooled_width: int) -> None:
    backbone = build_backbone(BackbonePlan(name=name, height_px=64, width_px=32))
    features_ND = backbone.eval()(torch.zeros(2, 3, 64, 32))
    assert features_ND.shape == (2, backbone.feature_width) == (2, 512)
    names = shared_tensors(backbone).keys()
    assert not [name for name in names if name.startswith(("trunk.fc", "trunk.classifier"))]
    assert backbone.get_parameter("neck.linear.weight").shape == (512, pooled_width)


def test_resnet50_shares_what_the_specification_counts() -> None:
    backbone = build_backbone(BackbonePlan(name="resnet50"))
    assert sum(p.numel() for p in backbone.parameters()) == pytest.approx(24.56e6, rel=1e-3)


def test_bottleneck_neck_is_a_norm_with_a_frozen_bias() -> None:
    backbone = started(neck="bnneck")
    assert backbone.feature_width == 1024
    assert not backbone.get_parameter("neck.norm.bias").requires_grad
    assert "neck.norm.bias" in shared_tensors(backbone)


def test_unknown_model_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'resnet50'"):
        build_backbone(BackbonePlan(name="resnet5o"))


@pytest.mark.parametrize("name", ["vit_b_16", "googlenet"])
def test_models_of_another_build_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="can't be a backbone"):
        build_backbone(BackbonePlan(name=name))


def test_equal_seeds_give_equal_bits_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    backbone = build_backbone(TINY)
    before = torch.get_rng_state()
    initialise(backbone, 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert expected is not None
    first, again, other = shared_tensors(backbone), shared_tensors(started()), started(seed=2)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    weight = "trunk.conv1.0.weight"
    assert not np.array_equal(first[weight], shared_tensors(other)[weight])


def test_shared_tensors_are_copies_without_counters() -> None:
    backbone = started()
    tensors = shared_tensors(backbone)
    assert not [name for name in tensors if "num_batches_tracked" in name]
    assert {"neck.norm.running_mean", "neck.norm.running_var"} <= tensors.keys()
    assert all(values.dtype == np.float32 for values in tensors.values())
    tensors["neck.linear.bias"][:] = 9.0
    assert not shared_tensors(backbone)["neck.linear.bias"].any()


def test_load_shared_gives_back_what_was_shared() -> None:
    tensors = shared_tensors(started(seed=5))
    backbone = build_backbone(TINY)
    load_shared(backbone, tensors)
    loaded = shared_tensors(backbone)
    assert all(np.array_equal(loaded[name], tensors[name]) for name in tensors)


def test_load_shared_is_strict_on_names_and_shapes() -> None:
    backbone, tensors = started(), shared_tensors(started())
    with pytest.raises(UsageError, match=r"lacks 'neck\.linear\.bias'"):
        load_shared(backbone, {n: v for n, v in tensors.items() if n != "neck.linear.bias"})
    with pytest.raises(UsageError, match="also has 'classifier"):
        load_shared(backbone, {**tensors, "classifier.weight": np.zeros(2, np.float32)})
    with pytest.raises(UsageError, match="has shape"):
        load_shared(backbone, {**tensors, "neck.linear.bias": np.zeros(3, np.float32)})


def test_starts_from_the_state_file_of_a_plain_torchvision_model(tmp_path: Path) -> None:
    plain = torchvision.models.get_model(TINY.name, weights=None)
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    save_file(plain.state_dict(), tmp_path / "plain.safetensors")
    for file in ("plain.pth", "plain.safetensors"):
        tensors = shared_tensors(started(str(tmp_path / file)))
        weight = plain.state_dict()["conv1.0.weight"].numpy()
        assert np.array_equal(tensors["trunk.conv1.0.weight"], weight)
        assert np.array_equal(
            tensors["neck.linear.weight"], shared_tensors(started())["neck.linear.weight"]
        )


def test_starts_from_a_state_file_of_the_whole_backbone(tmp_path: Path) -> None:
    other = started(seed=9)
    torch.save({"state_dict": other.state_dict()}, tmp_path / "whole.pth")
    tensors = shared_tensors(started(str(tmp_path / "whole.pth")))
    assert all(np.array_equal(tensors[n], v) for n, v in shared_tensors(other).items())


def test_start_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    other = torchvision.models.get_model("shufflenet_v2_x1_0", weights=None)
    torch.save(other.state_dict(), tmp_path / "other.pth")
    with pytest.raises(UsageError, match=r"don't fit .* has shape"):
        started(str(tmp_path / "other.pth"))


def test_missing_damaged_and_unknown_start_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "damaged.pth").write_bytes(b"PK nothing")
    (tmp_path / "damaged.safetensors").write_bytes(b"nothing")
    torch.save([1, 2], tmp_path / "list.pth")
    for start in ("missing.pth", "damaged.pth", "damaged.safetensors"):
        with pytest.raises(UsageError, match="Can't read the start weights"):
            started(str(tmp_path / start))
    with pytest.raises(UsageError, match="no state file"):
        started(str(tmp_path / "list.pth"))
    with pytest.raises(UsageError, match="Use random, imagenet"):
        started("imagenett")


def test_imagenet_without_internet_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(UsageError, match=r"Give the coordinator internet access"):
        started("imagenet")


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2_x0_5", "mobilenet_v3_small"])
def test_a_last_stride_of_one_doubles_the_last_map_and_keeps_every_tensor(name: str) -> None:
    plan = BackbonePlan(name=name, height_px=128, width_px=64)
    usual, finer = build_backbone(plan), build_backbone(replace(plan, last_stride=1))
    shapes = {tensor: values.shape for tensor, values in shared_tensors(usual).items()}
    assert shapes == {tensor: values.shape for tensor, values in shared_tensors(finer).items()}
    assert [_last_map(usual), _last_map(finer)] == [(4, 2), (8, 4)]


def _last_map(backbone: ReIDBackbone) -> tuple[int, int]:
    """Height and width of what is pooled, for the size of its plan."""
    sizes: list[torch.Size] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, maps: sizes.append(maps.shape[2:]))
        for layer in backbone.trunk.modules()
        if isinstance(layer, torch.nn.BatchNorm2d)
    ]
    backbone.eval()(torch.zeros(1, 3, backbone.plan.height_px, backbone.plan.width_px))
    for hook in hooks:
        hook.remove()
    return sizes[-1][0], sizes[-1][1]


@pytest.mark.parametrize("name", ["squeezenet1_1", "densenet121"])
def test_a_trunk_whose_last_downsampling_is_pooling_refuses_a_last_stride_of_one(name: str) -> None:
    with pytest.raises(UsageError, match="last_stride = 2"):
        build_backbone(BackbonePlan(name=name, last_stride=1))


def test_the_pooled_feature_is_what_the_neck_sees() -> None:
    backbone = started(neck="bnneck").eval()
    images = torch.rand(2, 3, 64, 32)
    features_ND, pooled_NP = backbone.with_pooled(images)
    assert torch.equal(features_ND, backbone(images))
    assert torch.equal(features_ND, backbone.neck(pooled_NP))
    assert float(pooled_NP.detach().min()) >= 0.0  # after a ReLU, before the neck
