"""A silo whose updates leave with noise, in a real federation, until its budget is spent."""

import json
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from benchmark.federation import LocalFederation, Program
from fedreid.errors import ExitCode
from fedreid.files import digest_of
from fedreid.v1 import admin_pb2
from fedreid.wire.tensors import TensorFile, load_tensors
from silo_agent.budget import Spending, epsilon_of
from silo_agent.config import Folders, Policy, PrivacyPolicy, load_config, save_config
from silo_agent.outbox import OWN_FILE, UPDATE_FILE, Outbox
from tests.federation.conftest import Founding, write_plan

pytestmark = pytest.mark.timeout(400)
_RUN_S = 240.0
_POLICY = Policy(privacy=PrivacyPolicy(noise_multiplier=0.5, clip_norm=0.01, epsilon_budget=12.0))
"""Enough for one update, which costs an epsilon of 10.7, and not for two."""


def test_noise_leaves_within_the_budget_and_then_nothing(found: Founding, tmp_path: Path) -> None:
    local = found()
    private, other = local.silos
    plan = write_plan(
        tmp_path / "plan.toml",
        rounds=3,
        backbone={"name": "shufflenet_v2_x0_5", "height_px": 64, "width_px": 32},
        quorum={"min_silos": 2, "deadline_s": 300.0, "phase_deadline_s": 60.0},
    )
    local.start_run(plan)
    local.join_without_training(other)
    local.command(*local.join_arguments(private), "--enrol-only")
    folders = Folders(local.agent_data(private))
    save_config(folders, msgspec.structs.replace(load_config(folders), policy=_POLICY))
    agent = local.start_agent(private)
    del local.agents[private]  # it is going to end by itself
    try:
        assert agent.wait(_RUN_S) == ExitCode.POLICY
        _check_told(agent)
        agent.start()
        assert agent.wait(_RUN_S) == ExitCode.POLICY
        assert "round 2: training" not in agent.log
    finally:
        agent.stop()
    with local.admin() as admin:
        first = admin.ListRounds(admin_pb2.ListRoundsRequest()).rounds[0]
        figures = admin.ListEvaluations(admin_pb2.ListEvaluationsRequest()).evaluations
    assert first.phase == "published"
    _check_report(first, private, other)
    assert private not in {figure.silo for figure in figures}
    _check_silo(local, private, first)


def _check_told(agent: Program) -> None:
    assert "noise added, epsilon is 10.73 of 12" in agent.log
    assert "privacy budget does not last for another round" in agent.log
    assert "policy.privacy.epsilon_budget" in agent.log


def _check_report(first: admin_pb2.RoundSummary, private: str, other: str) -> None:
    """What the coordinator knows, and what it does not."""
    reports = {part.silo: part.report for part in first.participants}
    privacy = reports[private].privacy
    assert (privacy.clip_norm, privacy.noise_multiplier, privacy.delta) == (0.01, 0.5, 1e-5)
    assert privacy.epsilon == epsilon_of((Spending(noise_multiplier=0.5, updates=1),), 1e-5)
    assert reports[private].cosine_distance == reports[private].train_loss == 0.0
    assert reports[private].num_images > 0
    assert not reports[other].HasField("privacy")
    weights = [part.weight for part in first.participants]
    assert weights == pytest.approx([0.5, 0.5])  # it counts as the mean of those that tell


def _check_silo(local: LocalFederation, silo: str, first: admin_pb2.RoundSummary) -> None:
    """What the silo has kept, and what it shows of it."""
    data = str(local.agent_data(silo))
    outbox = Outbox(Folders(local.agent_data(silo)))
    last = outbox.last()
    assert last is not None and last.round == 1
    update, own = outbox.folder(last) / UPDATE_FILE, outbox.folder(last) / OWN_FILE
    with TensorFile(update) as file:
        sent = digest_of(update, start=file.data_offset)
    (part,) = (part for part in first.participants if part.silo == silo)
    assert part.payload_digest == sent  # what lies in the outbox is what left
    noisy, mine = load_tensors(update), load_tensors(own)
    assert all((noisy[name] != mine[name]).any() for name in mine)
    noise = (noisy["neck.linear.weight"] - _base(local, first, "neck.linear.weight")).astype(
        np.float64
    )
    assert noise.std() == pytest.approx(0.5 * 2 * 0.01, rel=0.02)
    shown = json.loads(local.command("silo_agent", "egress", "show", "--data", data, "--json"))
    assert shown["payload_digest"] == sent
    assert shown["numbers"]["privacy"]["noise_multiplier"] == 0.5
    status = json.loads(local.command("silo_agent", "status", "--data", data, "--json"))
    assert status["privacy"]["updates"] == 1
    assert status["privacy"]["epsilon"] == part.report.privacy.epsilon
    assert "of a budget of 12" in local.command("silo_agent", "status", "--data", data)
    report = json.loads(local.command("silo_agent", "report", "--data", data, "--json"))
    assert report["privacy"] == status["privacy"]
    assert {row["model"] for row in report["models"]} >= {"local", "standalone"}


def _base(
    local: LocalFederation, first: admin_pb2.RoundSummary, name: str
) -> npt.NDArray[np.float32]:
    path = local.data / "models" / f"{first.base_digest}.safetensors"
    with TensorFile(path) as file:
        return file.read(name)
