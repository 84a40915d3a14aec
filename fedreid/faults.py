"""Where can a test end this process, or fail its disk? At named points around each durable step.

Nothing is armed in production, and a point then costs one comparison. A test lets
``FEDREID_FAULTS`` name a file, a queue of lines ``POINT COUNT EFFECT``::

    publish.rename:before 2 kill     the second time that a model is about to get its name;
    durable:after 5 kill             then, after the fifth durable write from there on;
    journal.commit:before * enospc   then at every commit, until the test changes the file

The first line alone is armed; a line that has fired is gone, and the next one is armed. Every
process of a program (an agent and its trainer) reads the same file whenever it reaches a point,
so counts go on through restarts, and a test may arm the next fault while the program runs.
"""

import errno
import fcntl
import os
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO

from fedreid.errors import ConfigRefused, storage_errors

VARIABLE = "FEDREID_FAULTS"

SEAMS: dict[str, str] = {
    "file.replace": "fedreid/files.py",
    "file.move": "fedreid/files.py",
    "file.link": "fedreid/files.py",
    "file.remove": "fedreid/files.py",
    "file.retire": "fedreid/spares.py",
    "folder.flip": "fedreid/files.py",
    "folder.remove": "fedreid/files.py",
    "link.flip": "fedreid/files.py",
    "payload.sync": "fedreid/wire/stream.py",
    "audit.append": "fedreid/audit.py",
    "journal.commit": "coordinator/rounds/database.py",
}
"""How anything becomes durable, and where; each of these is a ``durable`` write besides."""

STEPS: dict[str, str] = {
    "journal.format": "coordinator/rounds/formats.py",
    "round.open": "coordinator/rounds/conductor.py",
    "round.commit": "coordinator/rounds/current.py",
    "run.commit": "coordinator/rounds/current.py",
    "upload.chunk.write": "coordinator/rounds/incoming.py",
    "upload.finalise": "coordinator/rounds/incoming.py",
    "upload.place": "coordinator/rounds/intake.py",
    "upload.accept.commit": "coordinator/rounds/current.py",
    "intake.close.commit": "coordinator/rounds/current.py",
    "aggregate.write": "coordinator/learning/aggregation.py",
    "distil.checkpoint": "coordinator/learning/distillation.py",
    "evaluate.commit": "coordinator/rounds/phases.py",
    "publish.sign": "coordinator/rounds/publishing.py",
    "publish.rename": "coordinator/rounds/publishing.py",
    "publish.commit": "coordinator/rounds/conductor.py",
    "announce": "coordinator/rounds/conductor.py",
    "gc.unlink": "coordinator/rounds/publishing.py",
    "token.consume.commit": "coordinator/trust/enrolment.py",
    "silo.renew.commit": "coordinator/trust/enrolment.py",
    "silo.gone.commit": "coordinator/rounds/departures.py",
    "ca.activate.commit": "coordinator/trust/authorities.py",
    "download.chunk.write": "silo_agent/models.py",
    "download.finish": "silo_agent/models.py",
    "train.checkpoint": "silo_agent/learning/checkpoints.py",
    "outbox.write": "silo_agent/outbox.py",
    "key.pending.write": "silo_agent/trust/join.py",
    "identity.flip": "fedreid/pki/identity.py",
}
"""What is done durably, and where; ``:before`` and ``:after`` are its points."""

MOMENTS: dict[str, str] = {
    "distil.step": "coordinator/learning/distillation.py",
    "train.step": "silo_agent/learning/training.py",
    "upload.chunk.sent": "silo_agent/delivery.py",
    "upload.ack.received": "silo_agent/delivery.py",
}
"""Points of their own, where nothing is written."""

DURABLE = "durable"

POINTS: frozenset[str] = frozenset(MOMENTS) | {
    f"{name}:{side}" for name in (*SEAMS, *STEPS, DURABLE) for side in ("before", "after")
}
"""Every point that can be armed."""

queue: Path | None = Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None
"""The file of armed faults; None in production."""


def fired(queue: Path) -> Path:
    """The file that keeps what has fired: a line ``POINT PID`` each, with what was to end."""
    return queue.with_name(f"{queue.name}.fired")


def step(name: str) -> AbstractContextManager[None]:
    """A durable step; the point before it is reached, and the one after it if it succeeds."""
    return _UNARMED if queue is None else _Step(name)


def point(name: str) -> None:
    """A moment in between durable steps."""
    if queue is not None:
        assert name in MOMENTS, name
        _reach(name)


def check_queue() -> None:
    """Check what is armed, before a program begins.

    Raises:
        ConfigRefused: a line names no point or effect, or there is no such file.
    """
    if queue is not None:
        _armed(_read(queue))


_UNARMED: AbstractContextManager[None] = nullcontext()


class _Step(AbstractContextManager[None]):
    def __init__(self, name: str) -> None:
        assert name in STEPS or name in SEAMS, name
        self._name = name

    def __enter__(self) -> None:
        self._reach("before")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._reach("after")

    def _reach(self, side: str) -> None:
        durable = (f"{DURABLE}:{side}",) if self._name in SEAMS else ()
        _reach(f"{self._name}:{side}", *durable)


def _reach(*names: str) -> None:
    assert queue is not None
    with queue.open("r+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        lines = _armed(stream.read())
        if not lines or lines[0][0] not in names:
            return
        name, count, effect = lines[0]
        if count == "1":
            lines = lines[1:]
        elif count != "*":
            lines[0] = (name, str(int(count) - 1), effect)
        _write(stream, lines)
        if count in ("1", "*"):
            with fired(queue).open("a") as told:
                told.write(f"{name} {os.getpgid(0) if effect == 'crash' else os.getpid()}\n")
    if count in ("1", "*"):
        _EFFECTS[effect]()


def _armed(text: str) -> list[tuple[str, str, str]]:
    """The lines of a queue."""
    found = []
    for line in text.splitlines():
        name, count, effect = (*line.split(), "", "", "")[:3]
        counts = count == "*" or (count.isdecimal() and int(count) > 0)
        if name not in POINTS or not counts or effect not in _EFFECTS or len(line.split()) != 3:
            raise ConfigRefused(
                f"The fault {line!r} can't be armed",
                why=f"a line of {VARIABLE} is POINT COUNT EFFECT",
                next_step=f"Unset {VARIABLE}, which is for tests alone; fedreid/faults.py names "
                "its points.",
            )
        found.append((name, count, effect))
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise ConfigRefused(
            f"There is no file of faults {path}",
            why=str(error),
            next_step=f"Unset {VARIABLE}, which is for tests alone.",
        ) from error


def _write(stream: IO[str], lines: list[tuple[str, str, str]]) -> None:
    stream.seek(0)
    stream.truncate()
    stream.write("".join(f"{' '.join(line)}\n" for line in lines))
    stream.flush()


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _crash() -> None:
    os.killpg(os.getpgid(0), signal.SIGKILL)


def _failing(number: int) -> Callable[[], None]:
    def fail() -> None:
        with storage_errors("write", Path("what a test lets fail")):
            raise OSError(number, os.strerror(number))

    return fail


_EFFECTS: dict[str, Callable[[], None]] = {
    "pass": lambda: None,
    "kill": _kill,
    "crash": _crash,
    "enospc": _failing(errno.ENOSPC),
    "erofs": _failing(errno.EROFS),
    "eio": _failing(errno.EIO),
}
"""Nothing; an end of this process, or of all processes of its program; an error of the disk."""
