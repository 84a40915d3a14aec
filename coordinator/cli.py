"""The commands of the platform team."""

import re
from pathlib import Path
from typing import Annotated, Optional

import typer

from coordinator import installing, membership, upkeep
from coordinator.options import Address, Data, Json
from fedreid import launch
from fedreid.console import EXIT_CODES, instant, out, print_json, print_table, run_program, say
from fedreid.errors import UsageError
from fedreid.limits import TOKEN_TTL_S

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Coordinate a federation: trust, runs, rounds and models.",
    epilog=EXIT_CODES,
)
token_app = typer.Typer(no_args_is_help=True, help="Join tokens.")
silo_app = typer.Typer(no_args_is_help=True, help="Silos of the federation.")
run_app_ = typer.Typer(no_args_is_help=True, help="Runs: plans that are carried out.")
round_app = typer.Typer(no_args_is_help=True, help="Rounds of a run.")
model_app = typer.Typer(no_args_is_help=True, help="Published models.")
config_app = typer.Typer(no_args_is_help=True, help="Settings.")
audit_app = typer.Typer(no_args_is_help=True, help="What has happened, hash-chained.")
app.command()(installing.init)
app.command("init-secrets")(installing.init_secrets)
app.command()(installing.ping)
app.command()(upkeep.doctor)
app.command()(upkeep.backup)
app.command()(upkeep.restore)
silo_app.command("approve")(membership.approve)
silo_app.command("suspend")(membership.suspend)
silo_app.command("resume")(membership.resume)
silo_app.command("register")(membership.register)
for name, group in (
    ("token", token_app),
    ("silo", silo_app),
    ("ca", membership.ca_app),
    ("run", run_app_),
    ("round", round_app),
    ("model", model_app),
    ("config", config_app),
    ("audit", audit_app),
):
    app.add_typer(group, name=name)


@config_app.command("check")
def config_check(data: Data) -> None:
    """Check settings and identities without starting."""
    from coordinator.config import load_authority, load_config
    from coordinator.folders import Folders
    from fedreid.clock import SystemClock
    from fedreid.pki.identity import IdentityStore, check_not_expired

    folders = Folders(data)
    outside = load_config(folders).pki.files(folders.root)
    if outside is not None:
        outside.load()
    load_authority(folders)
    for store in (folders.server, folders.admin):
        check_not_expired(IdentityStore(store).load(), SystemClock())
    say(f"{folders.config} and the identities beside it are fine")


@config_app.command("show")
def config_show(data: Data) -> None:
    """Print the settings in force."""
    import msgspec

    from coordinator.config import load_config
    from coordinator.folders import Folders

    print_json(msgspec.to_builtins(load_config(Folders(data))))


@app.command()
def serve(
    data: Data,
    listen: Annotated[Optional[str], typer.Option(help="HOST:PORT of gRPC.")] = None,  # noqa: UP045
    metrics: Annotated[Optional[str], typer.Option(help="HOST:PORT of HTTP.")] = None,  # noqa: UP045
) -> None:
    """Serve the federation until SIGTERM or Ctrl-C."""
    launch.prepare()
    from coordinator.server import serve as serve_forever

    serve_forever(data, listen=listen, metrics=metrics, say=say)


@app.command()
def report(
    out_file: Annotated[Path, typer.Argument(metavar="OUT", help="HTML file to write.")],
    data: Data,
    coordinator: Address = None,
) -> None:
    """Write the current run as one HTML page: figures, shares, durations, rejections, models."""
    from coordinator.gathered import gather
    from coordinator.report import write_report
    from fedreid.clock import SystemClock

    write_report(gather(data, coordinator, SystemClock()), out_file)
    say(f"wrote {out_file}; it holds everything it shows, and can be mailed")


@token_app.command("create")
def token_create(
    data: Data,
    silo: Annotated[str, typer.Option(help="The one silo that the token is for.")],
    ttl: Annotated[str, typer.Option(help="Time to live: 30m, 1h, 2d.")] = f"{TOKEN_TTL_S:.0f}s",
    public: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--address", help="HOST:PORT that the silo dials; default: from the settings."
        ),
    ] = None,
    out_file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--out", help="Write it to a file of mode 0600 instead of printing it."),
    ] = None,
    coordinator: Address = None,
) -> None:
    """Mint a join token for one silo."""
    from coordinator.client import admin_of
    from coordinator.config import dialled_address, load_config
    from coordinator.folders import Folders
    from fedreid.files import write_bytes
    from fedreid.names import silo_name
    from fedreid.v1 import admin_pb2

    folders = Folders(data)
    request = admin_pb2.CreateTokenRequest(
        silo=silo_name(silo),
        ttl_s=_seconds(ttl),
        coordinator=public or dialled_address(folders, load_config(folders)),
    )
    with admin_of(data, coordinator) as admin:
        token = admin.CreateToken(request)
    if out_file is None:
        out.print(token.token, markup=False, soft_wrap=True)
        return
    write_bytes(out_file, token.token.encode() + b"\n", mode=0o600)
    say(f"wrote a token for {silo} to {out_file}, good until {instant(token.expires_at_s)}")


@silo_app.command("list")
def silo_list(data: Data, coordinator: Address = None, as_json: Json = False) -> None:
    """Every silo and what it does now."""
    from coordinator.client import admin_of, tree_of
    from fedreid.pki.certificates import short_fingerprint
    from fedreid.v1 import admin_pb2

    with admin_of(data, coordinator) as admin:
        silos = admin.ListSilos(admin_pb2.ListSilosRequest()).silos
    if as_json:
        print_json([tree_of(silo) for silo in silos])
        return
    rows = [
        (
            silo.name,
            silo.state,
            silo.reason,
            instant(silo.last_seen_s) if silo.last_seen_s else "never",
            f"{silo.phase} {silo.progress:.0%}" if silo.phase else "",
            instant(silo.certificate_not_after_s) if silo.certificate_not_after_s else "",
            silo.agent_version,
        )
        for silo in silos
    ]
    columns = (
        "silo", "state", "why", "last seen", "does", "certificate ends", "agent",
    )  # fmt: skip
    print_table("Silos", columns, rows)
    for silo in silos:
        if silo.state == "pending":
            fingerprint = short_fingerprint(silo.key_fingerprint)
            say(f"{silo.name} awaits approval; its key's fingerprint is {fingerprint}")


@silo_app.command("revoke")
def silo_revoke(
    name: Annotated[str, typer.Argument(help="The silo.")], data: Data, coordinator: Address = None
) -> None:
    """Withdraw a silo's identity; in force when this command returns."""
    from coordinator.client import admin_of
    from fedreid.v1 import admin_pb2

    with admin_of(data, coordinator) as admin:
        admin.RevokeSilo(admin_pb2.RevokeSiloRequest(silo=name))
    say(f"{name} is revoked")


@run_app_.command("start")
def run_start(
    plan: Annotated[Path, typer.Argument(help="The plan, TOML.")],
    data: Data,
    coordinator: Address = None,
    if_new: Annotated[
        bool,
        typer.Option("--if-new", help="Do nothing if the newest run is of this plan's name."),
    ] = False,
) -> None:
    """Start a run from a plan."""
    from coordinator.client import admin_of
    from fedreid.plan import load_plan
    from fedreid.v1 import admin_pb2

    name = load_plan(plan).name
    with admin_of(data, coordinator) as admin:
        newest = admin.GetRun(admin_pb2.GetRunRequest()) if if_new else None
        if newest is not None and newest.run == name:
            say(f"the run {name} is {newest.state} already")
            return
        started = admin.StartRun(admin_pb2.StartRunRequest(plan_toml=plan.read_text("utf-8")))
    say(f"the run {started.run} has started; watch it: coordinator run status --watch")


@run_app_.command("status")
def run_status(
    data: Data,
    coordinator: Address = None,
    watch: Annotated[bool, typer.Option("--watch", help="Until the run has ended.")] = False,
    as_json: Json = False,
) -> None:
    """What the current run is doing."""
    from coordinator.watching import look_at_run
    from fedreid.watching import draws
    from fedreid.watching import watch as watch_it

    if watch:
        drawn = draws(as_json=as_json)
        watch_it(lambda: look_at_run(data, coordinator, drawn=drawn), as_json=as_json)
        return
    look = look_at_run(data, coordinator, drawn=False)
    if as_json:
        print_json(look.tree)
    else:
        say(look.line)


def _control(data: Path, coordinator: str | None, command: str) -> None:
    from coordinator.client import admin_of
    from fedreid.v1 import admin_pb2

    value = admin_pb2.RunCommand.Value(f"RUN_COMMAND_{command.upper()}")
    with admin_of(data, coordinator) as admin:
        answer = admin.ControlRun(admin_pb2.ControlRunRequest(command=value))
    say(f"the run is {answer.state}")


@run_app_.command("pause")
def run_pause(data: Data, coordinator: Address = None) -> None:
    """Open no further round until resumed."""
    _control(data, coordinator, "pause")


@run_app_.command("resume")
def run_resume(data: Data, coordinator: Address = None) -> None:
    """Go on with a paused run."""
    _control(data, coordinator, "resume")


@run_app_.command("stop")
def run_stop(data: Data, coordinator: Address = None) -> None:
    """End the run; its last published model stays."""
    _control(data, coordinator, "stop")


@run_app_.command("change")
def run_change(
    plan: Annotated[Path, typer.Argument(help="The whole plan as it shall be, TOML.")],
    data: Data,
    coordinator: Address = None,
    as_json: Json = False,
) -> None:
    """Change rounds, deadlines, quorum or how silos train, from the run's next round on."""
    from coordinator.client import admin_of, tree_of
    from fedreid.plan import load_plan
    from fedreid.v1 import admin_pb2

    load_plan(plan)
    request = admin_pb2.ChangeRunRequest(plan_toml=plan.read_text("utf-8"))
    with admin_of(data, coordinator) as admin:
        changed = admin.ChangeRun(request)
    if as_json:
        print_json(tree_of(changed))
        return
    for line in changed.changes:
        say(line)
    say(f"the run follows this plan from round {changed.from_round} on")


@round_app.command("list")
def round_list(data: Data, coordinator: Address = None, as_json: Json = False) -> None:
    """Every round of the current run."""
    from coordinator.client import admin_of, every_round, tree_of

    with admin_of(data, coordinator) as admin:
        rounds = every_round(admin)
    if as_json:
        print_json([tree_of(state) for state in rounds])
        return
    rows = [
        (
            str(state.number),
            state.phase,
            f"{len(state.participants)}/{len(state.invited)}",
            f"{sum(state.phase_seconds.values()):.1f} s",
            state.model_digest[:12] or state.reason,
        )
        for state in rounds
    ]
    print_table("Rounds", ("round", "phase", "updates", "time", "model or reason"), rows)


@round_app.command("show")
def round_show(
    number: Annotated[int, typer.Argument(help="The round.")],
    data: Data,
    coordinator: Address = None,
) -> None:
    """One round with every figure, as JSON."""
    from coordinator.client import admin_of, tree_of
    from fedreid.v1 import admin_pb2

    with admin_of(data, coordinator) as admin:
        rounds = admin.ListRounds(admin_pb2.ListRoundsRequest(first=number)).rounds
    found = next((state for state in rounds if state.number == number), None)
    if found is None:
        raise UsageError(f"The run has no round {number}", next_step="See: coordinator round list.")
    print_json(tree_of(found))


@model_app.command("list")
def model_list(data: Data, coordinator: Address = None, as_json: Json = False) -> None:
    """Every published model, newest first."""
    from coordinator.client import admin_of, tree_of
    from fedreid.v1 import admin_pb2

    with admin_of(data, coordinator) as admin:
        models = admin.ListModels(admin_pb2.ListModelsRequest()).models
    if as_json:
        print_json([tree_of(model) for model in models])
        return
    rows = [(str(m.version), m.run, str(m.round), m.model_digest) for m in models]
    print_table("Models", ("version", "run", "round", "digest"), rows)


@model_app.command("rollback")
def model_rollback(
    version: Annotated[int, typer.Argument(help="The model's version.")],
    data: Data,
    coordinator: Address = None,
) -> None:
    """Publish an earlier model again; the round under way is given up, the next starts from it."""
    from coordinator.client import admin_of
    from fedreid.v1 import admin_pb2

    with admin_of(data, coordinator) as admin:
        model = admin.RollBackModel(admin_pb2.RollBackModelRequest(version=version)).model
    say(f"model {version} is published again as {model.version}")


@model_app.command("export")
def model_export(
    out_file: Annotated[Path, typer.Argument(help="Where to write the .safetensors file.")],
    data: Data,
    digest: Annotated[str, typer.Option(help="Which model; default: the newest.")] = "",
    coordinator: Address = None,
) -> None:
    """Write a published model with its signed release beside it."""
    from coordinator.export import export_model

    release = export_model(data, coordinator, digest, out_file)
    say(f"wrote model {release.version} ({release.run}, round {release.round}) to {out_file}")


@model_app.command("key")
def model_key(data: Data) -> None:
    """Print the public key that published models are checked with: silo-agent model verify."""
    from coordinator.folders import Folders
    from fedreid.errors import storage_errors
    from fedreid.pki.signing import public_pem, signing_key

    path = Folders(data).model_key
    with storage_errors("read", path):
        pem = path.read_bytes()
    out.print(public_pem(signing_key(pem)).decode().strip(), markup=False)


@audit_app.command("verify")
def audit_verify(data: Data, as_json: Json = False) -> None:
    """Check the audit log's chain of hashes from its first line to its last."""
    from coordinator.folders import Folders
    from fedreid.audit_printing import print_verified

    print_verified(Folders(data).audit, as_json=as_json)


@audit_app.command("show")
def audit_show(
    data: Data,
    last: Annotated[int, typer.Option(help="How many lines; 0 = all.")] = 50,
    as_json: Json = False,
) -> None:
    """Print the newest lines of the audit log."""
    from coordinator.folders import Folders
    from fedreid.audit_printing import print_lines

    print_lines(Folders(data).audit, last=last, as_json=as_json)


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if found is None:
        raise UsageError(f"{text!r} is no time", next_step="Write 90s, 30m, 1h or 2d.")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[found[2]]


def main() -> None:
    """The console script ``coordinator``."""
    run_program(app)
