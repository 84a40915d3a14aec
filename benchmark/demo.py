"""What does ``make demo`` do? The main job, on this machine, on generated silos.

Renders four silos and a public set, starts a coordinator and four agents as processes of their
own that join with tokens over mutual TLS, runs a plan, and writes a report.
"""

import shutil
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import tomli_w
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmark.collecting import collect
from benchmark.federation import LocalFederation, terminable
from benchmark.report import write_report
from benchmark.results import Results, read
from benchmark.silos import render_silos
from benchmark.summary import summary_table
from coordinator.client import every_evaluation
from coordinator.export import export_model
from fedreid.console import out, say
from fedreid.datasets.synthetic import SyntheticSpec
from fedreid.errors import UsageError
from fedreid.pictures.ranked import RankedQuery
from fedreid.plan import BackbonePlan, parse_plan
from fedreid.v1 import admin_pb2
from fedreid.wire.messages import evaluation_from_wire

if TYPE_CHECKING:
    from fedreid.v1.admin_pb2_grpc import AdminStub

FEDERATION = "demo"
_MARK = ".fedreid-demo"
_TIMEOUT_S = 1800.0
_QUERIES_SHOWN = 6
_RENDER_PROCESSES = 2


def run_demo(folder: Path, *, seed: int, rounds: int, small: bool) -> Results:
    """Run the demo into ``folder``, which may hold an earlier demo.

    Raises:
        UsageError: the folder holds something else.
        RunError: the federation failed; its logs stay in the folder.
    """
    _make_room(folder)
    with terminable():
        spec = _small(seed) if small else SyntheticSpec(seed=seed)
        made = render_silos(folder / "images", spec, workers=_RENDER_PROCESSES)
        silos = {silo.name: folder / "images" / silo.name for silo in made.silos}
        plan = _write_plan(folder, seed=seed, rounds=rounds)
        with LocalFederation(folder / "federation", federation=FEDERATION, silos=silos) as local:
            _run(local, plan)
            results = collect(local, FEDERATION)
            model = folder / "model.safetensors"
            export_model(local.data, None, "", model)
    ranked = _ranked(
        model, parse_plan(plan.read_text("utf-8")).backbone, next(iter(silos.values()))
    )
    page = write_report(results, folder, ranked=ranked)
    results = read(folder / "report.json")
    out.print(summary_table(results))
    for check in results.checks:
        say(f"{'met    ' if check.met else 'NOT MET'} {check.claim}")
    say(f"report: {page}")
    say(f"model:  {model} (signed release beside it)")
    return results


def _make_room(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        if not (folder / _MARK).exists():
            raise UsageError(
                f"{folder} holds something that is not a demo",
                next_step="Name another folder with --out, or empty it.",
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).touch()


def _small(seed: int) -> SyntheticSpec:
    return SyntheticSpec(
        seed=seed, unit_identities=4, test_identities=6, distractors=4, junk=2, public_images=48
    )


def _write_plan(folder: Path, *, seed: int, rounds: int) -> Path:
    tree = tomllib.loads((files("benchmark") / "plans" / "demo.toml").read_text("utf-8"))
    tree["seed"] = seed
    tree["rounds"] = rounds or tree["rounds"]
    tree["distillation"]["images"] = str((folder / "images" / "public").resolve())
    plan = folder / "plan.toml"
    plan.write_text(tomli_w.dumps(tree), "utf-8")
    return plan


def _run(local: LocalFederation, plan: Path) -> None:
    local.initialise()
    say(f"coordinator serves on {local.endpoint}, TLS 1.3 with client certificates")
    local.start_run(plan)
    for silo in local.silos:
        local.join(silo)
    board = Board()
    with Live(board.draw(), console=out, refresh_per_second=4, transient=False) as live:
        local.wait_until(
            lambda run: run.state == "finished" and not run.awaited_evaluations,
            timeout_s=_TIMEOUT_S,
            tell=lambda admin, run: live.update(board.update(admin, run)),
        )


class Board:
    """What a person sees while the rounds go on."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
        )
        self._task = self._bar.add_task("models", total=None)
        self._silos = Table()

    def draw(self) -> Group:
        """The board as it stands."""
        return Group(self._bar, self._silos)

    def update(self, admin: "AdminStub", run: admin_pb2.GetRunResponse) -> Group:
        """The board after another look at the coordinator."""
        self._bar.update(
            self._task,
            completed=run.rounds_published,
            total=run.rounds_planned,
            description=f"round {run.round.number} {run.round.phase}",
        )
        silos = admin.ListSilos(admin_pb2.ListSilosRequest()).silos
        told = every_evaluation(admin)
        self._silos = Table("silo", "does", "loss", "weight", "global rank-1", "standalone rank-1")
        parts = {part.silo: part for part in run.round.participants}
        for silo in silos:
            part = parts.get(silo.name)
            mine = [item for item in told if item.silo == silo.name]  # by round
            results = [evaluation_from_wire(item.evaluation) for item in mine]
            newest = {result.model: result for result in results}
            self._silos.add_row(
                silo.name,
                f"{silo.phase} {silo.progress:.0%}",
                f"{part.report.train_loss:.2f}" if part else "",
                f"{part.weight:.0%}" if part and part.weight else "",
                *(
                    f"{newest[kind].rank1:.0%}" if kind in newest else ""
                    for kind in ("global", "standalone")
                ),
            )
        return self.draw()


def _ranked(model: Path, backbone: BackbonePlan, dataset: Path) -> tuple[RankedQuery, ...]:
    from benchmark.ranking_picture import ranked_queries

    return ranked_queries(model, backbone, dataset, count=_QUERIES_SHOWN)
