"""Is what an agent does at the moment told beside it, and nothing made up when it is silent?"""

import asyncio
from pathlib import Path

from fedreid.limits import STALE_S
from silo_agent.config import Folders
from silo_agent.doing import Doing, Notes, doing_now
from tests.parties import FakeClock


async def kept_for_a_moment(notes: Notes) -> None:
    """Let the notes be written once, and then end as the agent does."""
    task = asyncio.create_task(notes.keep())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_an_agent_that_has_ended_says_so(tmp_path: Path, clock: FakeClock) -> None:
    folders, notes = Folders(tmp_path), Notes(Folders(tmp_path), clock)
    assert doing_now(folders) is None
    notes.note("waiting for the coordinator since 2027", 0.0)
    asyncio.run(kept_for_a_moment(notes))
    found = doing_now(folders)
    assert found == Doing(doing="", share=0.0, at_s=clock.now)
    assert found.silent(clock.now)
    assert folders.doing.stat().st_mode & 0o077 == 0


def test_a_shorter_note_leaves_nothing_of_a_longer_one(tmp_path: Path, clock: FakeClock) -> None:
    async def noted() -> list[Doing | None]:
        notes, found = Notes(Folders(tmp_path), clock), []
        for text in ("é" * 1000, "training"):
            notes.note(text, 0.5)
            task = asyncio.create_task(notes.keep())
            await asyncio.sleep(0)
            found.append(doing_now(Folders(tmp_path)))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return found

    long, short = asyncio.run(noted())
    assert long is not None and set(long.doing) == {"é"}
    assert short == Doing(doing="training", share=0.5, at_s=clock.now)
    assert not short.silent(clock.now + STALE_S)
    assert short.silent(clock.now + STALE_S + 0.1)


def test_a_note_that_cannot_be_written_or_read_disturbs_nobody(
    tmp_path: Path, clock: FakeClock
) -> None:
    folders = Folders(tmp_path)
    folders.doing.mkdir()
    asyncio.run(kept_for_a_moment(Notes(folders, clock)))
    assert doing_now(folders) is None
    folders.doing.rmdir()
    folders.doing.write_bytes(b'{"doing": "trai')
    assert doing_now(folders) is None
