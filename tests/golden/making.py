"""How were the golden data folders made? ``python -m tests.golden.making``, before each release.

A federation of two silos and real processes, whose model is a constant (so that it packs well) and
whose training adds one. It is killed in its second round: one silo's update is counted, the other's
lies trained in its outbox. ``VERSION.tar.xz`` then holds the data folders of coordinator and agents
with a write-ahead log that nobody has merged; ``VERSION.json`` the digests that the same run has
published where nobody was killed. The keys in it are of this made-up federation alone, which lives
nowhere else.
"""

import json
import os
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import tomli_w

import fedreid
from benchmark.federation import LocalFederation
from coordinator.client import every_round
from fedreid import faults
from fedreid.datasets.synthetic import SyntheticSpec, render
from fedreid.plan import BackbonePlan
from fedreid.reid.backbone import build_backbone, shared_tensors
from fedreid.v1 import admin_pb2
from fedreid.wire.tensors import save_tensors

HERE = Path(__file__).parent
COUNTED, TRAINED = "north", "south"
"""Which silo's update is counted, and whose lies in its outbox."""
_BACKBONE = {"name": "shufflenet_v2_x0_5", "height_px": 32, "width_px": 16}
_YEARS_S = 100 * 365 * 86400.0
_WAIT_S = 300.0


def main() -> None:
    """Write today's golden files."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        images = _images(root / "images")
        plan = _plan(root)
        digests = _calm(LocalFederation(root / "calm", federation="harbour", silos=images), plan)
        data = root / "data"
        _killed(LocalFederation(data, federation="harbour", silos=images), plan)
        target = HERE / fedreid.__version__
        with tarfile.open(f"{target}.tar.xz", "w:xz") as archive:
            for name in ("coordinator", COUNTED, TRAINED):
                archive.add(data / name, name)
        Path(f"{target}.json").write_text(json.dumps(digests, indent=1) + "\n")


def _images(root: Path) -> dict[str, Path]:
    spec = SyntheticSpec(
        silos=2,
        ratio=(1, 1),
        unit_identities=2,
        test_identities=2,
        distractors=0,
        junk=0,
        public_images=0,
        height_px=32,
        width_px=16,
    )
    render(root, spec, workers=1)
    folders = sorted(path for path in root.iterdir() if (path / "query").is_dir())
    return dict(zip((COUNTED, TRAINED), folders, strict=True))


def _plan(root: Path) -> Path:
    """Three rounds from a constant; the deadline is far, for these folders are opened years on."""
    start = root / "start.safetensors"
    tensors = shared_tensors(build_backbone(BackbonePlan(**_BACKBONE)))
    save_tensors(start, {name: np.full_like(values, 0.5) for name, values in tensors.items()})
    path = root / "plan.toml"
    plan = {
        "name": "golden",
        "rounds": 3,
        "seed": 7,
        "backbone": {**_BACKBONE, "start": str(start)},
        "training": {"threads": 1},
        "quorum": {
            "min_silos": 2,
            "min_fraction": 1.0,
            "deadline_s": _YEARS_S,
            "phase_deadline_s": 600.0,
        },
    }
    path.write_text(tomli_w.dumps(plan), "utf-8")
    return path


def _calm(local: LocalFederation, plan: Path) -> dict[str, str]:
    """Digests by round, where nothing fails."""
    with local:
        local.initialise()
        for silo in local.silos:
            local.join_without_training(silo)
        local.start_run(plan)
        local.wait_until(lambda run: run.state == "finished", timeout_s=_WAIT_S)
        with local.admin() as admin:
            return {str(state.number): state.model_digest for state in every_round(admin)}


def _killed(local: LocalFederation, plan: Path) -> None:
    """Kill all in the second round, once one update of it is counted and the other trained."""
    armed = local.root.parent / "faults"
    armed.write_text("outbox.write:after 2 crash\n")
    with local:
        local.initialise()
        local.join_without_training(COUNTED)
        os.environ[faults.VARIABLE] = str(armed)
        try:
            ended = local.join_without_training(TRAINED)
        finally:
            del os.environ[faults.VARIABLE]
        local.start_run(plan)

        def reached(run: admin_pb2.GetRunResponse) -> bool:
            return run.round.number == 2 and [p.silo for p in run.round.participants] == [COUNTED]

        local.wait_until(reached, timeout_s=_WAIT_S)
        ended.wait(_WAIT_S)
        local.agents[COUNTED].kill()
        local.coordinator.kill()


if __name__ == "__main__":
    main()
