"""Tiny models and images on disk, as the coordinator's learning jobs find them."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from coordinator.learning.jobs import Contribution
from fedreid.plan import BackbonePlan
from fedreid.reid.backbone import ReIDBackbone, build_backbone, initialise, shared_tensors
from fedreid.reid.transforms import ByteArray, normalise
from fedreid.wire.tensors import save_tensors

TINY = BackbonePlan(name="mobilenet_v3_small", height_px=64, width_px=32)


def patches(seed: int) -> ByteArray:
    """pixels_CHW of a patchy image: noise so coarse that it looks like something."""
    coarse_HWC = np.random.default_rng(seed).integers(0, 256, size=(8, 4, 3), dtype=np.uint8)
    size = (TINY.width_px, TINY.height_px)
    image = Image.fromarray(coarse_HWC).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(image).transpose(2, 0, 1)


def backbone(seed: int) -> ReIDBackbone:
    """A backbone whose BatchNorm statistics fit its weights, so that features tell images apart."""
    made = build_backbone(TINY, dropout=0.0)
    initialise(made, seed)
    made.train()
    for layer in made.modules():
        if isinstance(layer, torch.nn.modules.batchnorm._BatchNorm):
            layer.momentum = 1.0
    with torch.no_grad():
        made(normalise(np.stack([patches(1000 * seed + index) for index in range(256)])))
    return made.eval()


def contribution(folder: Path, silo: str, seed: int) -> Contribution:
    path = folder / f"{silo}.safetensors"
    save_tensors(path, shared_tensors(backbone(seed)))
    return Contribution(silo=silo, path=str(path), num_images=100, num_steps=4, cosine_distance=0.1)


def picture(path: Path, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(patches(seed).transpose(1, 2, 0)).save(path)
    return path


def public_folder(folder: Path, count: int) -> Path:
    for index in range(count):
        picture(folder / "public" / f"{index:03d}.png", index)
    return folder / "public"


def labelled_folder(folder: Path, persons: int = 4) -> Path:
    """Market-1501's layout: one query and two gallery images per person, in two cameras."""
    root = folder / "labelled"
    for pid in range(1, persons + 1):
        picture(root / "query" / f"{pid:04d}_c1s1_000001_01.png", pid)
        picture(root / "bounding_box_test" / f"{pid:04d}_c1s1_000002_01.png", pid)
        picture(root / "bounding_box_test" / f"{pid:04d}_c2s1_000003_01.png", pid)
    picture(root / "bounding_box_test" / "0000_c2s1_000004_01.png", 1000)
    picture(root / "bounding_box_test" / "-1_c2s1_000005_01.png", 1)
    return root
