"""A federation trains, publishes, and gives the same models whatever crashes on the way."""

import json
from pathlib import Path

import pytest

from benchmark.collecting import collect
from benchmark.federation import LocalFederation
from benchmark.results import Results
from coordinator.export import export_model
from fedreid.files import digest_of
from fedreid.pki.signing import verify
from fedreid.v1 import admin_pb2, federation_pb2
from silo_agent.config import Folders, load_membership
from tests.federation.conftest import Founding, write_plan
from tests.history import check, read_history

pytestmark = pytest.mark.timeout(600)
_RUN_S = 300.0


def finished(run: admin_pb2.GetRunResponse) -> bool:
    """The run is over and every silo has measured its last model."""
    return run.state == "finished" and not run.awaited_evaluations


def round_is(number: int, phase: str) -> "object":
    """A condition: the given round has reached the given phase, or is past it."""
    phases = ("collecting", "aggregating", "distilling", "publishing", "published")

    def reached(run: admin_pb2.GetRunResponse) -> bool:
        if run.round.number != number:
            return run.round.number > number
        return phases.index(run.round.phase) >= phases.index(phase)

    return reached


def run_whole(local: LocalFederation, plan: Path) -> Results:
    """Start a run with every silo and wait for its end."""
    local.start_run(plan)
    for silo in local.silos:
        local.join(silo)
    local.wait_until(finished, timeout_s=_RUN_S)
    return collect(local, "harbour")


def test_a_federation_learns_and_survives_crashes_bit_by_bit(
    found: Founding, images: Path, tmp_path: Path
) -> None:
    plan = write_plan(
        tmp_path / "plan.toml", distillation={"images": str(images / "public"), "batch_size": 8}
    )
    calm = found("calm")
    results = run_whole(calm, plan)
    check_results(results)
    check_commands(calm, results)
    check_model(calm, results, tmp_path / "model.safetensors")
    calm.stop()

    stormy = found("stormy")
    stormy.start_run(plan)
    first, second = stormy.silos
    for silo in stormy.silos:
        stormy.join(silo)
    stormy.wait_until(lambda run: run.round.number == 1, timeout_s=_RUN_S)
    wait_for_line(stormy, first, "round 1: training")
    stormy.agents[first].kill()
    stormy.coordinator.kill()
    stormy.restart_coordinator()
    stormy.agents[first].start()
    stormy.wait_until(round_is(1, "distilling"), timeout_s=_RUN_S)  # type: ignore[arg-type]
    stormy.coordinator.kill()
    stormy.restart_coordinator()
    wait_for_line(stormy, second, "round 2: training")
    stormy.agents[second].kill()
    stormy.agents[second].start()
    stormy.wait_until(finished, timeout_s=_RUN_S)
    after = collect(stormy, "harbour")
    assert [r.model_digest for r in after.rounds] == [r.model_digest for r in results.rounds]
    assert [r.weights for r in after.rounds] == [r.weights for r in results.rounds]
    check(
        read_history(stormy.data, map(stormy.agent_data, stormy.silos)),
        uninterrupted={("test", r.number): r.model_digest for r in results.rounds},
    )


def check_results(results: Results) -> None:
    """Every figure that a report needs is there and plausible."""
    assert [result.number for result in results.rounds] == [1, 2]
    for result in results.rounds:
        assert len(result.participants) == 2
        assert sum(result.weights.values()) == pytest.approx(1.0)
        assert all(0 < distance <= 2 for distance in result.cosine_distances.values())
        assert result.distillation_loss_before is not None
        assert result.distillation_loss_after is not None
        assert result.upload_bytes > 2 * 40e6 and result.download_bytes > 0
    for silo in results.silos.values():
        for model in (silo.untrained, silo.standalone, silo.local, silo.global_):
            assert model is not None and model.queries == 12 and 0 <= model.map <= 1


def check_commands(local: LocalFederation, results: Results) -> None:
    """What people ask for is answered while the federation stands."""
    silo = next(iter(local.silos))
    data = str(local.agent_data(silo))
    shown = json.loads(local.command("silo_agent", "egress", "show", "--data", data, "--json"))
    assert shown["numbers"].keys() == {
        "num_images", "cosine_distance", "train_loss", "num_steps", "privacy", "run", "round",
    }  # fmt: skip
    assert not [name for name in shown["tensors"] if "classifier" in name]
    report = json.loads(local.command("silo_agent", "report", "--data", data, "--json"))
    assert {row["model"] for row in report["models"]} == {"global", "local", "standalone"}
    assert {row["of_round"] for row in report["models"]} == {2}
    evaluated = json.loads(local.command("silo_agent", "evaluate", "--data", data, "--json"))
    assert evaluated["model"]["published_digest"] == results.rounds[-1].model_digest
    assert evaluated["map"] == pytest.approx(
        next(row["map"] for row in report["models"] if row["model"] == "global")
    )
    status = json.loads(local.command("silo_agent", "status", "--data", data, "--json"))
    assert status["silo"] == silo and status["last_round"]["round"] == 2
    admin = ("--data", str(local.data), "--json")
    rounds = json.loads(local.command("coordinator", "round", "list", *admin))
    assert [r["model_digest"] for r in rounds] == [r.model_digest for r in results.rounds]
    models = json.loads(local.command("coordinator", "model", "list", *admin))
    assert [m["round"] for m in models] == ["2", "1", "0"]
    silos = json.loads(local.command("coordinator", "silo", "list", *admin))
    assert [s["name"] for s in silos] == sorted(local.silos)


def check_model(local: LocalFederation, results: Results, out: Path) -> None:
    """An exported model is the published one, and its release is signed."""
    release = export_model(local.data, None, "", out)
    assert release.model_digest == digest_of(out) == results.rounds[-1].model_digest
    signed = federation_pb2.SignedRelease.FromString(Path(f"{out}.release").read_bytes())
    membership = load_membership(Folders(local.agent_data(next(iter(local.silos)))))
    verify(membership.model_key, signed.release, signed.signature)


def wait_for_line(local: LocalFederation, silo: str, line: str) -> None:
    """Wait until an agent has said a line."""
    local.wait_until(lambda run: line in local.agents[silo].log, timeout_s=_RUN_S)
