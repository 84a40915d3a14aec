"""Is a null round measured through real processes, beside a bare program that moves its bytes?"""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmark.footprints import children, cpu_seconds, peak_mb
from benchmark.limit import Limit
from benchmark.transport import PeerTransported, Spread, Transported, measure_transport, rows
from fedreid.errors import RunError, UsageError
from fedreid.plan import BackbonePlan
from fedreid.reid.backbone import build_backbone, shared_tensors
from fedreid.wire.encoding import payload_bytes
from fedreid.wire.tensors import Layout, TensorSpec
from tests.benchmark.peers import made_up_flower

pytestmark = pytest.mark.timeout(300)
_MODEL = "shufflenet_v2_x0_5"
_KEYS = {
    "ratio_to_limit", "round_seconds", "limit_seconds", "limit_kind", "service_peak_mb",
    "worker_peak_mb", "agent_peak_mb", "bytes_up", "bytes_down", "phases",
}  # fmt: skip


def bytes_of(model: str) -> int:
    """What the manifest of a model states."""
    plan = BackbonePlan(name=model, height_px=64, width_px=32)
    tensors = shared_tensors(build_backbone(plan))
    layout = Layout.of(TensorSpec(name, values.shape) for name, values in tensors.items())
    return payload_bytes(layout, "fp32")


def test_a_small_null_round_is_measured_whole_and_a_peers_beside_it(tmp_path: Path) -> None:
    """The peer is made up, but started, given our server's certificate and read as a real one."""
    flower = made_up_flower.make(tmp_path / "flower")
    command = [sys.executable, "-m", "benchmark", "transport", "--silos", "2"]
    done = subprocess.run(
        [*command, "--model", _MODEL, "--rounds", "2", "--peer", f"flower={flower}", "--json"],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result.keys() >= _KEYS
    assert result["bytes_up"] == result["bytes_down"] == 2 * bytes_of(_MODEL)
    assert result["round_seconds"]["least"] > 0.0 < result["limit_seconds"]["least"]
    ratio = result["round_seconds"]["median"] / result["limit_seconds"]["median"]
    assert result["ratio_to_limit"] == pytest.approx(ratio)
    assert set(result["phases"]) == {"collecting", "aggregating", "publishing"}
    spent = sum(phase["median"] for phase in result["phases"].values())
    assert spent == pytest.approx(result["round_seconds"]["median"], rel=0.5)
    assert min(result[f"{who}_peak_mb"] for who in ("service", "worker", "agent")) > 20.0
    peer = result["peers"]["flower"]
    assert peer["version"] == made_up_flower.VERSION
    assert set(peer["round_seconds"].values()) == {made_up_flower.SECONDS}
    ratio = made_up_flower.SECONDS / result["round_seconds"]["median"]
    assert peer["ratio_to_ours"] == pytest.approx(ratio)
    assert peer["server_peak_mb"] > made_up_flower.PEAK_MB


def test_a_peers_rounds_are_rows_of_the_table() -> None:
    spread = Spread.of([1.0, 2.0, 6.0])
    peer = PeerTransported(
        version="1.41.0", round_seconds=spread, ratio_to_ours=4.0, cpu_seconds=spread,
        server_peak_mb=812.4,
    )  # fmt: skip
    ours = Transported(
        silos=1, model=_MODEL, encoding="fp32", rounds=3, ratio_to_limit=1.0,
        cpu_ratio_to_limit=1.0, round_seconds=spread, limit_seconds=spread, limit_kind="c",
        phases={}, cpu_seconds=spread, limit_cpu_seconds=spread, bytes_up=1, bytes_down=1,
        service_peak_mb=1.0, worker_peak_mb=1.0, agent_peak_mb=1.0,
    )  # fmt: skip
    beside = rows(replace(ours, peers={"flower": peer}))
    assert beside[: len(rows(ours))] == rows(ours)
    assert beside[len(rows(ours)) :] == [
        ("flower 1.41.0, s", "2.000 (1.000 to 6.000)"),
        ("  ratio to ours", "4.00"),
        ("  CPU, s", "2.000 (1.000 to 6.000)"),
        ("  server peak, MiB", "812"),
    ]


@pytest.mark.parametrize(("silos", "rounds"), [(0, 1), (1, 0)])
def test_nothing_can_not_be_measured(silos: int, rounds: int) -> None:
    with pytest.raises(UsageError):
        measure_transport(
            silos=silos, model=_MODEL, encoding="fp32", rounds=rounds, tell=lambda line: None
        )


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A server's certificate and key."""
    paths = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-subj", "/CN=localhost", "-out", str(paths[0]), "-keyout", str(paths[1])],
        check=True, capture_output=True,
    )  # fmt: skip
    return paths


@pytest.mark.parametrize("kind", ["c", "python"])
def test_the_bare_program_does_round_after_round(
    tmp_path: Path, certificate: tuple[Path, Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "python":
        monkeypatch.setattr(shutil, "which", lambda program: None)
    elif shutil.which("cc") is None:
        pytest.skip("there is no compiler")
    numbers = {"silos": 2, "bytes_down": 3_000_000, "bytes_up": 2_000_000}
    with Limit(tmp_path, certificate=certificate[0], key=certificate[1], **numbers) as bare:
        assert bare.kind == kind
        for _ in range(2):
            wall_s, cpu_s = bare.round()
            assert wall_s > 0.0 and cpu_s >= 0.0


def test_a_bare_program_that_fails_says_why(tmp_path: Path) -> None:
    missing = tmp_path / "none.pem"
    with (
        Limit(
            tmp_path, certificate=missing, key=missing, silos=1, bytes_down=4, bytes_up=4
        ) as bare,
        pytest.raises(RunError, match="failed"),
    ):
        bare.round()


def test_what_a_process_and_its_children_cost_is_counted() -> None:
    work = "import subprocess,sys; x = bytearray(80 << 20); print(1, flush=True); sys.stdin.read()"
    parent = f"import subprocess,sys; subprocess.run([sys.executable, '-c', {work!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        (child,) = children(process.pid)
        assert peak_mb(child) > 80.0 > peak_mb(process.pid)
        assert cpu_seconds(process.pid) > cpu_seconds(child) > 0.0
        process.stdin.close()
    assert peak_mb(process.pid) == cpu_seconds(process.pid) == 0.0
