"""A silo's policy holds against a running coordinator, and the others go on without it."""

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from benchmark.federation import LocalFederation, Program
from fedreid.audit import AuditLine, read_audit
from fedreid.errors import ExitCode, RunError
from silo_agent.config import Folders, Policy, load_config, save_config
from tests.federation.conftest import Founding, write_plan

pytestmark = pytest.mark.timeout(600)
_RUN_S = 300.0
_QUORUM = {"min_silos": 1, "min_fraction": 0.3, "deadline_s": 25.0, "phase_deadline_s": 60.0}


def joined_under(local: LocalFederation, silo: str, policy: Policy) -> Program:
    """Start a null agent whose operator has set a policy."""
    local.command(*local.join_arguments(silo), "--enrol-only")
    folders = Folders(local.agent_data(silo))
    save_config(folders, replace(load_config(folders), policy=policy))
    agent = local.start_null_agent(silo)
    local.wait_until(lambda run: "connected" in agent.log, timeout_s=_RUN_S)
    return agent


def audited(local: LocalFederation, silo: str, event: str) -> list[AuditLine]:
    lines = read_audit(Folders(local.agent_data(silo)).audit)
    return [line for line in lines if line.event == event]


def test_what_a_policy_refuses_for_a_day_or_a_round_is_waited_out(
    found: Founding, tmp_path: Path
) -> None:
    local = found(silos=3)
    free, frugal, wary = local.silos
    agents = {
        free: joined_under(local, free, Policy(coordinators=(local.endpoint,))),
        frugal: joined_under(local, frugal, Policy(rounds_per_day=1)),
        wary: joined_under(local, wary, Policy(largest_model_change=1e-9)),
    }
    local.start_run(write_plan(tmp_path / "plan.toml", rounds=2, quorum=_QUORUM))
    local.wait_until(lambda run: run.state == "finished", timeout_s=_RUN_S)

    assert len(audited(local, free, "update.sent")) == 2
    for silo, told in ((frugal, "takes part again from"), (wary, "policy.largest_model_change")):
        assert agents[silo].running()
        assert told in agents[silo].log
        (sent,) = audited(local, silo, "update.sent")
        assert sent.fields["round"] == 1
        (refused,) = audited(local, silo, "policy.refused")
        assert refused.fields["round"] == 2 and refused.fields["again"]
    check_a_forbidden_coordinator(local, free)


def check_before_the_first_upload(local: LocalFederation, silo: str, model: Path) -> None:
    """What would leave can be seen, and a model be checked, by a silo that never sent anything."""
    mine = ("--data", str(local.agent_data(silo)))
    with pytest.raises(RunError, match="--base"):
        local.command("silo_agent", "egress", "show", *mine)
    local.command("coordinator", "model", "export", str(model), "--data", str(local.data))
    shown = json.loads(
        local.command("silo_agent", "egress", "show", "--base", str(model), *mine, "--json")
    )
    assert shown["byte_count"] == sum(one["bytes"] for one in shown["tensors"].values()) > 40e6
    assert shown["destination"] == local.endpoint
    assert set(shown["numbers"].values()) == {None} and "train_loss" in shown["numbers"]
    assert shown["left_so_far"]["rounds_total"] == 0
    key = model.with_name("model-key.pem")
    key.write_text(local.command("coordinator", "model", "key", "--data", str(local.data)))
    for known in (mine, ("--key", str(key))):
        told = json.loads(
            local.command("silo_agent", "model", "verify", str(model), *known, "--json")
        )
        assert (told["federation"], told["round"]) == ("harbour", 1)
    data = bytearray(model.read_bytes())
    data[-1] ^= 1
    model.write_bytes(data)
    with pytest.raises(RunError, match="not the ones that were signed"):
        local.command("silo_agent", "model", "verify", str(model), *mine)


def check_a_forbidden_coordinator(local: LocalFederation, silo: str) -> None:
    """Whoever may edit the command line may still not send this silo elsewhere."""
    local.agents[silo].stop()
    elsewhere = ("--coordinator", "elsewhere.example:443")
    with pytest.raises(RunError, match=r"policy\.coordinators"):
        local.command(
            "silo_agent", "join", *elsewhere, "--dataset", str(local.silos[silo]),
            "--data", str(local.agent_data(silo)), "--enrol-only",
        )  # fmt: skip


def test_what_a_policy_refuses_for_good_ends_the_agent_before_anything_is_trained(
    found: Founding, tmp_path: Path
) -> None:
    local = found(silos=3)
    free, narrow, other = local.silos
    joined_under(local, free, Policy())
    refused = {
        narrow: (joined_under(local, narrow, Policy(bytes_per_day=1_000_000)), "bytes_per_day"),
        other: (joined_under(local, other, Policy(backbones=("resnet50",))), "backbones"),
    }
    local.start_run(write_plan(tmp_path / "plan.toml", rounds=1, quorum=_QUORUM))
    for silo, (agent, key) in refused.items():
        assert agent.wait(_RUN_S) == ExitCode.POLICY
        log = local.agents.pop(silo).log
        assert f"policy.{key}" in log and "training" not in log
        assert audited(local, silo, "update.sent") == []
        (line,) = audited(local, silo, "policy.refused")
        assert not line.fields["again"]
    assert audited(local, other, "model.taken") == []
    local.wait_until(lambda run: run.state == "finished", timeout_s=_RUN_S)
    check_before_the_first_upload(local, other, tmp_path / "model.safetensors")
