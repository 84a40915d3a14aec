"""Does a worker hand jobs to its child, and does a child that dies cost one job only?"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from fedreid import errors
from fedreid.errors import FedreidError, JobFailed
from fedreid.jobs import Progress, Worker
from fedreid.limits import JOB_LINE_BYTES, PROGRESS_S
from tests.fedreid.job_child import (
    Add,
    Block,
    Crash,
    Die,
    Environment,
    Flood,
    Learn,
    Print,
    Refuse,
    Sum,
    Text,
)

MODULE = "tests.fedreid.job_child"
Story = Callable[[Worker], Awaitable[None]]


def deaf(progress: Progress) -> None:
    """Nobody listens."""


@asynccontextmanager
async def a_worker() -> AsyncIterator[Worker]:
    worker = Worker(MODULE)
    try:
        yield worker
    finally:
        await worker.close()


def told(story: Story) -> None:
    """Run a story with a worker of its own; it ends in time or fails."""

    async def run() -> None:
        async with a_worker() as worker, asyncio.timeout(20):
            await story(worker)

    asyncio.run(run())


async def adds_up(worker: Worker) -> int:
    """The worker can do a job; gives its child's process id."""
    report = await worker.run(Add(numbers=(1, 2)), Sum, deaf)
    assert report.total == 3
    return report.pid


def test_what_a_job_has_freed_goes_back_to_the_machine() -> None:
    async def story(worker: Worker) -> None:
        first = await worker.run(Learn(mib=200), Sum, deaf)
        second = await worker.run(Learn(mib=1), Sum, deaf)
        assert second.total < first.total + 100

    told(story)


def test_a_job_gives_its_report_and_tells_how_far_it_is() -> None:
    async def story(worker: Worker) -> None:
        heard: list[Progress] = []
        report = await worker.run(Add(numbers=(3, 4, 5)), Sum, heard.append)
        assert report.total == 12
        ends = [(p.phase, p.done, p.total, p.loss) for p in (heard[0], heard[-1])]
        assert ends == [("adding", 1, 3, 0.5), ("adding", 3, 3, 0.5)]

    told(story)


def test_what_goes_on_fast_is_told_a_few_times_only() -> None:
    async def story(worker: Worker) -> None:
        heard: list[Progress] = []
        began_s = time.monotonic()
        await worker.run(Add(numbers=(1,) * 2000), Sum, heard.append)
        most = 2 + (time.monotonic() - began_s) / PROGRESS_S
        assert heard[0].done == 1 and heard[-1].done == 2000 and len(heard) <= most

    told(story)


def test_one_child_serves_many_jobs_and_none_is_there_before_the_first() -> None:
    async def story(worker: Worker) -> None:
        assert worker.pid is None
        assert await adds_up(worker) == await adds_up(worker) == worker.pid

    told(story)


def test_jobs_asked_for_together_are_done_one_after_the_other() -> None:
    async def story(worker: Worker) -> None:
        jobs = [worker.run(Add(numbers=(n,) * 50), Sum, deaf) for n in range(5)]
        assert [report.total for report in await asyncio.gather(*jobs)] == [0, 50, 100, 150, 200]

    told(story)


@pytest.mark.parametrize(
    "kind", ["DatasetError", "StorageError", "UsageError", "PlanRefused", "RunError", "JobFailed"]
)
def test_a_refusal_keeps_its_type_and_words_and_the_child_lives_on(kind: str) -> None:
    async def story(worker: Worker) -> None:
        pid = await adds_up(worker)
        with pytest.raises(FedreidError) as refused:
            await worker.run(Refuse(kind=kind), Sum, deaf)
        assert type(refused.value) is getattr(errors, kind)
        assert refused.value.what == "It is refused"
        assert refused.value.why == "the cause"
        assert refused.value.next_step == "The step."
        assert await adds_up(worker) == pid

    told(story)


def test_a_child_that_does_not_survive_a_refusal_is_ended_before_it_is_told() -> None:
    async def story() -> None:
        worker = Worker(MODULE, survives_refusal=False)
        try:
            pid = await adds_up(worker)
            with pytest.raises(errors.DatasetError):
                await worker.run(Refuse(kind="DatasetError"), Sum, deaf)
            assert not Path(f"/proc/{pid}").exists()
            assert await adds_up(worker) != pid
        finally:
            await worker.close()

    asyncio.run(story())


def test_a_child_that_crashes_fails_the_job_with_its_last_words() -> None:
    async def story(worker: Worker) -> None:
        with pytest.raises(JobFailed, match="exit code 1") as failed:
            await worker.run(Crash(words="index out of range"), Sum, deaf)
        assert failed.value.why == "RuntimeError: index out of range"
        await adds_up(worker)

    told(story)


def test_a_child_that_is_killed_fails_the_job_and_the_next_one_works() -> None:
    async def story(worker: Worker) -> None:
        first = await adds_up(worker)
        with pytest.raises(JobFailed, match="SIGKILL") as failed:
            await worker.run(Die(), Sum, deaf)
        assert "memory" in failed.value.why
        assert await adds_up(worker) != first

    told(story)


def test_a_child_that_is_killed_in_the_middle_of_a_job_fails_it() -> None:
    async def story(worker: Worker) -> None:
        def kill(progress: Progress) -> None:
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)

        with pytest.raises(JobFailed, match="SIGKILL"):
            await worker.run(Block(), Sum, kill)
        await adds_up(worker)

    told(story)


def test_a_child_that_is_killed_between_two_jobs_fails_no_more_than_the_next() -> None:
    async def story(worker: Worker) -> None:
        pid = await adds_up(worker)
        os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):  # asyncio's own thread may be faster
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        # dead, and the event loop has not heard of it: the job is written into a closed pipe
        with contextlib.suppress(JobFailed):
            await adds_up(worker)
        await adds_up(worker)

    told(story)


def test_a_child_that_is_killed_while_a_long_job_is_written_to_it_fails_the_job() -> None:
    async def story(worker: Worker) -> None:
        pid = await adds_up(worker)
        os.kill(pid, signal.SIGSTOP)
        long = Add(numbers=(1,) * 200_000)  # more than a pipe holds
        job = asyncio.create_task(worker.run(long, Sum, deaf))
        await asyncio.sleep(0)  # let it begin to write
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(JobFailed):
            await job
        await adds_up(worker)

    told(story)


def test_a_process_that_outlives_the_child_with_its_pipes_holds_nobody_up(tmp_path: Path) -> None:
    note = tmp_path / "heir"

    async def story(worker: Worker) -> None:
        job = asyncio.create_task(worker.run(Die(heir=str(note)), Sum, deaf))
        done, _ = await asyncio.wait({job}, timeout=4)
        os.kill(int(note.read_text()), signal.SIGKILL)
        with pytest.raises(JobFailed, match="SIGKILL"):
            await job
        assert job in done

    told(story)


def test_what_libraries_print_does_not_break_the_protocol() -> None:
    async def story(worker: Worker) -> None:
        assert (await worker.run(Print(), Sum, deaf)).total == 1
        await adds_up(worker)

    told(story)


def test_a_report_that_is_too_long_fails_the_job_and_the_next_one_works() -> None:
    async def story(worker: Worker) -> None:
        with pytest.raises(JobFailed):
            await worker.run(Flood(letters=3 * JOB_LINE_BYTES), Text, deaf)
        await adds_up(worker)

    told(story)


def test_a_report_of_another_kind_fails_the_job_and_the_next_one_works() -> None:
    async def story(worker: Worker) -> None:
        with pytest.raises(JobFailed):
            await worker.run(Flood(letters=1), Sum, deaf)
        await adds_up(worker)

    told(story)


def test_a_listener_that_fails_leaves_no_line_behind_for_the_next_job() -> None:
    async def story(worker: Worker) -> None:
        def fails(progress: Progress) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await worker.run(Add(numbers=(100, 200, 300)), Sum, fails)
        await adds_up(worker)

    told(story)


def test_a_cancelled_job_ends_its_child_and_the_next_one_works() -> None:
    async def story(worker: Worker) -> None:
        begun = asyncio.Event()
        job = asyncio.create_task(worker.run(Block(), Sum, lambda progress: begun.set()))
        await begun.wait()
        pid = worker.pid
        assert pid is not None
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        assert not Path(f"/proc/{pid}").exists()
        assert await adds_up(worker) != pid

    told(story)


def test_closing_ends_the_child_and_closing_again_is_harmless() -> None:
    async def story(worker: Worker) -> None:
        pid = await adds_up(worker)
        await worker.close()
        assert not Path(f"/proc/{pid}").exists()
        await worker.close()

    told(story)


def test_a_child_ends_by_itself_when_its_parent_is_gone() -> None:
    async def run() -> None:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            MODULE,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
        )
        assert child.stdin is not None
        child.stdin.close()
        async with asyncio.timeout(20):
            assert await child.wait() == 0

    asyncio.run(run())


def test_a_join_token_does_not_reach_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDREID_JOIN_TOKEN", "frj1.secret")

    async def story(worker: Worker) -> None:
        report = await worker.run(Environment(name="FEDREID_JOIN_TOKEN"), Text, deaf)
        assert report.text == ""

    told(story)
