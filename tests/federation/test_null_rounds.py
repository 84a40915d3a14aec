"""Rounds without learning: policies, encodings, footprints."""

import re
from pathlib import Path

import pytest

from benchmark.federation import LocalFederation
from fedreid.errors import ExitCode
from fedreid.v1 import admin_pb2
from tests.federation.conftest import Founding, write_plan
from tests.federation.test_learning import finished
from tests.history import check, read_history

pytestmark = pytest.mark.timeout(300)
_RUN_S = 180.0
_SERVICE_LIMIT_MB = 250
_AGENT_LIMIT_MODELS = 2.5


def peak_mb(pid: int) -> float:
    """Largest resident memory that a process ever had."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


def run_null(local: LocalFederation, plan: Path) -> list[admin_pb2.RoundSummary]:
    """Run a plan with null agents; its rounds."""
    local.start_run(plan)
    for silo in local.silos:
        local.join_without_training(silo)
    local.wait_until(finished, timeout_s=_RUN_S)
    with local.admin() as admin:
        return list(admin.ListRounds(admin_pb2.ListRoundsRequest()).rounds)


@pytest.mark.parametrize("weighting", ["samples", "uniform", "blend"])
def test_weights_follow_the_plan(found: Founding, tmp_path: Path, weighting: str) -> None:
    plan = write_plan(tmp_path / "plan.toml", aggregation={"weighting": weighting})
    rounds = run_null(found(), plan)
    for state in rounds:
        weights = [part.weight for part in state.participants]
        distances = [part.report.cosine_distance for part in state.participants]
        if weighting == "blend":  # both have 100 images, so the distances decide
            assert weights[0] == pytest.approx(distances[0] / sum(distances))
        else:
            assert weights == pytest.approx([0.5, 0.5])


def test_bf16_halves_the_bytes_both_ways(found: Founding, tmp_path: Path) -> None:
    exact = run_null(found("exact"), write_plan(tmp_path / "a.toml", rounds=1))
    half = run_null(
        found("half"),
        write_plan(tmp_path / "b.toml", rounds=1, wire={"upload": "bf16", "download": "bf16"}),
    )
    assert half[0].upload_bytes < 0.51 * exact[0].upload_bytes
    assert half[0].download_bytes < 0.51 * exact[0].download_bytes


def test_differences_quarter_the_bytes_both_ways(found: Founding, tmp_path: Path) -> None:
    wire = {"upload": "int8_delta", "download": "int8_delta_zstd"}
    first, second = run_null(found(), write_plan(tmp_path / "plan.toml", wire=wire))
    exact = first.download_bytes  # the start weights come in fp32
    assert first.upload_bytes < 0.26 * exact
    assert second.upload_bytes == first.upload_bytes
    assert second.download_bytes < 0.26 * exact


def test_under_bn_local_a_policy_keeps_batchnorm_at_home(found: Founding, tmp_path: Path) -> None:
    local = found()
    private, open_ = local.silos
    local.start_run(write_plan(tmp_path / "plan.toml", rounds=1, aggregation={"bn": "local"}))
    local.command(*local.join_arguments(private), "--enrol-only")
    config = local.agent_data(private) / "agent.toml"
    text = config.read_text().replace("batchnorm_statistics = true", "batchnorm_statistics = false")
    config.write_text(text)
    local.start_null_agent(private)
    local.join_without_training(open_)
    local.wait_until(finished, timeout_s=_RUN_S)
    with local.admin() as admin:
        (state,) = admin.ListRounds(admin_pb2.ListRoundsRequest()).rounds
    assert len(state.participants) == 2
    assert state.phase == "published"


def test_a_silo_that_leaves_or_is_revoked_counts_no_more(found: Founding, tmp_path: Path) -> None:
    local = found(silos=3)
    staying, leaving, revoked = local.silos
    agents = {silo: local.join_without_training(silo) for silo in local.silos}
    quorum = {"min_silos": 1, "deadline_s": 120.0, "phase_deadline_s": 60.0}
    local.start_run(write_plan(tmp_path / "plan.toml", rounds=50, quorum=quorum))
    local.wait_until(lambda run: len(run.round.participants) == 3, timeout_s=_RUN_S)
    agents[leaving].stop()
    local.command("silo_agent", "leave", "--data", str(local.agent_data(leaving)))
    local.command("coordinator", "silo", "revoke", revoked, "--data", str(local.data))
    with local.admin() as admin:
        after = admin.GetRun(admin_pb2.GetRunRequest()).round.number
    assert agents[revoked].wait(60.0) == ExitCode.TRUST
    assert "is revoked" in local.agents.pop(revoked).log
    local.wait_until(lambda run: run.round.number > after + 2, timeout_s=_RUN_S)
    local.command("coordinator", "run", "stop", "--data", str(local.data))
    with local.admin() as admin:
        rounds = admin.ListRounds(admin_pb2.ListRoundsRequest()).rounds
        states = {s.name: s.state for s in admin.ListSilos(admin_pb2.ListSilosRequest()).silos}
    late = [state for state in rounds if state.number > after]
    assert late and all([p.silo for p in s.participants] in ([staying], []) for s in late)
    assert states == {staying: "active", leaving: "left", revoked: "revoked"}
    history = read_history(local.data, map(local.agent_data, local.silos))
    check(history)
    assert {gone.silo for gone in history.gone if gone.done_s is not None} == {leaving, revoked}


def test_memory_stays_small_with_resnet50(found: Founding, tmp_path: Path) -> None:
    local = found(silos=4)
    agents = [local.join_without_training(silo) for silo in local.silos]
    for agent in agents:
        local.wait_until(lambda run, agent=agent: "connected" in agent.log, timeout_s=_RUN_S)  # type: ignore[misc]
    idle_mb = [peak_mb(agent.pid) for agent in agents]
    local.start_run(
        write_plan(
            tmp_path / "plan.toml",
            rounds=2,
            backbone={"name": "resnet50", "height_px": 64, "width_px": 32},
            quorum={"min_silos": 4, "deadline_s": 120.0, "phase_deadline_s": 60.0},
        )
    )
    local.wait_until(finished, timeout_s=_RUN_S)
    with local.admin() as admin:
        newest = admin.ListRounds(admin_pb2.ListRoundsRequest()).rounds[-1]
    model_mb = newest.upload_bytes / len(agents) / 2**20
    added_mb = max(peak_mb(a.pid) - idle for a, idle in zip(agents, idle_mb, strict=True))
    service_mb = peak_mb(local.coordinator.pid)
    print(
        f"model {model_mb:.0f} MB, service peak {service_mb:.0f} MB, agent adds {added_mb:.0f} MB"
    )
    assert model_mb > 90
    assert service_mb < _SERVICE_LIMIT_MB
    assert added_mb < _AGENT_LIMIT_MODELS * model_mb
