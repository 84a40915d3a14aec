"""Does an update count once, and only in its round, however its calls are repeated or reordered?

A client with a true certificate makes the agent's calls twice, late, or after newer ones.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from benchmark.federation import LocalFederation
from coordinator.folders import Folders
from fedreid.audit import read_audit
from fedreid.contract import TrainTask
from fedreid.errors import ConnectionFailed, LimitReached
from fedreid.v1 import admin_pb2
from fedreid.v1 import federation_pb2 as pb
from tests.federation.conftest import Founding, write_plan
from tests.federation.rogue import Rogue, Tensors, announcement, chunks_of, payload_of
from tests.federation.test_network import BACKBONE, QUORUM
from tests.history import check, read_history

pytestmark = pytest.mark.timeout(300)
SEND, ACCEPTED, STALE = pb.UPLOAD_STATE_SEND, pb.UPLOAD_STATE_ACCEPTED, pb.UPLOAD_STATE_STALE


def trained(base: Tensors, step: float) -> Tensors:
    """An update: a small change of what is learned, its size that of ``step``."""
    random = np.random.default_rng(int(step * 1e6))
    return {
        name: values
        if "running" in name
        else values + np.float32(step) * random.normal(size=values.shape).astype(np.float32)
        for name, values in base.items()
    }


class Repeater(Rogue):
    """A silo that makes calls as a broken network would."""

    async def opened(self, task: TrainTask, tensors: Tensors) -> pb.OpenUploadResponse:
        return await self.open(task, announcement(task, tensors))

    async def delivered(self, task: TrainTask, tensors: Tensors) -> "pb.UploadState.ValueType":
        opening = await self.opened(task, tensors)
        answer = await self.send(opening.upload_id, chunks_of(payload_of(tensors)))
        return answer.state


def rounds(local: LocalFederation) -> list[admin_pb2.RoundSummary]:
    with local.admin() as admin:
        return list(admin.ListRounds(admin_pb2.ListRoundsRequest()).rounds)


async def the_same_twice(first: Repeater, second: Repeater) -> None:
    """Round 1: every call twice; the other silo ends the round."""
    task = await first.next_round(0)
    update = trained(await first.base(task), 1e-3)
    one, other = await first.opened(task, update), await first.opened(task, update)
    assert one == other and (one.state, one.offset) == (SEND, 0)
    chunks = chunks_of(payload_of(update))
    answer = await first.send(one.upload_id, chunks)
    again = await first.send(one.upload_id, chunks)
    assert (answer.state, again.state) == (ACCEPTED, ACCEPTED)
    assert (await first.opened(task, update)).state == ACCEPTED
    assert await second.delivered(task, trained(await second.base(task), 2e-3)) == ACCEPTED


async def an_old_one_after_a_new_one(first: Repeater, second: Repeater) -> None:
    """Round 2: calls of round 1, and of an earlier training, come in between."""
    old, task = await first.next_round(0), await first.next_round(1)
    assert (old.round, task.round) == (2, 2)
    base = await first.base(task)
    late = announcement(task, trained(base, 1e-3))
    late.round, late.base_digest = 1, "0" * 64
    assert (await first.open(task, late)).state == STALE
    earlier, newer = trained(base, 3e-3), trained(base, 4e-3)
    before = await first.opened(task, earlier)
    after = await first.opened(task, newer)
    assert before.upload_id != after.upload_id
    with pytest.raises(ConnectionFailed, match="not opened"):
        await first.send(before.upload_id, [])
    await first.send(after.upload_id, chunks_of(payload_of(newer)))
    assert (await first.opened(task, earlier)).state == ACCEPTED  # one counts, and it is there
    with pytest.raises(ConnectionFailed, match="not opened"):
        await first.send(before.upload_id, [])
    assert await second.delivered(task, trained(await second.base(task), 2e-3)) == ACCEPTED


async def both_at_once(first: Repeater, second: Repeater) -> None:
    """Round 3: a retry overtakes a call that still hangs in the network."""
    task = await first.next_round(2)
    update = trained(await first.base(task), 5e-3)
    opening = await first.opened(task, update)
    chunks = chunks_of(payload_of(update))
    hanging = asyncio.Event()

    async def slowly() -> pb.SendUploadResponse:
        async def messages() -> AsyncIterator[pb.SendUploadRequest]:
            yield pb.SendUploadRequest(upload_id=opening.upload_id, chunk=chunks[0])
            await hanging.wait()
            for chunk in chunks[1:]:
                yield pb.SendUploadRequest(chunk=chunk)

        return await first.stub.SendUpload(messages())

    sending = asyncio.create_task(slowly())
    while not (await first.opened(task, update)).offset:
        pass
    with pytest.raises(LimitReached, match="under way"):
        await first.send(opening.upload_id, [])
    hanging.set()
    assert (await sending).state == ACCEPTED
    assert await second.delivered(task, trained(await second.base(task), 2e-3)) == ACCEPTED


async def after_the_end(first: Repeater) -> None:
    """Round 4 is on: what belongs to round 3 comes once more, whole."""
    task = await first.next_round(3)
    update = announcement(task, trained(await first.base(task), 1e-3))
    update.round = 3
    for _ in range(2):
        assert (await first.open(task, update)).state == STALE


def test_repeated_and_reordered_calls_change_nothing(found: Founding, tmp_path: Path) -> None:
    local = found()
    silos = [Repeater(local, silo) for silo in local.silos]
    for silo in silos:
        asyncio.run(silo.enrol())
    local.start_run(write_plan(tmp_path / "plan.toml", rounds=5, backbone=BACKBONE, quorum=QUORUM))

    async def story() -> None:
        first, second = silos
        async with first.connected(), second.connected():
            await the_same_twice(first, second)
            await an_old_one_after_a_new_one(first, second)
            await both_at_once(first, second)
            await after_the_end(first)

    asyncio.run(story())
    found_rounds = rounds(local)
    assert [state.phase for state in found_rounds[:3]] == ["published"] * 3
    for state in found_rounds[:3]:
        assert [part.silo for part in state.participants] == sorted(local.silos)
    lines = list(read_audit(Folders(local.data).audit))
    assert sum(line.event == "update.accepted" for line in lines) == 6
    late = [(x.fields["silo"], x.fields["round"]) for x in lines if x.event == "update.late"]
    assert late == [(silos[0].name, 1), (silos[0].name, 3)]
    check(read_history(local.data))
    assert "Traceback" not in local.coordinator.log
