"""Do the guides work? Each is typed from top to bottom, by somebody who reads nothing else."""

import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tomli_w

from benchmark.federation import LocalFederation
from coordinator.client import admin_of
from fedreid.datasets.synthetic import SyntheticSpec, render
from fedreid.v1 import admin_pb2
from tests.docs.pages import ROOT
from tests.docs.session import Session

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
_WAIT_S = 600.0


def page(name: str) -> Path:
    return ROOT / "docs" / f"{name}.md"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small silos."""
    out = tmp_path_factory.mktemp("silos")
    spec = SyntheticSpec(
        silos=2, unit_identities=6, test_identities=4, public_images=8, height_px=64, width_px=32
    )
    render(out, spec, workers=1)
    return out


def test_the_quickstart_publishes_a_model(tmp_path: Path) -> None:
    began_s = time.monotonic()
    replaced = {"localhost:8443": f"localhost:{(port := free_port())}", ":8443": f":{port}"}
    with Session(tmp_path, replaced) as session:
        session.type_page(page("quickstart"), {})
    print(f"the quickstart took {time.monotonic() - began_s:.0f} s")
    assert (tmp_path / "model.safetensors.release").is_file()
    assert "3 of 3" in (tmp_path / "report.html").read_text()


def test_the_coordinators_guide_works(tmp_path: Path, images: Path) -> None:
    port, data = free_port(), tmp_path / "srv"
    replaced = {
        "--hostname reid.example.org": f"--hostname localhost --listen 127.0.0.1:{port}",
        "/srv/fedreid": str(data),
    }
    with Session(tmp_path, replaced) as session:

        def silos_join() -> None:
            for silo in ("station", "mall"):
                join = (
                    f"silo-agent join --enrol-only --coordinator localhost:{port} --token-file "
                    f"{silo}.token --dataset {images / silo} --data {silo}"
                )
                session.keep(join, until=f"this is the silo {silo}")
                session.keep(
                    f"{sys.executable} -m benchmark.null_agent {silo}", until="connected to"
                )

        def long_run() -> None:
            plan = {
                "name": "summer",
                "rounds": 1000,
                "backbone": {"name": "resnet18", "height_px": 64, "width_px": 32},
            }
            with admin_of(data) as admin:
                admin.StartRun(admin_pb2.StartRunRequest(plan_toml=tomli_w.dumps(plan)))
            changed = {**plan, "quorum": {"deadline_s": 7200.0}}
            (tmp_path / "plan.toml").write_text(tomli_w.dumps(changed))

        session.type_page(
            page("coordinator"),
            {"the silos join": silos_join, "a long run is under way": long_run},
        )
    assert "2 of 2" in (tmp_path / "report.html").read_text()


def test_the_silos_guide_works(tmp_path: Path, images: Path) -> None:
    folders = {silo: images / silo for silo in ("station", "mall")}
    local = LocalFederation(tmp_path / "federation", federation="harbour", silos=folders)
    with local:
        local.initialise()
        here = tmp_path / "here"
        replaced = {
            "reid.example.org:443": local.endpoint,
            "/data/images": str(folders["station"]),
        }
        with Session(here, replaced) as session:
            session.type_page(page("silo"), silos_side(local, here, tmp_path))
        assert (here / "reid.onnx").is_file() and (here / "ranked.png").is_file()
        with local.admin() as admin:
            silos = admin.ListSilos(admin_pb2.ListSilosRequest()).silos
        assert {silo.name: silo.state for silo in silos}["station"] == "left"


def silos_side(local: LocalFederation, here: Path, tmp_path: Path) -> dict[str, Callable[[], None]]:
    """What the coordinator's operators and the other silo do meanwhile."""

    def token_comes() -> None:
        shutil.copy(local.token("station"), here / "station.token")

    def run_is_finished() -> None:
        plan = {
            "name": "spring",
            "rounds": 1,
            "backbone": {"name": "resnet18", "height_px": 64, "width_px": 32},
            "training": {"threads": 1, "batch_size": 16},
        }
        (tmp_path / "plan.toml").write_text(tomli_w.dumps(plan))
        local.join_without_training("mall")
        local.start_run(tmp_path / "plan.toml")
        local.wait_until(
            lambda run: run.state == "finished" and "station" not in run.awaited_evaluations,
            timeout_s=_WAIT_S,
        )

    return {"a token comes": token_comes, "a run is finished": run_is_finished}


def test_the_upgrade_notes_work(tmp_path: Path) -> None:
    data = tmp_path / "srv"
    with Session(tmp_path, {"/srv/fedreid": str(data)}) as session:
        init = f"coordinator init --data {data} --hostname localhost --listen 127.0.0.1:0"
        session.keep(init, until="made the federation")
        session.keep(f"coordinator serve --data {data}", until="serving the federation")
        session.type_page(page("upgrading"), {})
    assert (tmp_path / "srv-restored" / "coordinator.toml").is_file()
