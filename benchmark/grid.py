"""How does a grid of cells get done? One process a cell, and what is finished is never done again.

::

    RUN/
    ├── bench.json               which bench it is
    ├── data/seed-0/             generated silos
    ├── cells/SCENARIO-METHOD-s0/
    │   ├── cell.json            when it is finished
    │   └── …                    federations under way
    └── report.html, report.md, results.csv, results.parquet, *.png
"""

import importlib.metadata
import os
import platform
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import active_children, get_context
from pathlib import Path

import msgspec
import tomli_w
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmark.attack import tampering
from benchmark.bench import Bench, MethodSpec, ScenarioSpec, method_plan
from benchmark.cells import (
    BENCH_NAME,
    CELL_NAME,
    CELLS,
    CellResult,
    Transport,
    read_cell,
    read_cells,
    write_cell,
)
from benchmark.collecting import PACKAGES, measured_rounds
from benchmark.federation import LocalFederation, terminable
from benchmark.local import PROGRESS_NAME, LocalResult, LocalRun
from benchmark.pretraining import pretrained
from benchmark.results import Accuracy, ModelKind, RoundResult
from benchmark.scenarios import UNION, Scenario, Source, build, union
from benchmark.silos import drawn_silos
from fedreid.console import err, say
from fedreid.datasets.layouts import REPEATS
from fedreid.errors import ExitCode, FedreidError, RunError, UsageError
from fedreid.files import held_alone, make_folder, remove_folder, write_bytes
from fedreid.plan import Plan, parse_plan

_POLL_S = 0.5
_FAILURE_NAME = "failure.txt"
_SPARE_S = 600.0


class _Reached(msgspec.Struct):
    """As much of a run's progress as a bar needs."""

    rounds: list[msgspec.Raw]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell to be run."""

    bench: str
    method: MethodSpec
    scenario: ScenarioSpec
    seed: int
    transport: Transport
    folder: Path
    plan: Plan
    sources: dict[str, Source]

    @property
    def finished(self) -> bool:
        """Whether its result is there.

        Raises:
            RunError: the result is that of another plan.
        """
        if not (self.folder / CELL_NAME).exists():
            return False
        result = read_cell(self.folder)
        before = parse_plan(result.plan)
        same_plan = before == _with_everybody(self.plan, before.quorum.min_silos)
        if same_plan and result.policy == self.method.policy:
            return True
        raise RunError(
            f"The cell {self.folder.name} was run with another plan",
            next_step=f"Remove {self.folder} to run it again, or name another --out.",
        )


def run_grid(bench: Bench, bench_folder: Path, out: Path) -> list[CellResult]:
    """Run what is not finished yet of a grid; the results of all finished cells.

    Raises:
        UsageError: the folder holds another bench.
        RunError: some cells failed; the others are done, and the next run tries those again.
        FedreidError: a plan or dataset that can't be used.
    """
    _claim(bench, out)
    start = pretrained(bench, out)
    cells = [cell for seed in bench.seeds for cell in _cells(bench, bench_folder, out, seed, start)]
    left = [cell for cell in cells if not cell.finished]
    say(f"{len(cells)} cells, {len(cells) - len(left)} of them finished already")
    failed = _run(left, bench.workers if bench.transport == "local" else 1)
    if failed:
        name, why = failed[0]
        raise RunError(
            f"{len(failed)} of {len(cells)} cells failed, the first is {name}",
            why=why,
            next_step="Run the same command again to try them again; the others are kept.",
        )
    return read_cells(out)


def _claim(bench: Bench, out: Path) -> None:
    """Note which bench a folder belongs to: cells of two would not be comparable."""
    path = make_folder(out) / BENCH_NAME
    if not path.exists() and any(out.iterdir()):
        raise UsageError(
            f"{out} is not empty, and no benchmark", next_step="Name another folder with --out."
        )
    if path.exists() and not _continues(msgspec.json.decode(path.read_bytes(), type=Bench), bench):
        raise UsageError(
            f"{out} holds the benchmark with other images or overrides",
            next_step="Name another folder with --out, or remove that one.",
        )
    write_bytes(path, msgspec.json.encode(bench))


def _continues(before: Bench, bench: Bench) -> bool:
    """Whether cells of the one may stand beside cells of the other.

    More methods, scenarios, seeds or workers are welcome.
    """
    return all(
        getattr(before, name) == getattr(bench, name)
        for name in ("name", "transport", "generated", "datasets", "public", "override")
    )


def _cells(
    bench: Bench, bench_folder: Path, out: Path, seed: int, start: Path | None
) -> Iterator[Cell]:
    sources, public = _images(bench, out, seed)
    for scenario in bench.scenarios:
        chosen = _chosen(scenario, sources)
        for method in bench.methods:
            name = f"{scenario.label}-{method.name}-s{seed}"
            plan = method_plan(
                bench, method, bench_folder, name=name, seed=seed, public=public, start=start
            )
            yield Cell(
                bench=bench.name,
                method=method,
                scenario=scenario,
                seed=seed,
                transport=bench.transport if method.kind == "federated" else "local",
                folder=out / CELLS / name,
                plan=plan,
                sources=chosen,
            )


def _images(bench: Bench, out: Path, seed: int) -> tuple[dict[str, Source], str]:
    """The datasets by name, and the folder of public images."""
    if bench.generated is None:
        folders = bench.datasets.items()
        sources = {
            name: Source(
                name=name,
                path=Path(folder.path),
                layout=folder.layout,
                split=seed % REPEATS if folder.split is None else folder.split,
                withdrawn_confirmed=folder.withdrawn_confirmed,
            )
            for name, folder in folders
        }
        return sources, bench.public
    data = out / "data" / f"seed-{seed}"
    spec = bench.generated.spec(seed)
    silos = drawn_silos(data, spec, workers=bench.workers)
    return silos, str((data / "public").resolve()) if spec.public_images else ""


def _chosen(scenario: ScenarioSpec, sources: dict[str, Source]) -> dict[str, Source]:
    if not scenario.datasets:
        return sources
    unknown = [name for name in scenario.datasets if name not in sources]
    if unknown:
        raise UsageError(
            f"The scenario {scenario.label} names the dataset {unknown[0]!r}",
            next_step=f"There are: {', '.join(sorted(sources))}.",
        )
    return {name: sources[name] for name in scenario.datasets}


def _run(cells: Sequence[Cell], workers: int) -> list[tuple[str, str]]:
    """Run cells side by side with a bar for each; names and reasons of those that failed."""
    failed: list[tuple[str, str]] = []
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err) as bar, _processes(workers) as pool:
        overall = bar.add_task("cells", total=len(cells))
        under_way: dict[Future[str], Cell] = {pool.submit(_in_process, c): c for c in cells}
        bars = {cell.folder: bar.add_task(cell.folder.name, total=cell.plan.rounds, visible=False)
                for cell in cells}  # fmt: skip
        while under_way:
            done, _ = wait(under_way, timeout=_POLL_S, return_when=FIRST_COMPLETED)
            for cell in under_way.values():
                reached = _rounds_done(cell)
                bar.update(bars[cell.folder], completed=reached, visible=reached > 0)
            for future in done:
                cell = under_way.pop(future)
                bar.update(bars[cell.folder], visible=False)
                bar.advance(overall)
                why = _outcome(future)
                if why:
                    failed.append((cell.folder.name, why))
                    bar.console.print(f"{cell.folder.name} failed: {why}", markup=False)
    return failed


@contextmanager
def _processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with the block, however it ends."""
    # Spawned: a fork would copy locks of torch and gRPC threads in whatever state they are.
    pool = ProcessPoolExecutor(
        count, mp_context=get_context("spawn"), initializer=_leave_interrupts_to_the_parent
    )
    try:
        with terminable():
            yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in active_children():
            child.terminate()
        raise
    pool.shutdown()


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _in_process(cell: Cell) -> str:
    """Run a cell in a process that the parent may terminate; a federation ends with it."""
    try:
        with terminable():
            return run_cell(cell)
    except KeyboardInterrupt:
        os._exit(int(ExitCode.INTERRUPTED))  # or the pool would give this process the next cell


def _outcome(future: Future[str]) -> str:
    try:
        return future.result()
    except BrokenProcessPool as error:
        return f"its process died: {error}"


def _rounds_done(cell: Cell) -> int:
    """How many rounds are finished, of a baseline those of the silo that is least far."""
    counts = [
        len(msgspec.json.decode(path.read_bytes(), type=_Reached).rounds)
        for path in cell.folder.glob(f"*/{PROGRESS_NAME}")
    ]
    return min(counts, default=0)


def run_cell(cell: Cell) -> str:
    """Run one cell and write its result; the reason if it failed."""
    begun = time.monotonic()
    try:
        with held_alone(make_folder(cell.folder), by="benchmark"):
            result = _measured(cell)
    except FedreidError as error:
        why = str(error)
        write_bytes(cell.folder / _FAILURE_NAME, why.encode())
        return why
    seconds = max(result.seconds, time.monotonic() - begun)
    write_cell(cell.folder, msgspec.structs.replace(result, seconds=seconds))
    for path in cell.folder.iterdir():  # models and updates: large, and of no further use
        if path.is_dir():
            shutil.rmtree(path)
    return ""


def _measured(cell: Cell) -> CellResult:
    scenario = build(
        cell.scenario.kind,
        cell.sources,
        cell.folder / "silos",
        parts=cell.scenario.silos,
        seed=cell.seed,
    )
    cell = replace(cell, plan=_with_everybody(cell.plan, len(scenario.silos)))
    if cell.method.kind == "standalone":
        done = _standalone(cell, scenario)
    elif cell.method.kind == "centralised":
        whole = {UNION: union(cell.sources, cell.folder / "silos" / UNION)}
        done = LocalRun(
            cell.folder / "federation",
            federation=cell.bench,
            plan=_alone(cell.plan),
            silos=whole,
            tests=scenario.silos,
        ).run()
    elif cell.transport == "grpc":
        done = _over_grpc(cell, scenario)
    else:
        done = LocalRun(
            cell.folder / "federation",
            federation=cell.bench,
            plan=cell.plan,
            silos=scenario.silos,
            tamper=tampering(cell.method.attack) if cell.method.attack else None,
            policy=cell.method.policy,
        ).run()
    return CellResult(
        bench=cell.bench,
        method=cell.method.name,
        scenario=cell.scenario.label,
        scenario_kind=cell.scenario.kind,
        seed=cell.seed,
        kind=cell.method.kind,
        transport=cell.transport,
        plan=tomli_w.dumps(msgspec.to_builtins(cell.plan)),
        policy=cell.method.policy,
        silos=scenario.uses,
        untrained=done.untrained,
        rounds=done.rounds,
        seconds=done.seconds,
        versions={
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in PACKAGES},
        },
    )


def _standalone(cell: Cell, scenario: Scenario) -> LocalResult:
    """Each silo as a federation of one; their rounds laid over each other."""
    alone = {
        silo: LocalRun(
            cell.folder / silo, federation=cell.bench, plan=_alone(cell.plan), silos={silo: folder}
        ).run()
        for silo, folder in scenario.silos.items()
    }
    rounds = zip(*(result.rounds for result in alone.values()), strict=True)
    return LocalResult(
        untrained={
            silo: result.untrained[silo] for silo, result in alone.items() if result.untrained
        },
        rounds=tuple(_overlaid(dict(zip(alone, same, strict=True))) for same in rounds),
        seconds=sum(result.seconds for result in alone.values()),
    )


def _overlaid(by_silo: dict[str, RoundResult]) -> RoundResult:
    first = next(iter(by_silo.values()))
    evaluations: dict[str, dict[ModelKind, Accuracy]] = {
        silo: {"standalone": one.evaluations[silo]["global"]}
        for silo, one in by_silo.items()
        if "global" in one.evaluations.get(silo, {})
    }
    return RoundResult(
        number=first.number,
        model_digest="",
        participants=(),
        weights={},
        cosine_distances={},
        phase_seconds={},
        upload_bytes=0,
        download_bytes=0,
        evaluations=evaluations,
    )


def _with_everybody(plan: Plan, silos: int) -> Plan:
    """The plan with all silos in each round, or the outcome would depend on who came first."""
    quorum = msgspec.structs.replace(plan.quorum, min_silos=silos, min_fraction=1.0)
    return msgspec.structs.replace(plan, quorum=quorum)


def _alone(plan: Plan) -> Plan:
    """The plan for a federation of one: nobody to wait for, nobody to learn from."""
    return msgspec.structs.replace(
        plan,
        quorum=msgspec.structs.replace(plan.quorum, min_silos=1),
        distillation=msgspec.structs.replace(plan.distillation, images=""),
        aggregation=msgspec.structs.replace(
            plan.aggregation, bn="pooled", clustering="none", normalisation="none",
            server_learning_rate=1.0, server_momentum=0.0,
        ),
    )  # fmt: skip


def _over_grpc(cell: Cell, scenario: Scenario) -> LocalResult:
    root = cell.folder / "federation"
    remove_folder(root)
    plan = cell.folder / "plan.toml"
    plan.write_text(tomli_w.dumps(msgspec.to_builtins(cell.plan)), "utf-8")
    silos = {silo: folder.path for silo, folder in scenario.silos.items()}
    flags = {silo: folder.flags for silo, folder in scenario.silos.items()}
    begun = time.monotonic()
    with LocalFederation(root, federation=cell.bench, silos=silos, flags=flags) as local:
        local.initialise()
        local.start_run(plan)
        for silo in silos:
            local.join(silo)
        quorum = cell.plan.quorum
        local.wait_until(
            lambda run: run.state == "finished" and not run.awaited_evaluations,
            timeout_s=_SPARE_S
            + cell.plan.rounds * (quorum.deadline_s + 3 * quorum.phase_deadline_s),
        )
        with local.admin() as admin:
            untrained, rounds = measured_rounds(admin)
    return LocalResult(untrained=untrained, rounds=rounds, seconds=time.monotonic() - begun)
