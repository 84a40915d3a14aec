"""Which silos and plans do whole federations run on?"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tomli_w

from benchmark.federation import LocalFederation
from fedreid.datasets.synthetic import SyntheticSpec, render
from tests.federation.storms import Storm

Founding = Callable[..., LocalFederation]
Storming = Callable[..., Storm]


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small silos and a public set."""
    out = tmp_path_factory.mktemp("silos")
    spec = SyntheticSpec(
        silos=4,
        ratio=(2, 1, 1, 1),
        unit_identities=6,
        test_identities=4,
        distractors=2,
        junk=1,
        public_images=24,
        height_px=64,
        width_px=32,
    )
    render(out, spec, workers=1)
    return out


@pytest.fixture(scope="session")
def silo_folders(images: Path) -> dict[str, Path]:
    """Each silo's folder by its name."""
    return {path.name: path for path in sorted(images.iterdir()) if (path / "query").is_dir()}


@pytest.fixture
def found(tmp_path: Path, silo_folders: dict[str, Path]) -> Iterator[Founding]:
    """Found federations whose processes all end with the test."""
    founded: list[LocalFederation] = []

    def make(name: str = "fed", *, silos: int = 2, **settings: object) -> LocalFederation:
        chosen = dict(list(silo_folders.items())[:silos])
        local = LocalFederation(tmp_path / name, federation="harbour", silos=chosen)
        founded.append(local)
        local.initialise(**settings)
        return local

    yield make
    for local in founded:
        local.stop()


@pytest.fixture
def storms(tmp_path: Path, silo_folders: dict[str, Path]) -> Iterator[Storming]:
    """Found federations whose programs can be armed; all of their processes end with the test."""
    founded: list[LocalFederation] = []

    def make(name: str, *, silos: int = 2, **settings: object) -> Storm:
        chosen = dict(list(silo_folders.items())[:silos])
        local = LocalFederation(tmp_path / name, federation="harbour", silos=chosen)
        founded.append(local)
        storm = Storm(local)
        local.initialise(**settings)
        return storm

    yield make
    for local in founded:
        local.stop()


def write_plan(path: Path, **tables: object) -> Path:
    """A plan of two quick rounds, with whole tables replaced."""
    plan: dict[str, object] = {
        "name": "test",
        "rounds": 2,
        "seed": 7,
        "backbone": {"name": "resnet18", "height_px": 64, "width_px": 32},
        "training": {"threads": 1, "batch_size": 16},
        "quorum": {"min_silos": 2, "deadline_s": 120.0, "phase_deadline_s": 60.0},
        **tables,
    }
    path.write_text(tomli_w.dumps(plan), "utf-8")
    return path
