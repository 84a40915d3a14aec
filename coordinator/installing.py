"""The commands that install a coordinator: init, its Secrets in a cluster, ping."""

import os
import socket
from pathlib import Path
from typing import Annotated, Optional

import typer

from coordinator.options import Address, Data
from fedreid.console import say
from fedreid.errors import UsageError


def init(
    data: Data,
    federation: Annotated[str, typer.Option(help="Name of the federation.")] = "fedreid",
    hostname: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads it
        typer.Option(
            help="Name or address that silos dial; may be repeated, the first is put "
            "into tokens. Default: this machine's name."
        ),
    ] = None,
    listen: Annotated[str, typer.Option(help="HOST:PORT to serve on.")] = "0.0.0.0:443",
    approval: Annotated[
        bool, typer.Option("--approval", help="Let a new silo in only after 'silo approve'.")
    ] = False,
    settings: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A coordinator.toml to start from, instead of the options above."),
    ] = None,
    keys: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of a federation's keys: ca.crt, ca.key, model-key.pem."),
    ] = None,
    if_absent: Annotated[
        bool,
        typer.Option(
            "--if-absent",
            help="A folder that holds a coordinator keeps all it has; only --settings are renewed.",
        ),
    ] = False,
) -> None:
    """Make a data folder: the federation's authority, server and admin identity, settings."""
    from coordinator.config import Config, initialise, read_config, renew_config
    from coordinator.folders import Folders
    from coordinator.founding import keys_in
    from fedreid.clock import SystemClock
    from fedreid.names import federation_name

    folders = Folders(data)
    names = tuple(dict.fromkeys([*(hostname or [socket.gethostname()]), "localhost", "127.0.0.1"]))
    if settings is None:
        config = Config(
            federation=federation_name(federation), hostnames=names, listen=listen,
            approval=approval,
        )  # fmt: skip
    else:
        config = read_config(settings)
    if if_absent and folders.config.exists():
        if settings is not None and renew_config(folders, config):
            say(f"renewed the settings in {data}")
        say(f"{data} holds the federation {config.federation}")
        return
    given = None if keys is None else keys_in(keys)
    initialise(folders, config, SystemClock(), given)
    say(
        f"made the federation {config.federation} in {data}; "
        f"its names are {', '.join(config.hostnames)}"
    )
    say(f"next: coordinator serve --data {data}")


def init_secrets(
    federation: Annotated[str, typer.Option(help="Name of the federation.")],
    authority: Annotated[str, typer.Option(help="Name of the Secret of the federation's keys.")],
    admin: Annotated[str, typer.Option(help="Name of the Secret of the administrator.")],
    server: Annotated[
        str, typer.Option(help="The cluster's API, https://HOST:PORT; default: as a pod finds it.")
    ] = "",
    service_account: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of token, ca.crt and namespace; default: as a pod finds it."),
    ] = None,
) -> None:
    """In a pod: make the Secrets of a federation where they are missing; none is ever changed."""
    from coordinator.cluster import SERVICE_ACCOUNT, Secrets, found_federation
    from fedreid.clock import SystemClock
    from fedreid.names import federation_name

    found_federation(
        Secrets(server=server or _api(), account=service_account or SERVICE_ACCOUNT),
        federation_name(federation),
        authority=authority,
        admin=admin,
        clock=SystemClock(),
        say=say,
    )


def ping(data: Data, coordinator: Address = None) -> None:
    """Call the running coordinator over mutual TLS; the exit code says if it answers."""
    from coordinator.client import admin_of
    from fedreid.v1 import admin_pb2

    with admin_of(data, coordinator) as admin:
        run = admin.GetRun(admin_pb2.GetRunRequest())
    say(f"the coordinator answers; its run {run.run or '(none yet)'} is {run.state}")


def _api() -> str:
    """Where Kubernetes tells each pod that its API is."""
    try:
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    except KeyError as error:
        raise UsageError(
            "This is no pod of a Kubernetes cluster",
            why=f"the environment variable {error} is not set",
            next_step="On a server of its own: coordinator init.",
        ) from error
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
