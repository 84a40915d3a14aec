"""A silo that sends nonsense is refused and counted, and the others' rounds go on."""

import asyncio
import re
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmark.federation import LocalFederation
from fedreid.contract import TrainTask
from fedreid.errors import ConnectionFailed, Refusal, UpdateRefused
from fedreid.v1 import admin_pb2
from tests.federation.conftest import Founding, write_plan
from tests.federation.rogue import Rogue, Tensors, announcement, chunks_of, payload_of

pytestmark = pytest.mark.timeout(300)


def _first_weight(tensors: Tensors) -> str:
    return next(name for name in sorted(tensors) if tensors[name].ndim == 4)


def _spoilt(value: float) -> Callable[[Tensors], Tensors]:
    def spoil(tensors: Tensors) -> Tensors:
        name = _first_weight(tensors)
        values = tensors[name].copy()
        values.flat[3] = value
        return {**tensors, name: values}

    return spoil


def _reshaped(tensors: Tensors) -> Tensors:
    name = _first_weight(tensors)
    return {**tensors, name: tensors[name].reshape(-1)}


def _lacking(tensors: Tensors) -> Tensors:
    return {name: values for name, values in tensors.items() if name != _first_weight(tensors)}


def _with_classifier(tensors: Tensors) -> Tensors:
    return {**tensors, "classifier.weight": np.zeros((12, 512), dtype=np.float32)}


def _negative_variance(tensors: Tensors) -> Tensors:
    name = next(name for name in sorted(tensors) if name.endswith("running_var"))
    return {**tensors, name: -np.ones_like(tensors[name])}


def _far_away(tensors: Tensors) -> Tensors:
    name = _first_weight(tensors)
    return {**tensors, name: tensors[name] + np.float32(1e5)}


CONTENT: list[tuple[Refusal, Callable[[Tensors], Tensors]]] = [
    (Refusal.NOT_FINITE, _spoilt(float("nan"))),
    (Refusal.NOT_FINITE, _spoilt(float("inf"))),
    (Refusal.NORM, _spoilt(1e38)),
    (Refusal.NORM, _far_away),
    (Refusal.TENSOR_SHAPE, _reshaped),
    (Refusal.TENSOR_NAMES, _lacking),
    (Refusal.TENSOR_NAMES, _with_classifier),
    (Refusal.NEGATIVE_VARIANCE, _negative_variance),
]
NUMBERS: list[tuple[int, float]] = [
    (100, -5.0),
    (100, float("inf")),
    (100, float("nan")),
    (100, 1e30),
    (0, 0.5),
    (10**18, 0.5),
]


async def deliver(rogue: Rogue, task: TrainTask, tensors: Tensors) -> None:
    """Announce and send tensors as an agent would."""
    opening = await rogue.open(task, announcement(task, tensors))
    await rogue.send(opening.upload_id, chunks_of(payload_of(tensors)))


async def misbehave(rogue: Rogue) -> None:
    """Send every kind of nonsense, one in each round."""
    async with rogue.connected():
        done = 0
        for reason, spoil in CONTENT:
            task = await rogue.next_round(done)
            with pytest.raises(UpdateRefused) as refused:
                await deliver(rogue, task, spoil(await rogue.base(task)))
            assert refused.value.reason is reason
            done = task.round
        for images, distance in NUMBERS:
            task = await rogue.next_round(done)
            wrong = announcement(
                task, await rogue.base(task), num_images=images, cosine_distance=distance
            )
            with pytest.raises(UpdateRefused) as refused:
                await rogue.open(task, wrong)
            assert refused.value.reason is Refusal.WEIGHT
            done = task.round
        await break_the_line(rogue, await rogue.next_round(done))


async def break_the_line(rogue: Rogue, task: TrainTask) -> None:
    """What a broken line does is refused too, and does not spend the silo's turn."""
    tensors = await rogue.base(task)
    request = announcement(task, tensors)
    chunks = chunks_of(payload_of(tensors))
    with pytest.raises(ConnectionFailed, match="not opened"):
        await rogue.send("0" * 32, [])
    opening = await rogue.open(task, request)
    wrong_sum = chunks_of(payload_of(tensors))[:1]
    wrong_sum[0].crc32c ^= 1
    for sent, reason in (
        (wrong_sum, Refusal.CHUNK),
        (chunks[1:2], Refusal.CHUNK),
        ([*chunks[:3], chunks[4]], Refusal.CHUNK),
    ):
        with pytest.raises(UpdateRefused) as refused:
            await rogue.send(opening.upload_id, sent)
        assert refused.value.reason is reason
    payload = payload_of(tensors)
    for whole, count in ((payload, 1), (payload + bytes(16), None)):
        opening = await rogue.open(task, request)
        assert 0 < opening.offset < len(payload)
        rest = chunks_of(whole, start=opening.offset)
        with pytest.raises(UpdateRefused) as refused:
            await rogue.send(opening.upload_id, rest[:count])
        assert refused.value.reason is Refusal.BYTE_COUNT
    await check_lies(rogue, task, tensors)
    await deliver(rogue, task, _spoilt(float("nan"))(tensors))


async def check_lies(rogue: Rogue, task: TrainTask, tensors: Tensors) -> None:
    """A manifest that contradicts itself or the payload is refused."""
    lie = announcement(task, tensors)
    lie.manifest.byte_count += 4
    with pytest.raises(UpdateRefused) as refused:
        await rogue.open(task, lie)
    assert refused.value.reason is Refusal.BYTE_COUNT
    lie = announcement(task, tensors)
    lie.manifest.payload_digest = "0" * 64
    opening = await rogue.open(task, lie)
    with pytest.raises(UpdateRefused) as refused:
        await rogue.send(opening.upload_id, chunks_of(payload_of(tensors)))
    assert refused.value.reason is Refusal.DIGEST


def test_nonsense_is_refused_and_the_others_go_on(found: Founding, tmp_path: Path) -> None:
    local = found()
    honest, bad = local.silos
    plan = write_plan(
        tmp_path / "plan.toml",
        rounds=1000,
        backbone={"name": "mobilenet_v3_small", "height_px": 64, "width_px": 32},
        quorum={"min_silos": 1, "deadline_s": 120.0, "phase_deadline_s": 60.0},
    )
    rogue = Rogue(local, bad)
    asyncio.run(rogue.enrol())
    agent = local.join_without_training(honest)
    local.wait_until(lambda run: "connected" in agent.log, timeout_s=60.0)
    local.start_run(plan)
    with pytest.raises(UpdateRefused) as refused:
        asyncio.run(misbehave(rogue))
    assert refused.value.reason is Refusal.NOT_FINITE  # the last round's, on purpose
    with local.admin() as admin:
        last = admin.GetRun(admin_pb2.GetRunRequest()).round.number
    local.wait_until(lambda run: run.round.number > last, timeout_s=60.0)
    local.command("coordinator", "run", "stop", "--data", str(local.data))
    check_rounds(local, honest, bad)
    counted = rejections(local)
    assert counted["not_finite"] == 3 and counted["weight"] == len(NUMBERS)
    assert counted["tensor_names"] == 2 and counted["tensor_shape"] == 1
    assert counted["byte_count"] == 3 and counted["digest"] == 1 and counted["chunk"] == 3


def check_rounds(local: LocalFederation, honest: str, bad: str) -> None:
    """Every round was published from the honest silo alone."""
    with local.admin() as admin:
        rounds = admin.ListRounds(admin_pb2.ListRoundsRequest()).rounds
    published = [state for state in rounds if state.phase == "published"]
    shared = [state for state in published if bad in state.invited]
    assert len(shared) == len(CONTENT) + len(NUMBERS) + 1
    for state in published:
        assert [part.silo for part in state.participants] == [honest]
    assert [s.reason for s in rounds[:-1] if s.phase != "published"] == []  # the last was stopped


def rejections(local: LocalFederation) -> dict[str, int]:
    """The rejection counter by reason, as Prometheus would read it."""
    found = re.search(r"health and metrics on port (\d+)", local.coordinator.log)
    assert found is not None
    with urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/metrics") as answer:
        text = answer.read().decode()
    pattern = r'fedreid_updates_rejected_total\{reason="(\w+)"\} (\S+)'
    return {reason: int(float(count)) for reason, count in re.findall(pattern, text)}
