"""How is a federation driven through crashes? Arm points, start again whoever dies, judge the end.

Every program has a queue of faults of its own (fedreid/faults.py), which its worker or trainer
shares. :meth:`Storm.ride_out` waits until a queue is empty; whatever is killed meanwhile is
started again, as an operator's service manager would.
"""

import fcntl
import re
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from benchmark.federation import LocalFederation, Program
from coordinator.folders import Folders
from coordinator.rounds.machine import Phase, RoundState
from fedreid import faults
from fedreid.audit import read_audit, verify
from tests.history import check, read_history

COORDINATOR = "coordinator"
QUORUM = {"min_silos": 2, "deadline_s": 600.0, "phase_deadline_s": 300.0}
"""Deadlines that nobody misses, however slow the machine is on which everything is restarted."""
AFTER_THE_OUTBOX = frozenset(
    {"outbox.write:after", "upload.chunk.sent", "upload.ack.received", "folder.flip:after"}
)
"""Points that an agent reaches only when the round's training is safe."""
BACKBONE = {"name": "squeezenet1_1", "height_px": 64, "width_px": 32}
"""The smallest payload that takes several chunks, in few tensors."""

_WAIT_S = 300.0
_LOOK_S = 0.05
_DEATHS_PER_PAUSE = 5
"""Deaths of the coordinator after which agents die too: their pauses grow up to half a minute."""


@dataclass(frozen=True, slots=True)
class Fired:
    """A fault that has struck."""

    point: str
    pid: int
    """Of the process that it has ended, or of the program with all its processes."""


class Storm:
    """A federation whose programs can be armed."""

    def __init__(self, local: LocalFederation) -> None:
        """Nothing runs yet."""
        self.local = local
        self.deaths = dict.fromkeys((COORDINATOR, *local.silos), 0)
        """How often each program was started again."""
        self.begun_anew: dict[str, set[int]] = {silo: set() for silo in local.silos}
        """Rounds that a silo may train again: it died in one before that lay in its outbox."""
        local.root.mkdir(parents=True, exist_ok=True)
        for who in self.deaths:
            self._path(who).touch()
            local.environments[who][faults.VARIABLE] = str(self._path(who))

    def arm(self, who: str, *lines: str) -> None:
        """Let a program meet these faults, one after the other, from now on."""
        with self._queue(who) as stream:
            stream.truncate()
            stream.write("".join(f"{line}\n" for line in lines))

    def pending(self, who: str) -> list[str]:
        """Its faults that have not struck yet."""
        with self._queue(who) as stream:
            return stream.read().splitlines()

    def fired(self, who: str) -> list[Fired]:
        """Its faults that have struck."""
        path = faults.fired(self._path(who))
        lines = path.read_text().splitlines() if path.exists() else []
        return [Fired(point, int(pid)) for point, pid in map(str.split, lines)]

    def ride_out(self, who: str, *lines: str) -> list[Fired]:
        """Arm a program, wait until all has struck and everybody runs again; what has struck."""
        before = len(self.fired(who))
        self.arm(who, *lines)
        self.wait(lambda: not self.pending(who), f"{who} meets {'; '.join(lines)}")
        struck = self.fired(who)[before:]
        ended = {each.pid for each in struck}
        self.wait(lambda: self.programs[who].pid not in ended, f"{who} ends")
        return struck

    def go_on(self, rounds: int = 1) -> None:
        """Wait until so many more rounds are published."""
        wanted = self.published() + rounds
        self.wait(lambda: self.published() >= wanted, f"{wanted} rounds are published")

    def wait(self, reached: Callable[[], bool], what: str) -> None:
        """Wait for something, and start again what is killed meanwhile."""
        until_s = time.monotonic() + _WAIT_S
        while not reached():
            logs = {name: program.log[-800:] for name, program in self.programs.items()}
            assert time.monotonic() < until_s, f"not in time: {what}; {logs}"
            self._start_again()
            time.sleep(_LOOK_S)
        self._start_again()

    def published(self) -> int:
        """Rounds that the run has published."""
        return sum(state.phase is Phase.PUBLISHED for state in rounds_of(self.local))

    @property
    def programs(self) -> dict[str, Program]:
        """The coordinator and the agents."""
        return {COORDINATOR: self.local.coordinator, **self.local.agents}

    def _start_again(self) -> None:
        for name, program in self.programs.items():
            if program.running():
                continue
            assert program.exit_code() == -signal.SIGKILL, program.log[-2000:]
            program.kill()  # what it has left of its children
            self._note_death(name, program)
            program.start()
            if name == COORDINATOR and self.deaths[name] % _DEATHS_PER_PAUSE == 0:
                for agent in self.local.agents.values():
                    agent.kill()

    def _note_death(self, name: str, program: Program) -> None:
        self.deaths[name] += 1
        kept = [fired.point for fired in self.fired(name) if fired.pid == program.pid]
        if name != COORDINATOR and not set(kept) & AFTER_THE_OUTBOX:
            self.begun_anew[name].update(trainings(program.log)[-1:])

    @contextmanager
    def _queue(self, who: str) -> Iterator[IO[str]]:
        with self._path(who).open("r+") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield stream

    def _path(self, who: str) -> Path:
        return self.local.root / f"{who}.faults"


def rounds_of(local: LocalFederation) -> list[RoundState]:
    """Every round that the coordinator's journal holds, of whichever run."""
    with closing(sqlite3.connect(f"file:{Folders(local.data).journal}?mode=ro", uri=True)) as found:
        rows = found.execute("SELECT state FROM rounds ORDER BY run, number").fetchall()
    return [msgspec.json.decode(row[0], type=RoundState) for row in rows]


def check_no_figure_is_lost(local: LocalFederation) -> None:
    """The coordinator has what every silo measured of every published round."""
    with closing(sqlite3.connect(f"file:{Folders(local.data).journal}?mode=ro", uri=True)) as found:
        figures = set(found.execute("SELECT round, silo, model FROM evaluations").fetchall())
    for state in rounds_of(local):
        for silo in local.agents if state.phase is Phase.PUBLISHED else ():
            assert (state.number - 1, silo, "global") in figures
            assert (state.number, silo, "local") in figures


def digests_of(local: LocalFederation) -> dict[tuple[str, int], str]:
    """What each round published."""
    return {
        (state.run, state.number): state.model_digest
        for state in rounds_of(local)
        if state.phase is Phase.PUBLISHED
    }


def check_nothing_is_lost(storm: Storm, calm: Storm) -> None:
    """Judge a stopped federation: the promises, the calm one's models, no work done twice.

    Each silo knows of each update of its own that it has counted.
    """
    local = storm.local
    uninterrupted = digests_of(calm.local)
    agents = [local.agent_data(silo) for silo in local.agents]
    check(read_history(local.data, agents), uninterrupted=uninterrupted)
    assert digests_of(local).items() <= uninterrupted.items()
    for state in rounds_of(local):
        assert state.phase is Phase.PUBLISHED or not state.ended, state
        if state.ended:
            assert [update.silo for update in state.updates] == sorted(local.agents)
    for data in (local.data, *agents):
        assert verify(data / "audit").cut_off_bytes == 0
    noted = Counter(
        (line.event, line.fields["round"], line.fields.get("silo"))
        for line in read_audit(local.data / "audit")
        if line.event in ("round.opened", "update.accepted", "round.published")
    )
    assert set(noted.values()) == {1}, noted
    assert len(noted) == sum(
        1 + len(state.updates) + (state.phase is Phase.PUBLISHED) for state in rounds_of(local)
    )
    published = {state.number for state in rounds_of(local) if state.phase is Phase.PUBLISHED}
    for data in agents:
        outcomes = [line for line in read_audit(data / "audit") if line.event == "update.outcome"]
        assert {line.fields["outcome"] for line in outcomes} == {"accepted"}
        assert published <= {line.fields["round"] for line in outcomes}
    for silo, agent in local.agents.items():
        check_trained_once(agent.log, storm.begun_anew[silo])


def play(
    storm: Storm,
    plan: Path,
    script: Callable[[Storm], None],
    *,
    join: Callable[[LocalFederation, str], object] = LocalFederation.join_without_training,
) -> None:
    """Run a federation on a plan through a script, then stop it when a round is over."""
    local = storm.local
    for silo in local.silos:
        join(local, silo)
    local.start_run(plan)
    script(storm)
    storm.go_on()
    local.command("coordinator", "run", "pause", "--data", str(local.data))
    storm.wait(lambda: is_over(local), "everybody knows how the last round ended")
    local.stop()


def is_over(local: LocalFederation) -> bool:
    """Whether the last round has ended, and every agent has heard what became of its update."""
    last = rounds_of(local)[-1]
    told = f"round {last.number}: update of"
    return last.ended and all(told in agent.log for agent in local.agents.values())


_TRAINING = re.compile(r"round (\d+): training\n")
_TRAINER_DIED = re.compile(r"round (\d+): training\n(?:(?!round ).*\n)*?.*ended in the middle of")


def trainings(log: str) -> list[int]:
    """The rounds that an agent has begun to train, in order."""
    return [int(number) for number in _TRAINING.findall(log)]


def check_trained_once(log: str, begun_anew: set[int]) -> None:
    """No round is trained again unless its training was cut off."""
    excused = begun_anew | {int(number) for number in _TRAINER_DIED.findall(log)}
    often = {number for number, times in Counter(trainings(log)).items() if times > 1}
    assert often <= excused, f"trained again: {often - excused}"
