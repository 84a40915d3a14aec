"""Which jobs does the child of the worker tests answer? ``python -m tests.fedreid.job_child``."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from fedreid import errors, memory
from fedreid.jobs import Job, Progress, ProgressSink, Report, serve
from fedreid.limits import MIB


class Add(Job, frozen=True, kw_only=True):
    """Add numbers, telling how far it is."""

    numbers: tuple[int, ...]


class Sum(Report, frozen=True, kw_only=True):
    """What Add gives."""

    total: int
    pid: int


class Refuse(Job, frozen=True, kw_only=True):
    """Raise an error of our tree."""

    kind: str


class Crash(Job, frozen=True, kw_only=True):
    """Raise an error that nobody foresaw."""

    words: str


class Die(Job, frozen=True, kw_only=True):
    """Kill itself; with ``heir`` a process that holds its pipes outlives it."""

    heir: str = ""
    """File that takes the heir's process id; empty: no heir."""


class Print(Job, frozen=True, kw_only=True):
    """Print as careless libraries do."""


class Block(Job, frozen=True, kw_only=True):
    """Wait until killed, after saying so."""


class Flood(Job, frozen=True, kw_only=True):
    """Answer with a report of this many letters."""

    letters: int


class Text(Report, frozen=True, kw_only=True):
    """What Flood gives."""

    text: str


class Environment(Job, frozen=True, kw_only=True):
    """Answer with a variable."""

    name: str


class Learn(Job, frozen=True, kw_only=True):
    """Use and free much memory, as a process that keeps what it frees."""

    mib: int


def add(job: Add, tell: ProgressSink) -> Sum:
    """Add."""
    for done, _ in enumerate(job.numbers, 1):
        tell(Progress(phase="adding", done=done, total=len(job.numbers), loss=0.5))
    return Sum(total=sum(job.numbers), pid=os.getpid())


def refuse(job: Refuse, tell: ProgressSink) -> Sum:
    """Refuse."""
    kind = getattr(errors, job.kind)
    raise kind("It is refused", why="the cause", next_step="The step.")


def crash(job: Crash, tell: ProgressSink) -> Sum:
    """Crash."""
    raise RuntimeError(job.words)


def die(job: Die, tell: ProgressSink) -> Sum:
    """Die."""
    if job.heir:
        heir = subprocess.Popen(["sleep", "600"])
        Path(job.heir).write_text(str(heir.pid))
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def talk(job: Print, tell: ProgressSink) -> Sum:
    """Print."""
    print("a library's banner")
    sys.stdout.write('{"type":"_Finished"}\n')
    sys.stdout.flush()
    os.write(1, b"from C\n")
    subprocess.run(["echo", "from a child"], check=True)
    sys.stderr.write("x" * 200_000)  # more than a pipe holds: somebody must read it
    sys.stderr.flush()
    return Sum(total=1, pid=os.getpid())


def block(job: Block, tell: ProgressSink) -> Sum:
    """Block."""
    tell(Progress(phase="blocking", done=0, total=1))
    signal.pause()
    raise AssertionError


def flood(job: Flood, tell: ProgressSink) -> Text:
    """Flood."""
    return Text(text="x" * job.letters)


def environment(job: Environment, tell: ProgressSink) -> Text:
    """Look up."""
    return Text(text=os.environ.get(job.name, ""))


def learn(job: Learn, tell: ProgressSink) -> Sum:
    """Say how many MiB were resident before."""
    memory.keep_freed()
    before = psutil.Process().memory_info().rss // MIB
    bytearray(b"1") * (job.mib * MIB)
    return Sum(total=before, pid=os.getpid())


if __name__ == "__main__":
    serve(
        {
            Add: add,
            Refuse: refuse,
            Crash: crash,
            Die: die,
            Print: talk,
            Block: block,
            Flood: flood,
            Environment: environment,
            Learn: learn,
        }
    )
