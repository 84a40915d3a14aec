"""A silo that sends harm in good form: flagged, kept out, gated; and a model is taken back."""

import asyncio
import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmark.federation import LocalFederation
from fedreid.contract import TrainTask, WaitTask
from fedreid.errors import RunError
from fedreid.v1 import admin_pb2
from tests.federation.conftest import Founding, write_plan
from tests.federation.rogue import Rogue, Tensors, announcement, chunks_of, payload_of
from tests.federation.test_learning import finished

pytestmark = pytest.mark.timeout(300)
_SMALL = {"name": "mobilenet_v3_small", "height_px": 64, "width_px": 32}
_RUN_S = 120.0


async def deliver(rogue: Rogue, task: TrainTask, tensors: Tensors) -> None:
    """Announce and send tensors as an agent would."""
    opening = await rogue.open(task, announcement(task, tensors))
    await rogue.send(opening.upload_id, chunks_of(payload_of(tensors)))


def changed(base: Tensors, seed: int, factor: float = 1.0) -> Tensors:
    """The base with a small change of a silo's own in all that is learned."""
    random = np.random.default_rng(seed)
    step = np.float32(factor * 1e-3)
    learned = [name for name in base if "running" not in name]
    noise = {n: random.normal(size=base[n].shape).astype(np.float32) for n in learned}
    return base | {name: base[name] + step * noise[name] for name in learned}


def rounds_of(local: LocalFederation) -> list[admin_pb2.RoundSummary]:
    with local.admin() as admin:
        return list(admin.ListRounds(admin_pb2.ListRoundsRequest()).rounds)


def audited(local: LocalFederation, event: str) -> list[dict[str, object]]:
    """The lines of the coordinator's audit log of one kind, after its chain has been checked."""
    local.command("coordinator", "audit", "verify", "--data", str(local.data))
    shown = local.command(
        "coordinator", "audit", "show", "--data", str(local.data), "--last", "0", "--json"
    )
    return [line["fields"] for line in json.loads(shown) if line["event"] == event]


def joined(local: LocalFederation) -> list[Rogue]:
    """Every silo of a federation, under the test's control."""
    rogues = [Rogue(local, silo) for silo in local.silos]
    for rogue in rogues:
        asyncio.run(rogue.enrol())
    return rogues


async def two_rounds(local: LocalFederation, plan: Path, rogues: list[Rogue]) -> None:
    """All take part in two rounds, the last of them with its change turned round tenfold."""
    async with rogues[0].connected(), rogues[1].connected(), rogues[2].connected():
        starting = asyncio.create_task(asyncio.to_thread(local.start_run, plan))
        for after in (0, 1):  # all ask for work before the run starts, so all are invited
            tasks = await asyncio.gather(*(rogue.next_round(after) for rogue in rogues))
            for number, (rogue, task) in enumerate(zip(rogues, tasks, strict=True)):
                factor = -10.0 if number == 2 else 1.0
                update = changed(await rogue.base(task), 10 * after + number, factor)
                await deliver(rogue, task, update)
        await starting
        await rogues[0].next_round(2)
        told = await rogues[2].next_task(0.0)
        assert isinstance(told, WaitTask)
        assert re.search(r"is quarantined.*2 rounds in a row.*outlier", told.reason)


def test_a_silo_whose_updates_are_outliers_is_flagged_then_kept_out(
    found: Founding, tmp_path: Path
) -> None:
    local = found(silos=3)
    rogues = joined(local)
    plan = write_plan(
        tmp_path / "plan.toml",
        rounds=5,
        backbone=_SMALL,
        validation={"quarantine_rounds": 2},
        quorum={"min_silos": 2, "deadline_s": 120.0, "phase_deadline_s": 60.0},
    )
    asyncio.run(two_rounds(local, plan, rogues))
    local.command("coordinator", "run", "stop", "--data", str(local.data))
    good, fine, bad = local.silos
    first, second = rounds_of(local)[:2]
    assert {p.silo: list(p.flags) for p in first.participants} == {
        good: [], fine: [], bad: ["clipped", "outlier"],
    }  # fmt: skip
    weights = {p.silo: p.weight for p in first.participants}
    assert weights == {good: 0.5, fine: 0.5, bad: 0.0}
    norms = {p.silo: p.update_norm for p in first.participants}
    assert norms[bad] == pytest.approx(10 * norms[good], rel=0.01)
    assert second.phase == "published"
    assert [p.silo for p in second.participants] == [good, fine]  # without what made it too many
    with local.admin() as admin:
        silos = {s.name: s for s in admin.ListSilos(admin_pb2.ListSilosRequest()).silos}
    assert {name: s.state for name, s in silos.items()} == {
        good: "active", fine: "active", bad: "quarantined",
    }  # fmt: skip
    assert "2 rounds in a row" in silos[bad].reason
    assert [line["silo"] for line in audited(local, "update.flagged")] == [bad]
    assert [line["silo"] for line in audited(local, "silo.quarantined")] == [bad]


async def three_rounds(rogue: Rogue) -> None:
    """Good, then blind, then good."""
    async with rogue.connected():
        for after in (0, 1, 2):
            task = await rogue.next_round(after)
            tensors = await rogue.base(task)
            if after == 1:
                first = next(name for name in sorted(tensors) if tensors[name].ndim == 4)
                blind = {n for n in tensors if "running" not in n and n[:12] == first[:12]}
                tensors = {n: v * np.float32(n not in blind) for n, v in tensors.items()}
            await deliver(rogue, task, tensors)


def test_a_model_far_below_the_best_is_not_published_and_the_run_goes_on_from_the_last(
    found: Founding, tmp_path: Path, silo_folders: dict[str, Path]
) -> None:
    local = found(silos=1)
    (rogue,) = joined(local)
    (folder,) = local.silos.values()
    local.start_run(
        write_plan(
            tmp_path / "plan.toml",
            rounds=2,
            backbone=_SMALL,
            evaluation={"folder": str(folder), "gate_drop": 1.0},
            quorum={"min_silos": 1, "deadline_s": 120.0, "phase_deadline_s": 60.0},
        )
    )
    asyncio.run(three_rounds(rogue))
    local.wait_until(lambda run: run.state == "finished", timeout_s=_RUN_S)
    good, blind, again = rounds_of(local)
    assert [state.phase for state in (good, blind, again)] == ["published", "failed", "published"]
    assert not good.HasField("gate_best_map") and good.gate_map > blind.gate_map + 0.01
    assert blind.gate_best_map == good.gate_map and not blind.model_digest
    assert f"{100 * blind.gate_map:.1f}" in blind.reason
    assert f"{100 * good.gate_map:.1f}" in blind.reason
    assert again.base_digest == good.model_digest


def test_an_earlier_model_is_published_again_and_agents_take_it(
    found: Founding, tmp_path: Path
) -> None:
    local = found()
    for silo in local.silos:
        local.join_without_training(silo)
    local.start_run(write_plan(tmp_path / "plan.toml", rounds=8, backbone=_SMALL))
    local.wait_until(lambda run: run.rounds_published >= 3, timeout_s=_RUN_S)
    with local.admin() as admin:  # a command would take as long to start as some rounds
        admin.RollBackModel(admin_pb2.RollBackModelRequest(version=2))
    local.wait_until(finished, timeout_s=_RUN_S)
    with local.admin() as admin:
        models = {m.version: m for m in admin.ListModels(admin_pb2.ListModelsRequest()).models}
    (line,) = audited(local, "model.rolled_back")
    assert line["of_version"] == 2 and line["model_digest"] == models[2].model_digest
    again = models[int(str(line["version"]))]
    assert (again.model_digest, again.round) == (models[2].model_digest, models[2].round)
    rounds = rounds_of(local)
    given_up = next((r for r in rounds if "went back to model 2" in r.reason), None)
    bases = [r.base_digest for r in rounds if r.phase == "published"]
    assert bases.count(models[2].model_digest) == 2  # once as it was new, once put back
    assert [r for r in rounds if r.phase == "failed" and r is not given_up] == []
    assert sorted(models) == list(range(1, len(models) + 1))
    assert len([r for r in rounds if r.phase == "published"]) == 8


def test_a_model_that_is_unknown_or_the_newest_is_not_gone_back_to(
    found: Founding, tmp_path: Path
) -> None:
    local = found(silos=1)
    rollback = ("coordinator", "model", "rollback")
    data = ("--data", str(local.data))
    with pytest.raises(RunError, match="no model to go back to"):
        local.command(*rollback, "1", *data)
    (silo,) = local.silos
    local.join_without_training(silo)
    quorum = {"min_silos": 1, "deadline_s": 120.0, "phase_deadline_s": 60.0}
    local.start_run(write_plan(tmp_path / "plan.toml", rounds=2, backbone=_SMALL, quorum=quorum))
    local.wait_until(finished, timeout_s=_RUN_S)
    with pytest.raises(RunError, match="has no model 9"):
        local.command(*rollback, "9", *data)
    with pytest.raises(RunError, match="the newest one already"):
        local.command(*rollback, "3", *data)
    local.command(*rollback, "1", *data)
    with local.admin() as admin:
        newest = admin.ListModels(admin_pb2.ListModelsRequest()).models[0]
        run = admin.GetRun(admin_pb2.GetRunRequest())
    assert (newest.version, newest.round) == (4, 0)
    assert run.state == "finished" and run.model_digest == newest.model_digest
