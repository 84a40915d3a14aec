"""Does a federation survive being killed at every point there is? The whole matrix, and slow.

Each test is one long run of real processes over real mTLS that passes from one crash to the next;
afterwards a second federation runs through the same rounds in peace, and both must have published
the same models. What the points mean is in fedreid/faults.py.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from benchmark.federation import LocalFederation, Program
from fedreid import faults
from fedreid.limits import JOB_ATTEMPTS
from tests.federation.conftest import Storming, write_plan
from tests.federation.storms import (
    BACKBONE,
    COORDINATOR,
    QUORUM,
    Storm,
    check_no_figure_is_lost,
    check_nothing_is_lost,
    play,
)

slow = [pytest.mark.slow, pytest.mark.timeout(3600)]


def both(*names: str) -> tuple[str, ...]:
    """The points before and after each of these steps."""
    return tuple(f"{name}:{side}" for name in names for side in ("before", "after"))


COORDINATORS = (
    *both("round.open", "round.commit", "upload.chunk.write", "upload.finalise", "upload.place"),
    *both("upload.accept.commit", "intake.close.commit", "aggregate.write"),
    *both("publish.sign", "publish.rename", "publish.commit", "announce"),
    *both("file.replace", "file.move", "file.link", "folder.remove", "payload.sync"),
    *both("file.retire", "audit.append", "journal.commit"),
    *both("gc.unlink"),  # last: by then there are models to be removed
)
AGENTS = (
    *both("download.chunk.write", "download.finish", "file.replace", "file.retire"),
    *both("outbox.write", "folder.flip", "folder.remove", "audit.append"),
    "upload.chunk.sent",
    "upload.ack.received",
)
LEARNING = ("distil.step", *both("aggregate.write", "distil.checkpoint", "evaluate.commit"))
TRAINING = ("train.step", *both("train.checkpoint"))
ENROLLING = both("token.consume.commit")
RENEWING_COORDINATOR = both("silo.renew.commit")
RENEWING_AGENT = both("key.pending.write", "identity.flip", "link.flip")
REMOVING = both("file.remove")  # tests/fedreid/test_spares.py
OPENING = both("journal.format")  # tests/coordinator/rounds/test_journal.py
COMMANDED = both("silo.gone.commit", "ca.activate.commit", "run.commit")

TWICE = (
    *both("upload.accept.commit", "intake.close.commit", "publish.rename", "publish.commit"),
    "round.open:after",
    "aggregate.write:after",
)
"""Points after which the coordinator is killed again while it recovers."""


def test_the_matrix_leaves_out_no_point() -> None:
    every = (
        *(*COORDINATORS, *AGENTS, *LEARNING, *TRAINING, *ENROLLING),
        *(*RENEWING_COORDINATOR, *RENEWING_AGENT, *REMOVING, *OPENING, *COMMANDED),
    )
    assert set(every) == faults.POINTS - set(both(faults.DURABLE))


def compare(
    storms: Storming,
    tmp_path: Path,
    script: Callable[[Storm], None],
    *,
    join: Callable[[LocalFederation, str], object] = LocalFederation.join_without_training,
    judge: Callable[[LocalFederation], None] = lambda local: None,
    **tables: object,
) -> None:
    """Run through a script of crashes, and once more in peace."""
    settings = {"rounds": 1000, "backbone": BACKBONE, "quorum": QUORUM, **tables}
    plan = write_plan(tmp_path / "plan.toml", **settings)
    stormy, calm = storms("stormy"), storms("calm")
    play(stormy, plan, script, join=join)
    play(calm, plan, lambda storm: storm.go_on(stormy.published() - 1), join=join)
    print(f"{stormy.published()} rounds, killed: {stormy.deaths}")
    check_nothing_is_lost(stormy, calm)
    judge(stormy.local)


def join_with_checkpoints(local: LocalFederation, silo: str) -> None:
    """Start an agent that really trains, and keeps a checkpoint after each step."""
    local.command(*local.join_arguments(silo), "--enrol-only")
    trainer = "tests.silo_agent.learning.worker_of_many_checkpoints"
    arguments = ("tests.federation.agent_with", trainer, str(local.agent_data(silo)))
    local.agents[silo] = Program(arguments, local.root / f"{silo}.log", local.environments[silo])
    local.agents[silo].start()


def one_by_one(who: Callable[[Storm], str], lines: Iterable[str]) -> Callable[[Storm], None]:
    """A script that lets one program meet one fault after the other."""

    def script(storm: Storm) -> None:
        for line in lines:
            storm.ride_out(who(storm), line)

    return script


def coordinator(storm: Storm) -> str:
    return COORDINATOR


def first_silo(storm: Storm) -> str:
    return next(iter(storm.local.silos))


class TestEveryPoint:
    """Killed at each point once."""

    pytestmark = slow

    def test_of_the_coordinator(self, storms: Storming, tmp_path: Path) -> None:
        lines = [f"{point} 1 crash" for point in COORDINATORS]
        compare(storms, tmp_path, one_by_one(coordinator, lines))

    def test_of_the_coordinators_worker_alone(self, storms: Storming, tmp_path: Path) -> None:
        lines = [f"{point} 1 kill" for point in both("aggregate.write")]
        compare(storms, tmp_path, one_by_one(coordinator, lines))

    def test_of_an_agent(self, storms: Storming, tmp_path: Path) -> None:
        lines = [f"{point} 1 crash" for point in AGENTS]
        compare(storms, tmp_path, one_by_one(first_silo, lines))

    def test_of_an_agents_trainer_alone(self, storms: Storming, tmp_path: Path) -> None:
        def script(storm: Storm) -> None:
            for _ in range(JOB_ATTEMPTS):
                storm.ride_out(first_silo(storm), "train.step 3 kill")
                storm.go_on()  # a job that fails so often in a row ends the agent

        compare(storms, tmp_path, script)

    def test_of_learning(self, storms: Storming, tmp_path: Path, images: Path) -> None:
        def script(storm: Storm) -> None:
            for effect in ("kill", "crash"):  # of the worker alone, and of the whole program
                for point in TRAINING:
                    storm.ride_out(first_silo(storm), f"{point} 2 {effect}")
                    storm.go_on()
                for point in LEARNING:
                    storm.ride_out(COORDINATOR, f"{point} 1 {effect}")

        compare(
            storms,
            tmp_path,
            script,
            join=join_with_checkpoints,
            backbone={**BACKBONE, "name": "shufflenet_v2_x0_5"},
            distillation={"images": str(images / "public"), "batch_size": 8},
            evaluation={"folder": str(images / "campus"), "standalone": False},
            judge=check_no_figure_is_lost,
        )


class TestEveryWrite:
    """Killed before the n-th durable write of a round, for every n; payloads are differences."""

    pytestmark = slow

    @pytest.mark.parametrize(
        ("who", "begins"),
        [(coordinator, "round.open:before"), (first_silo, "download.finish:before")],
        ids=["coordinator", "agent"],
    )
    def test_of_a_round(
        self, storms: Storming, tmp_path: Path, who: Callable[[Storm], str], begins: str
    ) -> None:
        def script(storm: Storm) -> None:
            writes = writes_of_a_round(storm, who(storm), begins)
            print(f"{writes} durable writes in a round of the {who(storm)}")
            assert writes > 10
            for n in range(1, writes + 1):
                storm.ride_out(who(storm), f"{begins} 1 pass", f"durable:before {n} crash")

        wire = {"upload": "int8_delta", "download": "int8_delta_zstd"}
        compare(storms, tmp_path, script, wire=wire)


_MANY = 1_000_000


def writes_of_a_round(storm: Storm, who: str, begins: str) -> int:
    """Durable writes of a program from the beginning of one round to that of the next."""
    storm.arm(who, f"{begins} 1 pass", f"durable:before {_MANY} pass")
    storm.go_on(4)
    (left,) = storm.pending(who)
    storm.arm(who)
    return round((_MANY - int(left.split()[1])) / 3)


class TestTwiceInARow:
    """Killed, and killed again at the first durable writes of the recovery."""

    pytestmark = slow

    @pytest.mark.parametrize("n", [1, 2, 3])
    def test_of_the_coordinator(self, storms: Storming, tmp_path: Path, n: int) -> None:
        def script(storm: Storm) -> None:
            for point in TWICE:
                storm.ride_out(COORDINATOR, f"{point} 1 crash", f"durable:before {n} crash")

        compare(storms, tmp_path, script)

    def test_of_an_agent(self, storms: Storming, tmp_path: Path) -> None:
        def script(storm: Storm) -> None:
            for point in ("download.finish:after", "outbox.write:after", "upload.ack.received"):
                for n in (1, 2, 3):
                    storm.ride_out(
                        first_silo(storm), f"{point} 1 crash", f"durable:before {n} crash"
                    )

        compare(storms, tmp_path, script)

    def test_of_both_ends_at_once(self, storms: Storming, tmp_path: Path) -> None:
        def script(storm: Storm) -> None:
            for theirs, ours in (
                ("upload.finalise:after", "upload.chunk.sent"),
                ("upload.accept.commit:after", "upload.ack.received"),
                ("publish.commit:after", "download.finish:before"),
            ):
                storm.arm(first_silo(storm), f"{ours} 1 crash")
                storm.ride_out(COORDINATOR, f"{theirs} 1 crash")
                storm.wait(lambda: not storm.pending(first_silo(storm)), f"{ours} is reached")

        compare(storms, tmp_path, script)
