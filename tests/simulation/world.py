"""What happens in one schedule? Everything that a seed says, and then the checker looks.

A schedule has a time of troubles, in which programs are killed, lines break, clocks are set, disks
are full and people give commands; after it everything works again, and the run must come to its
end. The history is checked after each crash, after each power cut, and in the end.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from random import Random
from types import ModuleType
from typing import Any
from unittest import mock

import blake3
import tomli_w

import fedreid.files
import fedreid.spares
import fedreid.wire.stream
import fedreid.wire.tensors
from coordinator.folders import Folders
from coordinator.rounds import phases
from coordinator.rounds.journal import PAUSED, RUNNING, STOPPED, Journal, ModelRow, SiloRow
from coordinator.rounds.machine import Phase, RoundState
from coordinator.trust.registry import ACTIVE, REVOKED, SUSPENDED
from fedreid.errors import ConnectionFailed, FedreidError, StorageError
from fedreid.files import make_folder
from fedreid.limits import JOB_RETRY_S
from fedreid.names import SiloName
from fedreid.pki.signing import new_signing_key_pem, public_bytes, signing_key
from fedreid.plan import parse_plan
from tests.history import (
    Gone,
    History,
    Round,
    Span,
    Update,
    acknowledged,
    check,
    counted,
    departures,
    is_signed,
)
from tests.simulation.disk import (
    MemoryDisk,
    MemoryPath,
    memory_fcntl,
    memory_os,
    memory_shutil,
)
from tests.simulation.loop import Killed, VirtualLoop, running
from tests.simulation.memory import MemoryAudit, MemoryClock, MemoryJournal
from tests.simulation.network import Network, Quality
from tests.simulation.server import Server
from tests.simulation.silo import Habits, Silo
from tests.simulation.work import LAYOUT, MemoryWorker, published_digest

_TROUBLES_S = 80.0
_PEACE_S = 900.0
_COLLECTING_S, _PHASE_S = 30.0, 20.0
_KEY = signing_key(new_signing_key_pem())
_MODEL_KEY = public_bytes(_KEY)
_NAMING: tuple[ModuleType, ...] = (fedreid.files, fedreid.spares)
"""Modules that name temporary files."""
_SYSTEM: tuple[ModuleType, ...] = (
    fedreid.files,
    fedreid.spares,
    fedreid.wire.stream,
    fedreid.wire.tensors,
)
MakeJournal = Callable[[Callable[[str], None], Callable[[RoundState], None]], Journal]


@dataclass(slots=True)
class Outcome:
    """How a schedule went."""

    seed: int
    trace: list[str] = field(default_factory=list)
    failure: str = ""
    """What was broken; empty if nothing was."""
    history: History | None = None
    """As it was in the end."""
    counts: dict[str, int] = field(default_factory=dict)
    """How often what happened."""


def play(seed: int, make_journal: MakeJournal = MemoryJournal) -> Outcome:
    """Play the schedule of a seed from beginning to end."""
    outcome = Outcome(seed=seed)
    loop = VirtualLoop(Random(f"{seed} delays"))
    world = World(outcome, loop, make_journal)
    with world.in_place():
        try:
            loop.run_until_complete(world.unfold())
        except Exception as error:
            outcome.failure = f"{type(error).__name__}: {error}"
        finally:
            loop.end()
    return outcome


class World:
    """Coordinator, silos, and all that befalls them."""

    def __init__(self, outcome: Outcome, loop: VirtualLoop, make_journal: MakeJournal) -> None:
        self._outcome = outcome
        self._loop = loop
        self._random = random = Random(outcome.seed)
        self.disk = MemoryDisk(self._step)
        self._journal = make_journal(self._step, self._saw)
        self._audit = MemoryAudit(loop, self._step)
        self._audit.told = lambda event, fields: self._tell("coordinator", f"{event} {fields}")
        self._clock = MemoryClock(loop)
        self._root = MemoryPath("/coordinator")
        self._plan_toml = tomli_w.dumps(_plan(random))
        self._plan = parse_plan(self._plan_toml)
        self._worker = MemoryWorker(
            random, failing=_often(random, 0.1), suspecting=_often(random, 0.3)
        )
        self._network = Network(loop, random, _quality(random))
        self._silos = [
            self._new_silo(f"silo-{letter}") for letter in "abcd"[: random.randint(2, 4)]
        ]
        self._spans: dict[tuple[str, int], list[Span]] = {}
        self._states: dict[tuple[str, int], RoundState] = {}
        self._set_back_s: list[float] = []
        self._no_room_s: list[float] = []
        self._returned: list[tuple[str, float, float]] = []
        self._booted_s: list[float] = []
        self._let_in_s: list[tuple[str, float]] = []
        self._full_until_s = 0.0
        self._writes_left = 0
        self._fatal = _often(random, 0.4)
        """How probable it is that the coordinator is killed while it obeys a command."""
        self._failure: BaseException | None = None
        self._at_peace = False
        self._outside = copy_context()
        """Of what no program does."""

    # The beginning and the end

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the product work on the disk in memory."""
        MemoryPath.disk = self.disk
        system, shutil = memory_os(self.disk), memory_shutil(self.disk)
        patches = [mock.patch.object(module, "os", system) for module in _SYSTEM]
        patches += [mock.patch.object(fedreid.files, "shutil", shutil)]
        patches += [mock.patch.object(fedreid.spares, "fcntl", memory_fcntl(self.disk))]
        patches += [mock.patch.object(phases, "Path", MemoryPath)]
        guessable = _Guessable(self._random)
        patches += [mock.patch.object(each, "secrets", guessable) for each in _NAMING]
        patches += [mock.patch.object(fedreid.spares, "LEAST_SPARE_BYTES", 1)]
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()

    async def unfold(self) -> None:
        """The whole schedule."""
        for folder in (self._root / "models", self._root / "spool", self._root / "work"):
            make_folder(folder)
        make_folder(MemoryPath("/public"))
        self.disk.settle()
        for silo in self._silos:
            self._journal.save_silo(SiloRow(name=silo.name, state=ACTIVE, not_after_s=1e12))
        self._boot()
        for silo in self._silos:
            self._loop.call_later(self._random.random() * 10.0, silo.start)
        await self._until_run_is_started()
        await self._troubles()
        await self._peace()
        self._check("in the end")

    async def _until_run_is_started(self) -> None:
        while self._journal.newest_run() is None:
            await self._command(
                "run start", lambda server: server.commands.start_run(self._plan_toml)
            )

    async def _troubles(self) -> None:
        troubles: list[Callable[[], Awaitable[None]]] = [
            self._kill_coordinator, self._kill_silo, self._cut_off, self._set_clock,
            self._fill_disk, self._shut_out, self._let_in, self._pause, self._stop, self._roll_back,
        ]  # fmt: skip
        weights = [_often(self._random, most) for most in (9, 4, 4, 3, 4, 4, 4, 2, 1, 1)]
        count = self._random.choice((0, 3, 8, 20)) if any(weights) else 0
        for _ in range(count):
            await asyncio.sleep(self._random.random() * 2 * _TROUBLES_S / count)
            self._raise_failures()
            if self._is_over():
                return
            (trouble,) = self._random.choices(troubles, weights)
            await trouble()

    async def _peace(self) -> None:
        """Everything works from now on; the run must come to its end."""
        self._at_peace = True
        self._tell("world", "peace")
        self._network.quality = Quality()
        self._network.cut.clear()
        self._worker.failing = self._worker.suspecting = self._fatal = 0.0
        if self._network.server is not None:
            self._network.server.steps_left = None
        for silo in self._silos:
            silo.habits = Habits(straggles=0.0, spoils=silo.habits.spoils, leaves=0.0)
        until_s = self._loop.time() + _PEACE_S
        while not self._is_over():
            assert self._loop.time() < until_s, f"the run does not end: {self._stuck()}"
            await asyncio.sleep(5.0)
            self._raise_failures()
            run = self._journal.newest_run()
            if run is not None and run.state == PAUSED:
                await self._control(RUNNING)
            for silo in self._silos:
                if silo.program is None:
                    silo.start()
                await self._let_in(silo)
        if any(not state.ended for state in self._states.values()):
            await asyncio.sleep(_COLLECTING_S + _PHASE_S)

    def _is_over(self) -> bool:
        run = self._journal.newest_run()
        return run is not None and run.state not in (RUNNING, PAUSED)

    def _stuck(self) -> str:
        server = self._network.server
        if server is None:
            return "there is no coordinator"
        state = server.current.round
        where = "no round" if state is None else f"round {state.number} {state.phase}"
        return f"{where}: {server.current.activity}"

    # Troubles

    async def _kill_coordinator(self) -> None:
        """At once, or at one of the next steps that leave something durable."""
        if self._network.server is None:
            return
        if self._random.random() < 0.2:
            self._crash("at once")
        else:
            self._network.server.steps_left = self._random.randint(1, 60)

    async def _kill_silo(self) -> None:
        silo = self._random.choice(self._silos)
        if silo.program is not None:
            self._tell(silo.name, "is killed")
            silo.kill()
            self._loop.call_later(self._random.random() * 80.0, self._restart, silo)

    async def _cut_off(self) -> None:
        silo = self._random.choice(self._silos).name
        self._tell(silo, "is cut off")
        self._network.cut.add(silo)
        self._loop.call_later(self._random.random() * 90.0, self._network.cut.discard, silo)

    async def _set_clock(self) -> None:
        shift_s = self._random.choice((1.0, 20.0, 3600.0, 1e7)) * self._random.choice((-1, 1))
        self._tell("clock", f"is set by {shift_s:+g} s")
        self._clock.shift_s += shift_s
        if shift_s < 0:
            self._set_back_s.append(self._loop.time())

    async def _fill_disk(self) -> None:
        """For a while, or for one of the next writes."""
        if self._random.random() < 0.3:
            self._tell("disk", "is full")
            self._full_until_s = self._loop.time() + self._random.random() * 3.0
        else:
            self._writes_left = self._random.randint(1, 30)

    async def _shut_out(self) -> None:
        silo = SiloName(self._random.choice(self._silos).name)
        state = self._random.choice((REVOKED, SUSPENDED))
        began_s = self._loop.time()
        patience_s = self._random.choice((0.01, 0.3, 60.0, 60.0))
        work: Command = lambda server: server.departures.silo_gone(silo, state)  # noqa: E731
        if await self._command(f"{state} {silo}", work, patience_s=patience_s):
            self._returned.append((silo, began_s, self._loop.time()))

    async def _let_in(self, silo: Silo | None = None) -> None:
        """Let a silo in again that has been out for a while."""
        name = SiloName((silo or self._random.choice(self._silos)).name)
        if self._is_out(name):
            await asyncio.sleep(5.0)
            if self._is_out(name):
                self._let_in_s.append((name, self._loop.time()))
                await self._command(f"let {name} in", lambda server: server.let_in(name))

    async def _pause(self) -> None:
        await self._control(PAUSED)
        await asyncio.sleep(self._random.random() * 20.0)
        await self._control(RUNNING)

    async def _stop(self) -> None:
        await self._control(STOPPED)

    async def _roll_back(self) -> None:
        version = self._random.randint(1, 3)
        await self._command(
            f"model rollback {version}", lambda server: server.commands.roll_back(version, "ada")
        )

    async def _control(self, state: str) -> None:
        await self._command(
            f"run {state}", lambda server: server.commands.control_run(state, f"{state} by ada")
        )

    async def _command(self, name: str, work: "Command", *, patience_s: float = 60.0) -> bool:
        """A command of an administrator, who may give up; whether it returned and was obeyed."""
        server = self._network.server
        if server is None:
            await asyncio.sleep(1.0)
            return False
        self._tell("admin", name)
        if self._random.random() < self._fatal and server.steps_left is None:
            server.steps_left = self._random.randint(1, 8)
        task = server.start(_obey(work, server))
        done, _ = await asyncio.wait((task,), timeout=patience_s)
        error: BaseException | None = ConnectionFailed("gave up")
        if done:
            error = task.exception()
        else:
            task.cancel()
        self._tell("admin", f"{name}: {'done' if error is None else str(error)}")
        if error is not None and not isinstance(error, FedreidError | Killed):
            raise error
        return error is None

    def _is_out(self, silo: SiloName) -> bool:
        server = self._network.server
        return server is not None and not server.registry.active(silo)

    # Lives

    def _new_silo(self, name: str) -> Silo:
        random = self._random
        return Silo(
            name,
            loop=self._loop,
            network=self._network,
            random=random,
            habits=Habits(
                straggles=_often(random, 0.4),
                spoils=_often(random, 0.1),
                leaves=_often(random, 0.05),
            ),
            model_key=_MODEL_KEY,
            tell=lambda text: self._tell(name, text),
        )

    def _restart(self, silo: Silo) -> None:
        if silo.program is None:
            silo.start()

    def _boot(self) -> None:
        """Start the coordinator; it may be killed while it recovers."""
        server = Server(
            folders=Folders(self._root),
            journal=self._journal,
            audit=self._audit,
            clock=self._clock,
            worker=self._worker,
            key=_KEY,
            random=self._random,
        )
        if not self._at_peace and self._random.random() < 0.1:
            server.steps_left = self._random.randint(1, 10)
        self._network.server = server
        self._booted_s.append(self._loop.time())
        try:
            server.context.run(server.boot)
        except Killed:
            return
        except StorageError as error:  # the service ends, and is started again
            self._crash(str(error))
            return
        serving = server.start(server.conductor.serve())
        serving.add_done_callback(self._note_end, context=self._outside)

    def _crash(self, when: str) -> None:
        """Kill the coordinator; now and then the whole machine loses its power."""
        server = self._network.server
        assert server is not None
        self._loop.kill(server)
        self._network.coordinator_died()
        cut = self._random.random() < 0.3
        self._tell("coordinator", f"is killed {when}{', power lost' if cut else ''}")
        if cut:
            self.disk.lose_power(self._random)
        try:
            self._check(f"after the crash {when}")
        except AssertionError as error:
            self._failure = self._failure or error
        pause_s = self._random.choice((0.5, 0.5, 40.0)) * self._random.random()
        self._loop.call_later(pause_s, self._boot, context=self._outside)

    def _step(self, what: str) -> None:
        """Something durable is about to happen, or has just happened."""
        program = running()
        if program is None:
            return
        if not program.alive:
            raise Killed
        if what.startswith(_TAKES_ROOM) and self._is_full():
            self._tell("disk", f"has no room {what}")
            self._no_room_s.append(self._loop.time())
            raise StorageError(f"No room {what}", why="the disk is full")
        if isinstance(program, Server) and program.steps_left is not None:
            program.steps_left -= 1
            if program.steps_left <= 0:
                self._crash(what)
                raise Killed

    def _is_full(self) -> bool:
        if self._loop.time() < self._full_until_s:
            return self._random.random() < 0.5
        self._writes_left -= 1
        return self._writes_left == 0

    # What is noted, and what must hold

    def _saw(self, state: RoundState) -> None:
        """The journal holds a round's new state."""
        place, now_s = (state.run, state.number), self._loop.time()
        before, spans = self._states.get(place), self._spans.setdefault(place, [])
        self._states[place] = state
        collecting = state.phase is Phase.COLLECTING
        again = before is not None and len(state.updates) < len(before.updates) and not collecting
        if before is not None and (state.phase is not before.phase or again):
            spans[-1] = Span(
                phase=spans[-1].phase,
                began_s=spans[-1].began_s,
                ended_s=now_s,
                allowed_s=spans[-1].allowed_s,
            )
        if not state.ended and (before is None or state.phase is not before.phase or again):
            allowed_s = _COLLECTING_S if collecting else _PHASE_S
            spans.append(Span(phase=state.phase, began_s=now_s, ended_s=None, allowed_s=allowed_s))

    def _check(self, when: str) -> None:
        history = self._history()
        self._outcome.history = history
        published = {
            (state.run, state.number): published_digest(state, self._plan)
            for state in self._states.values()
        }
        try:
            check(history, uninterrupted=published)
        except AssertionError as error:
            raise AssertionError(f"{when}, at {self._loop.time():.3f} s, {error}") from None

    def _history(self) -> History:
        run = self._journal.newest_run()
        states = [] if run is None else self._journal.rounds(run.name)
        models = self._journal.models()[::-1]
        lines = self._audit.lines
        gone = [
            *departures(lines),
            *departures(self._audit.unwritten),
            *(Gone(silo=x, decided_s=a, done_s=b) for x, a, b in self._returned),
        ]
        return History(
            rounds=tuple(
                Round(
                    state=state,
                    spans=tuple(map(self._with_troubles, self._spans[state.run, state.number])),
                )
                for state in states
            ),
            models=tuple(models),
            unsigned=tuple(row.version for row in models if not _is_signed(row)),
            damaged=tuple(
                f"the file of model {row.version} holds other bytes, or is gone"
                for row in models
                if not self._is_whole(row.digest)
            ),
            missing=tuple(
                update
                for state in states
                if not state.ended
                for update in counted(state)
                if not self._is_spooled(update)
            ),
            acknowledged=(*acknowledged(lines), *(u for s in self._silos for u in s.kept.accepted)),
            sent=tuple(update for silo in self._silos for update in silo.kept.sent),
            heard=frozenset(silo.name for silo in self._silos),
            taken=tuple(taken for silo in self._silos for taken in silo.kept.taken),
            gone=tuple(map(self._until_let_in, gone)),
            started_s=tuple(self._booted_s),
            known_until_s=self._loop.time() if self._network.server is not None else 0.0,
        )

    def _until_let_in(self, gone: Gone) -> Gone:
        """By the command that let the silo in: its line may be lost in a crash."""
        later = (at_s for silo, at_s in self._let_in_s if silo == gone.silo)
        again_s = next((at_s for at_s in later if at_s >= gone.decided_s), None)
        return replace(gone, again_s=again_s)

    def _with_troubles(self, span: Span) -> Span:
        """A phase may take its whole time again from when the clock was set back in it.

        What the disk has no room for is tried again after a pause, and that once for each time.
        """
        ended_s = self._loop.time() if span.ended_s is None else span.ended_s
        jumps_s = (at_s for at_s in self._set_back_s if span.began_s <= at_s <= ended_s)
        last_s = max(jumps_s, default=span.began_s)
        if last_s > span.began_s:  # who was down notices at the start
            last_s = next((at_s for at_s in self._booted_s if last_s <= at_s <= ended_s), last_s)
        pauses = sum(span.began_s <= at_s <= ended_s for at_s in self._no_room_s)
        return Span(
            phase=span.phase,
            began_s=span.began_s,
            ended_s=span.ended_s,
            allowed_s=last_s - span.began_s + span.allowed_s + pauses * JOB_RETRY_S,
        )

    def _is_spooled(self, update: Update) -> bool:
        spool = f"{self._root}/spool/{update.run}-{update.round:06d}"
        path = f"{spool}/{update.silo}.safetensors"
        if not self.disk.exists(path):
            return False
        payload = bytes(self.disk.find(path).data).removeprefix(LAYOUT.header())
        return blake3.blake3(payload).hexdigest() == update.payload_digest

    def _is_whole(self, digest: str) -> bool:
        path = f"{self._root}/models/{digest}.safetensors"
        if not self.disk.exists(path):
            return False
        return blake3.blake3(bytes(self.disk.find(path).data)).hexdigest() == digest

    def _note_end(self, serving: "asyncio.Task[None]") -> None:
        error = serving.exception()
        if error is not None and not isinstance(error, Killed):
            self._failure = self._failure or error

    def _raise_failures(self) -> None:
        for bug in (self._failure, *self._network.bugs):
            if bug is not None:
                raise bug

    def _tell(self, who: str, what: str) -> None:
        self._outcome.trace.append(f"{self._loop.time():9.3f}  {who:<12} {what}")


Command = Callable[[Server], Awaitable[Any]]
_TAKES_ROOM = ("before commit", "before audit", "before create", "before write", "before mkdir")


@functools.lru_cache(maxsize=1000)
def _is_signed(row: ModelRow) -> bool:
    return is_signed(row, _MODEL_KEY)


class _Guessable:
    """Names of temporary files as in every replay."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def token_hex(self, size: int) -> str:
        return self._random.randbytes(size).hex()


async def _obey(work: Command, server: Server) -> None:
    await work(server)


def _often(random: Random, most: float) -> float:
    """A probability: in some schedules none, in some little, in some all of it."""
    return random.choice((0.0, 0.0, most / 4, most))


def _quality(random: Random) -> Quality:
    return Quality(
        lose_request=_often(random, 0.2),
        lose_answer=_often(random, 0.2),
        break_off=_often(random, 0.2),
        replay=_often(random, 0.3),
    )


def _plan(random: Random) -> dict[str, Any]:
    """A plan of a few short rounds with this or that in it."""
    clusters = random.random() < 0.15
    distils = clusters or random.random() < 0.4
    gated = random.random() < 0.2
    aggregation: dict[str, Any] = {}
    if clusters:
        aggregation = {"clustering": "finch", "clip_norm_ratio": 0.0, "screen": False}
    return {
        "name": "spring",
        "rounds": random.randint(1, 4),
        "quorum": {
            "min_silos": random.randint(1, 2),
            "min_fraction": random.choice((0.0, 0.5, 1.0)),
            "deadline_s": _COLLECTING_S,
            "phase_deadline_s": _PHASE_S,
        },
        "aggregation": aggregation,
        "distillation": {
            "images": "/public" if distils else "",
            "loss": "normalised" if random.random() < 0.8 else "none",
        },
        "validation": {"quarantine_rounds": random.choice((0, 0, 1, 2))},
        "evaluation": {
            "folder": "/public" if gated else "",
            "gate_drop": 60.0 if gated and random.random() < 0.5 else 0.0,
        },
    }
