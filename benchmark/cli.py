"""The commands for whole federations on one machine."""

import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Optional

import msgspec
import typer

from fedreid import launch
from fedreid.console import err, print_json, print_table, run_program, say
from fedreid.errors import RunError
from fedreid.limits import CONCURRENT_TRANSFERS

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Whole federations on one machine: generated silos, the demo, reports.",
)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for silos, models and report.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, typer.Option(help="Seed of images and training.")] = 0,
    rounds: Annotated[int, typer.Option(help="Rounds; 0 = as the plan says.")] = 0,
    small: Annotated[
        bool, typer.Option("--small", help="A few people per silo: quick, and learns little.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail if the numbers do not keep the promises.")
    ] = False,
) -> None:
    """Run a real federation of four generated silos and write a report."""
    launch.prepare()
    from benchmark.demo import run_demo

    results = run_demo(out, seed=seed, rounds=rounds, small=small)
    broken = [check.claim for check in results.checks if not check.met]
    if strict and broken:
        raise RunError(
            f"{len(broken)} promises are not kept",
            why=broken[0],
            next_step=f"See {out}/report.html.",
        )


@app.command()
def synth(
    out: Annotated[Path, typer.Argument(help="New folder for the silos.")],
    silos: Annotated[int, typer.Option(help="How many silos.")] = 4,
    unit_identities: Annotated[int, typer.Option(help="Identities per unit of size.")] = 15,
    test_identities: Annotated[int, typer.Option(help="Identities in each test set.")] = 48,
    public_images: Annotated[int, typer.Option(help="Unlabelled public images.")] = 400,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    workers: Annotated[int, typer.Option(help="Processes.")] = 2,
    colour_shift: Annotated[bool, typer.Option(help="Cameras differ in colours.")] = True,
) -> None:
    """Render silos of procedural pedestrians in Market-1501 naming."""
    from benchmark.silos import render_silos
    from fedreid.datasets.synthetic import SyntheticSpec

    spec = SyntheticSpec(
        silos=silos,
        unit_identities=unit_identities,
        test_identities=test_identities,
        public_images=public_images,
        seed=seed,
        colour_shift=colour_shift,
    )
    render_silos(out, spec, workers=workers)


@app.command()
def run(
    bench: Annotated[
        Path, typer.Argument(help="BENCH.toml: a file, or one that comes with the benchmark.")
    ],
    out: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads it
        typer.Option(help="Folder of the run; by default runs/NAME. An unfinished one goes on."),
    ] = None,
    transport: Annotated[
        str, typer.Option(help="local: in one process; grpc: real coordinator and agents.")
    ] = "",
    workers: Annotated[int, typer.Option(help="Cells at a time; 0 = as the file says.")] = 0,
    seeds: Annotated[str, typer.Option(help="Seeds, such as 0,1,2, instead of the file's.")] = "",
) -> None:
    """Run a grid of methods, scenarios and seeds, and write its report."""
    launch.prepare()
    from benchmark.bench import load_bench
    from benchmark.drawing import draw_again
    from benchmark.grid import run_grid

    loaded = load_bench(bench, transport=transport, workers=workers, seeds=seeds)
    folder = out or Path("runs") / loaded.name
    run_grid(loaded, bench.parent, folder)
    say(f"wrote {draw_again(folder)}")


@app.command()
def guards(
    data: Annotated[Path, typer.Argument(help="Folder that synth has made.")],
    trainers: Annotated[int, typer.Option(help="How many silos train a backbone alone.")] = 2,
    epochs: Annotated[int, typer.Option(help="Epochs of each.")] = 16,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare trained and untrained backbones and colours on every silo's test set (mAP)."""
    launch.prepare()
    from benchmark.guards import measure_guards

    rows = measure_guards(
        data, trainers=trainers, epochs=epochs, threads=threads, tell=lambda progress: None
    )
    if as_json:
        print_json(rows)
        return
    silos = list(next(iter(rows.values())))
    cells = [(name, *(f"{row[silo]:.1%}" for silo in silos)) for name, row in rows.items()]
    print_table("mAP on each silo's test set", ("ranked by", *silos), cells)


@app.command()
def ranking(
    size: Annotated[str, typer.Option(help="market1501, msmt17 or tiny.")] = "market1501",
    width: Annotated[int, typer.Option(help="Width of the features.")] = 512,
    runs: Annotated[int, typer.Option(help="Timed runs of each method, taking turns.")] = 5,
    threads: Annotated[int, typer.Option(help="Threads of each method.")] = 2,
    peer_python: Annotated[
        Path, typer.Option(help="Interpreter that has torchreid; default: this one.")
    ] = Path(sys.executable),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time our evaluation beside torchreid's: features in, metrics out."""
    from benchmark.ranking import measure_ranking, table_of

    timings = measure_ranking(
        size, width=width, runs=runs, threads=threads, peer_python=peer_python
    )
    if as_json:
        print_json([timing.to_json() for timing in timings])
        return
    columns, rows = table_of(timings)
    print_table(f"{size}, {width} wide, {threads} threads, {runs} runs", columns, rows)


@app.command()
def training(
    model: Annotated[str, typer.Option(help="A torchvision model's name.")] = "resnet18",
    images: Annotated[int, typer.Option(help="Images in an epoch.")] = 128,
    batch: Annotated[int, typer.Option(help="Images in a step.")] = 32,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    epochs: Annotated[int, typer.Option(help="Epochs of each loop; the median counts.")] = 3,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Ours with torch.compile, anew in each epoch.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare our training's images/s with a plain PyTorch loop's, data loading included."""
    from benchmark.training import measure_training, rows, trial_of

    trial = trial_of(model, images, batch, threads, epochs, compiled=compiled)
    result = measure_training(trial, err.print)
    if as_json:
        print_json(asdict(result))
        return
    print_table(f"{model} at 256×128, batches of {batch}", ("measured", ""), rows(result))


@app.command("serving-load")
def serving_load(
    silos: Annotated[int, typer.Option(help="How many light agents take part.")] = 256,
    rounds: Annotated[int, typer.Option(help="Whole rounds.")] = 3,
    model_mb: Annotated[float, typer.Option(help="Size of the model; the nearest is taken.")] = 1.0,
    transfers: Annotated[
        int,
        typer.Option(help="Silos that fetch, and that send, at once: the plan's wire.transfers."),
    ] = CONCURRENT_TRANSFERS,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Drive one coordinator with very many agents that speak the whole protocol."""
    launch.prepare()
    from benchmark.serving_load import measure_load, rows

    load = measure_load(silos, rounds, model_mb, err.print, transfers=transfers)
    if as_json:
        print_json(msgspec.to_builtins(load))
        return
    title = f"{load.silos} silos, {load.model}, {load.model_bytes:,} bytes, {load.rounds} rounds"
    print_table(title, ("measured", ""), rows(load))


@app.command()
def distillation(
    model: Annotated[str, typer.Option(help="A torchvision model's name.")] = "resnet18",
    teachers: Annotated[str, typer.Option(help="Numbers of teachers, such as 2,8.")] = "2,8,32",
    images: Annotated[int, typer.Option(help="Public images.")] = 64,
    batch: Annotated[int, typer.Option(help="Images in a step.")] = 32,
    epochs: Annotated[int, typer.Option(help="Passes of the student over them.")] = 1,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    repeats: Annotated[int, typer.Option(help="Runs of each loop; the median counts.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare our distillation with a loop that asks all teachers for each batch."""
    from benchmark.distilling import distilling_trial, measure_distilling, table_of

    trial = distilling_trial(
        model, images, teachers, batch=batch, epochs=epochs, threads=threads, repeats=repeats
    )
    results = measure_distilling(trial, err.print)
    if as_json:
        print_json([asdict(result) for result in results])
        return
    columns, lines = table_of(results)
    print_table(f"{model} at 256×128, {images} public images", columns, lines)


@app.command()
def transport(
    silos: Annotated[int, typer.Option(help="Agents, each a process of its own.")] = 4,
    model: Annotated[str, typer.Option(help="A torchvision model's name.")] = "resnet50",
    encoding: Annotated[str, typer.Option(help="Of both ways, as a plan names it.")] = "fp32",
    rounds: Annotated[int, typer.Option(help="Measured rounds; the medians count.")] = 5,
    peer: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads it
        typer.Option(
            metavar="NAME=PYTHON",
            help="Another framework (flower, nvflare) and an interpreter that has it; "
            "may be repeated.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Time rounds without learning, beside the bare limit of this machine in the same run."""
    launch.prepare()
    from benchmark.peers.peer import peers_of
    from benchmark.transport import encoding_of, measure_transport, rows

    result = measure_transport(
        silos=silos,
        model=model,
        encoding=encoding_of(encoding),
        rounds=rounds,
        tell=err.print,
        peers=peers_of(peer or ()),
    )
    if as_json:
        print_json(asdict(result))
        return
    print_table(f"{silos} silos, {model}, {encoding}", ("measured", ""), rows(result))


@app.command()
def scaling(
    out: Annotated[Path, typer.Option(help="Folder for table, pictures and figures.")] = Path(
        "runs/scaling"
    ),
    silos: Annotated[int, typer.Option(help="The most silos; from 2 on, doubled each time.")] = 16,
    rounds: Annotated[int, typer.Option(help="Measured rounds of each; the medians count.")] = 5,
) -> None:
    """How null rounds grow with silos, with bytes and by encoding, as table and pictures."""
    launch.prepare()
    from benchmark.scaling import measure_scaling, points_to, write_figures, write_scaling

    keep = partial(write_figures, folder=out)  # or an interruption would lose all of it
    measured = measure_scaling(points_to(silos), rounds=rounds, tell=err.print, keep=keep)
    write_scaling(measured, out)
    say(f"written to {out}")


@app.command()
def starting(
    starts: Annotated[int, typer.Option(help="Starts of each; the medians count.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """How long a coordinator takes to serve, and an agent to greet it."""
    launch.prepare()
    from benchmark.starting import measure_starting, rows

    result = measure_starting(starts=starts, tell=err.print)
    if as_json:
        print_json(msgspec.to_builtins(result))
        return
    print_table(f"{starts} starts", ("measured", ""), rows(result))


@app.command()
def indexing(
    files: Annotated[int, typer.Option(min=1, help="Images of each folder.")] = 100_000,
    repeats: Annotated[int, typer.Option(min=1, help="Times that each is indexed.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """How many files a second datasets are indexed: the median of several times."""
    from benchmark.indexing import measure_indexing

    results = measure_indexing(files, repeats=repeats)
    if as_json:
        print_json(msgspec.to_builtins(results))
        return
    rows = [
        (
            r.layout,
            f"{r.files:,}",
            f"{r.median_s:.3f}",
            f"{r.slowest_s:.3f}",
            f"{r.files_per_s:,.0f}",
        )
        for r in results
    ]
    columns = ("layout", "files", "median, s", "slowest, s", "files/s")
    print_table(f"Indexing, {repeats} times each", columns, rows)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a demo or of a grid.")],
    best: Annotated[
        str, typer.Option(help="Of a grid: the method judged, by default as its bench says.")
    ] = "",
    reference: Annotated[str, typer.Option(help="Of a grid: the one it is compared with.")] = "",
) -> None:
    """Write a run's report again from its measured figures."""
    from benchmark.drawing import draw_again

    say(f"wrote {draw_again(run, best=best, reference=reference)}")


def main() -> None:
    """The console script ``fedreid-bench``."""
    run_program(app)
