"""Do the two transports publish the same models, bit by bit, and measure the same?"""

from pathlib import Path

import msgspec
import pytest

from benchmark.bench import Bench, GeneratedSilos, MethodSpec, ScenarioSpec, method_plan
from benchmark.cells import CELL_NAME, CellResult, Transport
from benchmark.grid import Cell, run_cell
from benchmark.scenarios import Source
from benchmark.silos import render_silos
from silo_agent.budget import Spending, epsilon_of
from silo_agent.config import Policy, PrivacyPolicy

pytestmark = pytest.mark.timeout(600)

OVERRIDE = {
    "rounds": 2,
    "backbone": {
        "name": "shufflenet_v2_x0_5", "start": "random", "height_px": 64, "width_px": 32,
    },
    "training": {
        "threads": 1, "batch_size": 8, "learning_rate": 0.002, "backbone_learning_rate": 0.002,
    },
    "distillation": {"images": "public", "batch_size": 8},
}  # fmt: skip


@pytest.fixture(scope="module")
def silos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("silos") / "data"
    generated = GeneratedSilos(
        ratio=(2, 1), unit_identities=3, test_identities=4, distractors=2, junk=1,
        public_images=12, height_px=64, width_px=32,
    )  # fmt: skip
    render_silos(out, generated.spec(0), workers=1)
    return out


def result(silos: Path, folder: Path, method: MethodSpec, transport: Transport) -> CellResult:
    bench = Bench(name="harbour", scenarios=(), methods=(), override=OVERRIDE)
    plan = method_plan(
        bench, method, folder, name=f"{method.name}-s0", seed=0, public=str(silos / "public")
    )
    cell = Cell(
        bench=bench.name, method=method, scenario=ScenarioSpec(kind="by-dataset"), seed=0,
        transport=transport, folder=folder / transport, plan=plan,
        sources={
            path.parent.name: Source(name=path.parent.name, path=path.parent)
            for path in silos.glob("*/query")
        },
    )  # fmt: skip
    assert run_cell(cell) == ""
    return msgspec.json.decode((cell.folder / CELL_NAME).read_bytes(), type=CellResult)


@pytest.mark.parametrize(
    "method",
    [
        MethodSpec(
            name="clusters",
            plan="best.toml",
            override={
                "aggregation": {
                    "clustering": "finch", "bn": "local", "clip_norm_ratio": 0.0, "screen": False,
                },
                "wire": {"upload": "bf16", "download": "bf16"},
            },
        ),
        MethodSpec(
            name="server-steps",
            plan="best.toml",
            override={
                "aggregation": {
                    "normalisation": "fednova", "server_momentum": 0.5, "bn": "recalibrated",
                    "screen": False,  # from random weights these silos of a few images scatter
                },
                "training": {"proximal": 0.01, "probe": "reference"},
                "wire": {"upload": "int8_delta", "download": "int8_delta_zstd"},
            },
        ),
    ],
    ids=lambda method: method.name,
)  # fmt: skip
def test_one_process_and_a_real_federation_publish_the_same(
    silos: Path, tmp_path: Path, method: MethodSpec
) -> None:
    local = result(silos, tmp_path, method, "local")
    real = result(silos, tmp_path, method, "grpc")
    assert len(local.rounds) == 2
    digests = [one.model_digest for one in local.rounds]
    assert digests == [one.model_digest for one in real.rounds] and len(set(digests)) == 2
    assert local.untrained == real.untrained and set(local.untrained) == set(local.silos)
    for ours, theirs in zip(local.rounds, real.rounds, strict=True):
        assert ours == msgspec.structs.replace(theirs, phase_seconds=ours.phase_seconds)


def test_silos_that_add_noise_tell_its_price_after_each_round(silos: Path, tmp_path: Path) -> None:
    privacy = PrivacyPolicy(noise_multiplier=1.0, clip_norm=1e-3, epsilon_budget=9.0)
    method = MethodSpec(
        name="noisy", plan="best.toml", policy=Policy(privacy=privacy),
        override={"aggregation": {"bn": "pooled", "clip_norm_ratio": 0.0, "screen": False}},
    )  # fmt: skip
    cell = result(silos, tmp_path, method, "local")
    prices = [
        epsilon_of((Spending(noise_multiplier=1.0, updates=count),), privacy.delta)
        for count in (1, 2)
    ]
    assert [one.epsilons for one in cell.rounds] == [dict.fromkeys(cell.silos, p) for p in prices]
    assert all(set(one.cosine_distances.values()) == {0.0} for one in cell.rounds)
    assert all(one.weights == dict.fromkeys(cell.silos, 0.25) for one in cell.rounds)
    assert cell.policy.privacy == privacy
