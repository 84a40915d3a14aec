"""Does a coordinator that was set back publish beyond what its silos have taken, and no further?"""

from pathlib import Path
from typing import Any

import pytest

from coordinator.rounds.journal import Journal
from fedreid.audit import read_audit
from fedreid.limits import VERSIONS_AHEAD
from fedreid.v1 import federation_pb2 as pb
from fedreid.v1 import tensors_pb2
from tests.coordinator.collecting import Collecting
from tests.coordinator.trust.assembled import Assembled, lived

OTHER = "c" * 64


@pytest.fixture
def coordinator(tmp_path: Path) -> Collecting:
    """A coordinator whose newest model has version 1."""
    return Collecting(tmp_path / "coordinator")


async def version(coordinator: Collecting, stub: Any) -> int:
    """Of the release with which the base model is sent."""
    request = pb.FetchModelRequest(
        model_digest=coordinator.digest, encoding=tensors_pb2.ENCODING_FP32
    )
    async for part in stub.FetchModel(request):
        return int(pb.Release.FromString(part.release.release).version)
    raise AssertionError("nothing was sent")


async def says(stub: Any, newest: int, digest: str = OTHER) -> None:
    """The silo asks for a task, and says what it has taken."""
    await stub.NextTask(pb.NextTaskRequest(newest_version=newest, newest_digest=digest))


def test_a_later_version_is_gone_beyond_and_written_down(coordinator: Collecting) -> None:
    async def story(_: Assembled) -> None:
        async with coordinator.silo() as stub:
            await says(stub, 41)
            assert await version(coordinator, stub) == 42

    lived(coordinator, story)
    (line,) = (each for each in read_audit(coordinator.folders.audit) if "caught" in each.event)
    assert (line.fields["silo"], line.fields["silo_version"], line.fields["version"]) == (
        "north", 41, 42,
    )  # fmt: skip


def test_the_same_version_of_another_model_is_gone_beyond(coordinator: Collecting) -> None:
    async def story(_: Assembled) -> None:
        async with coordinator.silo() as stub:
            await says(stub, 1)
            assert await version(coordinator, stub) == 2

    lived(coordinator, story)


def test_a_silo_that_has_what_was_published_changes_nothing(coordinator: Collecting) -> None:
    async def story(_: Assembled) -> None:
        async with coordinator.silo() as stub:
            await says(stub, 0)
            await says(stub, 1, coordinator.digest)
            await says(stub, 41, "no digest")
            assert await version(coordinator, stub) == 1

    lived(coordinator, story)


def test_a_silo_can_not_use_up_the_versions(coordinator: Collecting) -> None:
    async def story(_: Assembled) -> None:
        async with coordinator.silo() as stub:
            for too_far in (2 + VERSIONS_AHEAD, 2**63, 2**64 - 1):
                await says(stub, too_far)
            assert await version(coordinator, stub) == 1
            await says(stub, 41)
            await says(stub, 99)  # once is enough for one that was ahead in good faith
            assert await version(coordinator, stub) == 42

    lived(coordinator, story)
    journal = Journal(coordinator.folders.journal)
    assert [row.version for row in journal.models()] == [42, 1]
    journal.close()
