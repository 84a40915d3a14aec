"""Which agents do these tests use models of? Two that have finished a run on generated people."""

import socket
from pathlib import Path

import pytest
import torch

from fedreid.datasets.synthetic import SyntheticSpec, render
from silo_agent.config import Folders
from tests.silo_agent.finished import finished_agent

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def silo_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one generated silo."""
    out = tmp_path_factory.mktemp("people")
    spec = SyntheticSpec(
        silos=1,
        ratio=(1,),
        unit_identities=4,
        test_identities=4,
        distractors=2,
        junk=1,
        public_images=0,
        height_px=64,
        width_px=32,
    )
    render(out, spec, workers=1)
    (folder,) = (path.parent for path in out.glob("*/query"))
    return folder


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory, silo_images: Path) -> Folders:
    """Two rounds, BatchNorm pooled, with the standalone baseline."""
    return finished_agent(tmp_path_factory.mktemp("pooled"), silo_images)


@pytest.fixture(scope="session")
def own_norm_agent(tmp_path_factory: pytest.TempPathFactory, silo_images: Path) -> Folders:
    """One round, BatchNorm local, without the baseline."""
    return finished_agent(
        tmp_path_factory.mktemp("own-norm"), silo_images, rounds=1, bn="local", standalone=False
    )


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that uses a model may open a connection."""

    def refused(*_: object) -> None:
        raise AssertionError("something was to be sent")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refused)
