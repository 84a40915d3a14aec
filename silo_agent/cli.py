"""The commands of an operator."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, Optional

import typer

from fedreid import launch
from fedreid.console import EXIT_CODES, out, progress_shown, run_program, say
from fedreid.errors import DatasetError, UsageError
from silo_agent.using import commands
from silo_agent.using.commands import DEFAULT_DATA, Confirm, Data, Json, Layout, Split

if TYPE_CHECKING:
    from fedreid.v1.federation_pb2 import HelloResponse
    from silo_agent.config import AgentConfig, Folders

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Take part in a federation with your own images; no image leaves this machine.",
    epilog=EXIT_CODES,
)
data_app = typer.Typer(no_args_is_help=True, help="The silo's images.")
egress_app = typer.Typer(no_args_is_help=True, help="What leaves this silo.")
audit_app = typer.Typer(no_args_is_help=True, help="What happened and what left, hash-chained.")
app.add_typer(data_app, name="data")
app.add_typer(egress_app, name="egress")
app.add_typer(audit_app, name="audit")
app.add_typer(commands.model_app, name="model")
app.command()(commands.evaluate)
app.command()(commands.embed)
app.command()(commands.search)

Images = Annotated[Path, typer.Argument(help="Folder of images.")]


Metrics = Annotated[
    Optional[str],  # noqa: UP045 - typer reads it
    typer.Option(
        "--metrics",
        help="HOST:PORT of plain HTTP for probes and Prometheus, such as 127.0.0.1:9465; "
        "default: none.",
    ),
]


Textfile = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option(
        "--metrics-textfile",
        help="FILE.prom in node_exporter's textfile folder, where nobody scrapes this machine; "
        "default: none.",
    ),
]


@app.command()
def join(
    coordinator: Annotated[str, typer.Option(help="HOST:PORT of the coordinator.")],
    dataset: Annotated[Path, typer.Option(help="Folder of the silo's images.")],
    token_file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="File with the join token, mode 0600; '-' = standard input. Only "
            "needed the first time; the environment variable FEDREID_JOIN_TOKEN "
            "does as well."
        ),
    ] = None,
    layout: Layout = "auto",
    split: Split = 0,
    confirm_withdrawn: Confirm = False,
    data: Data = DEFAULT_DATA,
    enrol_only: Annotated[
        bool, typer.Option("--enrol-only", help="Get the identity, then stop.")
    ] = False,
    rejoin: Annotated[
        bool, typer.Option("--rejoin", help="Replace the identity by a new token's; state stays.")
    ] = False,
    identity: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Instead of a token: folder of your own PKI's tls.crt, tls.key, ca.crt."),
    ] = None,
    model_key: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="With --identity: the coordinator's model-key.pub."),
    ] = None,
    metrics: Metrics = None,
    metrics_textfile: Textfile = None,
    policy: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Policy of docs/egress.md, TOML; default: the one of the data folder."),
    ] = None,
    processes: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, max=64, help="Training processes, one for each GPU; default: 1."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Try every step but the last; the token stays unused.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: print JSON.")] = False,
) -> None:
    """Join a federation and take part in its rounds until told to stop."""
    launch.prepare()
    from msgspec.structs import replace

    from silo_agent.config import (
        AgentConfig,
        Folders,
        load_config,
        load_membership,
        read_policy,
        save_config,
    )
    from silo_agent.egress import check_destination
    from silo_agent.service import run

    folders = Folders(data.resolve())
    before = load_config(folders) if folders.config.exists() else None
    kept = "" if before is None or rejoin else before.identity
    config = AgentConfig(
        coordinator=coordinator,
        dataset=str(dataset.resolve()),
        layout=layout,
        split=split,
        withdrawn_confirmed=confirm_withdrawn,
        identity=kept if identity is None else str(identity.resolve()),
        metrics=metrics or "",
        metrics_textfile="" if metrics_textfile is None else str(metrics_textfile.resolve()),
    )
    if before is not None:  # what is not said now stays as the operator has set it
        config = replace(
            config,
            policy=before.policy,
            processes=before.processes,
            compiled=before.compiled,
            metrics=before.metrics if metrics is None else metrics,
            metrics_textfile=config.metrics_textfile or before.metrics_textfile,
        )
    config = replace(
        config,
        policy=config.policy if policy is None else read_policy(policy),
        processes=processes or config.processes,
    )
    if dry_run:
        _try_to_join(folders, config, token_file, as_json=as_json)
    check_destination(coordinator, config.policy)
    _look_at(dataset, layout, split, confirm_withdrawn)
    if identity is not None:
        _adopt(folders, identity, model_key)
    elif rejoin or not (kept or _enrolled(folders)):
        _enrol(folders, token_file, coordinator)
    save_config(folders, config)
    membership = load_membership(folders)
    say(f"this is the silo {membership.silo} of the federation {membership.federation}")
    if not enrol_only:
        run(folders, say)


@app.command("run")
def run_agent(
    data: Data = DEFAULT_DATA, metrics: Metrics = None, metrics_textfile: Textfile = None
) -> None:
    """Go on taking part with the identity and settings of the data folder."""
    launch.prepare()
    from silo_agent.config import Folders
    from silo_agent.service import run

    run(Folders(data.resolve()), say, metrics_at=metrics, textfile=metrics_textfile)


@app.command()
def status(
    data: Data = DEFAULT_DATA,
    watch: Annotated[bool, typer.Option("--watch", help="Until Ctrl-C, as it changes.")] = False,
    connect: Annotated[
        bool,
        typer.Option(
            "--connect", help="Say hello to the coordinator; the exit code says if it answers."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Who this silo is, what it does now, and what its last round gave."""
    if connect:
        launch.prepare()
    from msgspec.structs import replace

    from fedreid.clock import SystemClock
    from fedreid.watching import draws
    from fedreid.watching import watch as watch_it
    from silo_agent.config import Folders, load_config
    from silo_agent.status import look_at_agent, print_status, status_of

    folders, clock = Folders(data.resolve()), SystemClock()
    if watch:
        drawn = draws(as_json=as_json)
        watch_it(lambda: look_at_agent(folders, clock, drawn=drawn), as_json=as_json)
        return
    status = status_of(folders, clock)
    if connect:
        greeting = _greeting(folders, load_config(folders))
        status = replace(status, coordinator_version=greeting.coordinator_version)
    print_status(status, as_json=as_json)


@app.command()
def report(data: Data = DEFAULT_DATA, as_json: Json = False) -> None:
    """Standalone, local and global model side by side, and which one to deploy."""
    from silo_agent.config import Folders
    from silo_agent.using.printing import print_report

    print_report(Folders(data.resolve()), as_json=as_json)


@app.command()
def doctor(
    data: Data = DEFAULT_DATA,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended.")] = False,
    as_json: Json = False,
) -> None:
    """Look through a stopped agent's data folder; the exit code says if it is whole."""
    from fedreid.checkup import print_findings
    from fedreid.clock import SystemClock
    from fedreid.files import held_alone
    from silo_agent.config import Folders, load_config
    from silo_agent.doctor import Doctor

    folders = Folders(data.resolve())
    load_config(folders)  # a folder without an agent is not to become one
    with held_alone(folders.root, by="agent"):
        examined = Doctor(folders, SystemClock(), repair=repair).examined()
        raise typer.Exit(print_findings(examined, as_json=as_json))


@app.command()
def leave(data: Data = DEFAULT_DATA) -> None:
    """Leave the federation: nothing of this silo is counted any more; local state stays."""
    launch.prepare()
    from fedreid.clock import SystemClock
    from silo_agent.config import Folders, load_config
    from silo_agent.trust.join import leave as leave_federation

    folders = Folders(data.resolve())
    asyncio.run(leave_federation(folders, load_config(folders), SystemClock()))
    say("this silo has left; to come back, join with a new token")


@data_app.command("check")
def data_check(
    path: Images,
    layout: Layout = "auto",
    split: Split = 0,
    confirm_withdrawn: Confirm = False,
    as_json: Json = False,
) -> None:
    """Count images, people and cameras, and say what can't be trained on."""
    from fedreid.datasets.checks import check
    from silo_agent.printing import print_check

    with progress_shown() as show:
        found = check(
            path,
            layout,
            split=split,
            withdrawn_confirmed=confirm_withdrawn,
            tell=lambda done, total: show("reading images", done / total),
        )
    print_check(found, as_json=as_json)
    if found.refusals:
        raise DatasetError(
            f"{path} can't be used: {found.refusals[0]}",
            next_step="Correct the images or their names, then check again.",
        )


@data_app.command("preview")
def data_preview(
    path: Images,
    layout: Layout = "auto",
    split: Split = 0,
    confirm_withdrawn: Confirm = False,
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("preview.png"),
) -> None:
    """Draw a contact sheet: a row per identity, a group of columns per camera."""
    from fedreid.datasets.layouts import load
    from silo_agent.preview import write_preview

    dataset = load(path, layout, split=split, withdrawn_confirmed=confirm_withdrawn)
    shown = write_preview(dataset, out)
    say(f"wrote {shown.path}: {shown.identities} identities in {shown.cameras} cameras")


@egress_app.command("show")
def egress_show(
    base: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A model file: show the most that an upload of its kind consists of."),
    ] = None,
    data: Data = DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """What the newest upload consists of, or the first will, by the very code that sends it."""
    from silo_agent.config import Folders
    from silo_agent.printing import print_egress

    print_egress(Folders(data.resolve()), base, as_json=as_json)


@commands.model_app.command("verify")
def model_verify(
    file: Annotated[Path, typer.Argument(help="A model that 'coordinator model export' wrote.")],
    release: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Its signed release; default: FILE.release."),
    ] = None,
    key: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="What 'coordinator model key' printed; default: this silo's own."),
    ] = None,
    data: Data = DEFAULT_DATA,
    as_json: Json = False,
) -> None:
    """Check offline that a model file is one that the federation's coordinator has signed."""
    from fedreid.errors import storage_errors
    from fedreid.pki.signing import public_from_pem
    from fedreid.wire.released import check_released, release_of
    from silo_agent.config import Folders, load_membership
    from silo_agent.printing import print_release

    federation = ""
    if key is None:
        membership = load_membership(Folders(data.resolve()))
        model_key, federation = membership.model_key, membership.federation
    else:
        with storage_errors("read", key):
            model_key = public_from_pem(key.read_bytes())
    stated = check_released(
        file, release or release_of(file), model_key=model_key, federation=federation
    )
    print_release(file, stated, as_json=as_json)


@audit_app.command("verify")
def audit_verify(data: Data = DEFAULT_DATA, as_json: Json = False) -> None:
    """Check the audit log's chain of hashes from its first line to its last."""
    from fedreid.audit_printing import print_verified
    from silo_agent.config import Folders

    print_verified(Folders(data.resolve()).audit, as_json=as_json)


@audit_app.command("show")
def audit_show(
    data: Data = DEFAULT_DATA,
    last: Annotated[int, typer.Option(help="How many lines; 0 = all.")] = 50,
    as_json: Json = False,
) -> None:
    """Print the newest lines of the audit log: every update that left, with its tensors."""
    from fedreid.audit_printing import print_lines
    from silo_agent.config import Folders

    print_lines(Folders(data.resolve()).audit, last=last, as_json=as_json)


def _greeting(folders: "Folders", config: "AgentConfig") -> "HelloResponse":
    from silo_agent.trust.channel import greeted

    return asyncio.run(greeted(folders, config))


def _enrolled(folders: "Folders") -> bool:
    from fedreid.pki.identity import IdentityStore

    return IdentityStore(folders.identity).exists() and folders.membership.exists()


def _enrol(folders: "Folders", token_file: Path | None, coordinator: str) -> None:
    from fedreid.clock import SystemClock
    from fedreid.pki import tokens
    from silo_agent.trust.join import enrol

    token = tokens.read(token_file)
    membership = asyncio.run(enrol(folders, token, coordinator, SystemClock(), say))
    out.print(f"enrolled as {membership.silo}", markup=False)


def _adopt(folders: "Folders", identity: Path, model_key: Path | None) -> None:
    from fedreid.clock import SystemClock
    from silo_agent.trust.join import adopt

    if model_key is None:
        raise UsageError(
            "--identity needs --model-key FILE",
            next_step="Ask the coordinator's operators for their file model-key.pub.",
        )
    adopt(folders, identity.resolve(), model_key, SystemClock())


def _try_to_join(
    folders: "Folders", config: "AgentConfig", token_file: Path | None, *, as_json: bool
) -> NoReturn:
    from fedreid.clock import SystemClock
    from silo_agent.printing import print_checks
    from silo_agent.trust.dry_run import DryRun

    run = DryRun(folders=folders, config=config, token_file=token_file, clock=SystemClock())
    raise typer.Exit(print_checks(run.checks(), as_json=as_json))


def _look_at(dataset: Path, layout: str, split: int, withdrawn_confirmed: bool) -> None:
    """Look at the folder before a token is spent on it: refuse it, or warn of its faults."""
    from fedreid.datasets.checks import refusals, warnings
    from fedreid.datasets.layouts import load

    found = load(dataset, layout, split=split, withdrawn_confirmed=withdrawn_confirmed)
    refused = refusals(found)
    if refused:
        raise DatasetError(
            f"{dataset} can't be used: {refused[0]}",
            next_step=f"See: silo-agent data check {dataset}.",
        )
    for sentence in warnings(found):
        say(f"warning: {sentence}")


def main() -> None:
    """The console script ``silo-agent``."""
    run_program(app)
