"""How does a small service process hand heavy work to a child that holds torch?

The child is ``python -m MODULE``; both sides speak JSON lines over the child's standard input
and output: one request, then any number of progress lines, then one result or error line.
Work never blocks the parent's event loop, and a child that dies is a :class:`JobFailed` for the
job at hand; the next job starts a new child. Jobs read and write files; no tensor crosses here.
"""

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from fedreid.errors import (
    DatasetError,
    FedreidError,
    JobFailed,
    PlanRefused,
    RunError,
    StorageError,
    UsageError,
)
from fedreid.limits import JOB_LINE_BYTES, PROGRESS_S
from fedreid.memory import give_back


class Job(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Work for the child; subclasses are told apart by their class name."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a finished job returns: numbers and paths."""


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """How far a job is."""

    phase: str
    done: int
    total: int
    loss: float | None = None


class _Finished(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    report: msgspec.Raw


class _Refused(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    code: str
    what: str
    why: str
    next_step: str


_Line = Progress | _Finished | _Refused
ProgressSink = Callable[[Progress], None]
ReportT = TypeVar("ReportT", bound=Report)

_TOLD: dict[str, type[FedreidError]] = {
    kind.code: kind
    for kind in (DatasetError, StorageError, UsageError, PlanRefused, RunError, JobFailed)
}
_BROKEN = (EOFError, ConnectionError, ValueError, msgspec.MsgspecError)
"""What a child that died or does not keep to the protocol looks like from here."""
_SECRETS = frozenset({"FEDREID_JOIN_TOKEN"})
"""Variables that no child needs to see."""
_LAST_WORDS_S = 0.5
_PR_SET_PDEATHSIG = 1
_STOP_GRACE_S = 5.0
_STDERR_TAIL_BYTES = 4000


class Worker:
    """The parent's side: one child, started at the first job, given one job at a time."""

    def __init__(
        self, module: str, arguments: tuple[str, ...] = (), *, survives_refusal: bool = True
    ) -> None:
        """``survives_refusal``: whether a child whose job raised can take the next one."""
        self._module = module
        self._arguments = arguments
        self._survives_refusal = survives_refusal
        self._child: asyncio.subprocess.Process | None = None
        self._stderr = b""
        self._stderr_reader: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    @property
    def pid(self) -> int | None:
        """Process id of the running child, if there is one."""
        return self._child.pid if self._child is not None else None

    async def run(self, job: Job, returns: type[ReportT], progress: ProgressSink) -> ReportT:
        """Do one job.

        Raises:
            DatasetError, StorageError, UsageError: as the job raised them.
            JobFailed: the child failed or died; its last words are in the message.
        """
        async with self._turn:
            child = await self._started()
            try:
                return await self._converse(child, job, returns, progress)
            except _ToldByChild as told:
                if not self._survives_refusal:
                    await self._end()
                raise told.error from None
            except BaseException as error:
                # Whatever is left of the conversation must not reach the next job.
                ending = await self._end()
                if isinstance(error, _BROKEN):
                    raise self._failed(ending, error) from error
                raise

    async def _converse(
        self,
        child: asyncio.subprocess.Process,
        job: Job,
        returns: type[ReportT],
        progress: ProgressSink,
    ) -> ReportT:
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(msgspec.json.encode(job) + b"\n")
        await child.stdin.drain()
        while line := await child.stdout.readline():
            message = msgspec.json.decode(line, type=_Line)
            if isinstance(message, Progress):
                progress(message)
            elif isinstance(message, _Finished):
                return msgspec.json.decode(message.report, type=returns)
            else:
                raise _ToldByChild(_error_of(message))
        raise EOFError("the process ended")

    async def close(self) -> None:
        """End the child."""
        await self._end()

    async def _started(self) -> asyncio.subprocess.Process:
        if self._child is None or self._child.returncode is not None:
            self._stderr = b""
            self._child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self._module,
                *self._arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=JOB_LINE_BYTES,
                env={k: v for k, v in os.environ.items() if k not in _SECRETS},
            )
            self._stderr_reader = asyncio.create_task(self._keep_stderr(self._child))
        return self._child

    async def _keep_stderr(self, child: asyncio.subprocess.Process) -> None:
        assert child.stderr is not None
        while block := await child.stderr.read(_STDERR_TAIL_BYTES):
            self._stderr = (self._stderr + block)[-_STDERR_TAIL_BYTES:]

    def _failed(self, ending: str, error: BaseException) -> JobFailed:
        words = self._stderr.decode(errors="replace").strip().splitlines()
        why = words[-1] if words else "it may have run out of memory"
        if not isinstance(error, EOFError | ConnectionError):
            why = str(error)
        return JobFailed(
            f"The process of {self._module} ended in the middle of a job ({ending})",
            why=why,
            next_step="The job is tried again; if it fails again, look at the machine's memory.",
        )

    async def _end(self) -> str:
        """End the child, if there is one; how it ended."""
        child, self._child = self._child, None
        if child is None:
            return "it had ended"
        try:  # after a broken pipe it is about to end by itself: its own ending tells more
            await asyncio.wait_for(child.wait(), _LAST_WORDS_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                child.terminate()
            try:
                await asyncio.wait_for(child.wait(), _STOP_GRACE_S)
            except TimeoutError:
                child.kill()
                await child.wait()
        if self._stderr_reader is not None:
            # A process that the child has left behind may hold the pipe for ever.
            await asyncio.wait({self._stderr_reader}, timeout=_LAST_WORDS_S)
            self._stderr_reader.cancel()
        # asyncio has no public way to let go of pipes that such a process still holds.
        child._transport.close()  # type: ignore[attr-defined]
        code = child.returncode or 0
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


class _ToldByChild(Exception):
    """An error that a job raised; its child lives on."""

    def __init__(self, error: FedreidError) -> None:
        self.error = error
        super().__init__(error)


def _error_of(message: _Refused) -> FedreidError:
    kind = _TOLD.get(message.code, JobFailed)
    return kind(message.what, why=message.why, next_step=message.next_step)


Handler = Callable[[Any, ProgressSink], Report]


def serve(handlers: dict[type[Job], Handler]) -> None:
    """The child's side: answer jobs from standard input until it is closed.

    Standard output belongs to the protocol: it is moved away first, so that a library that
    prints can't break a line.
    """
    as_child()
    lines = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    told_phase, told_s = "", 0.0

    def tell(message: _Line) -> None:
        nonlocal told_phase, told_s
        if isinstance(message, Progress):
            lately = message.phase == told_phase and time.monotonic() - told_s < PROGRESS_S
            if lately and message.done < message.total:
                return
            told_phase, told_s = message.phase, time.monotonic()
        lines.write(msgspec.json.encode(message) + b"\n")

    decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_union(tuple(handlers)))
    for line in sys.stdin.buffer:
        job = decoder.decode(line)
        try:
            report = handlers[type(job)](job, tell)
        except FedreidError as error:
            tell(
                _Refused(code=error.code, what=error.what, why=error.why, next_step=error.next_step)
            )
        else:
            tell(_Finished(report=msgspec.Raw(msgspec.json.encode(report))))
        give_back()


def as_child() -> None:
    """Leave Ctrl-C to the parent, and end when the parent is killed, where the kernel can.

    Otherwise a killed agent would leave its training running beside that of its next start.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _union(kinds: tuple[type[Job], ...]) -> Any:
    union: Any = kinds[0]
    for kind in kinds[1:]:
        union = union | kind
    return union
