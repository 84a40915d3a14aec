"""Which commands decide who belongs? Approval, suspension, and the certificate authorities."""

from pathlib import Path
from typing import Annotated

import typer

from coordinator.options import Address, Data, Json
from fedreid.console import instant, print_json, print_table, say

ca_app = typer.Typer(no_args_is_help=True, help="Replace the certificate authority, in four steps.")

Silo = Annotated[str, typer.Argument(metavar="NAME", help="The silo.")]
Reason = Annotated[str, typer.Option(help="Why; the silo's operators see it.")]
Force = Annotated[
    bool, typer.Option("--force", help="Even if silos are locked out that have not followed.")
]


def approve(
    name: Silo,
    fingerprint: Annotated[
        str, typer.Option(help="XXXX-XXXX-XXXX-XXXX, as the silo's own screen shows it.")
    ],
    data: Data,
    coordinator: Address = None,
) -> None:
    """Let a silo in whose key awaits approval."""
    from coordinator.client import admin_of
    from fedreid.errors import UsageError
    from fedreid.v1 import admin_pb2

    if not fingerprint:
        raise UsageError("The fingerprint is empty", next_step="Ask the silo's operators for it.")
    with admin_of(data, coordinator) as admin:
        admin.ApproveSilo(admin_pb2.ApproveSiloRequest(silo=name, fingerprint=fingerprint))
    say(f"{name} is approved; its agent goes on by itself")


def register(name: Silo, data: Data, coordinator: Address = None) -> None:
    """Let a silo in that your own PKI vouches for (coordinator.toml: [pki])."""
    from coordinator.client import admin_of
    from fedreid.v1 import admin_pb2

    with admin_of(data, coordinator) as admin:
        admin.ApproveSilo(admin_pb2.ApproveSiloRequest(silo=name))
    say(f"{name} is registered")


def suspend(name: Silo, data: Data, reason: Reason = "", coordinator: Address = None) -> None:
    """Keep a silo out for a time; in force when this command returns."""
    _suspend(name, data, coordinator, suspended=True, reason=reason)


def resume(name: Silo, data: Data, reason: Reason = "", coordinator: Address = None) -> None:
    """Let a suspended or quarantined silo in again."""
    _suspend(name, data, coordinator, suspended=False, reason=reason)


def _suspend(
    name: str, data: Path, coordinator: str | None, *, suspended: bool, reason: str
) -> None:
    from coordinator.client import admin_of
    from fedreid.v1 import admin_pb2

    request = admin_pb2.SuspendSiloRequest(silo=name, suspended=suspended, reason=reason)
    with admin_of(data, coordinator) as admin:
        answer = admin.SuspendSilo(request)
    say(f"{name} is {answer.state}")


@ca_app.command("status")
def ca_status(data: Data, coordinator: Address = None, as_json: Json = False) -> None:
    """Which authorities are trusted, which one issues, and which silos are awaited."""
    from coordinator.client import admin_of
    from fedreid.v1 import admin_pb2

    with admin_of(data, coordinator) as admin:
        found = admin.GetAuthorities(admin_pb2.GetAuthoritiesRequest())
    if as_json:
        authorities = [
            {
                "key_fingerprint": each.key_fingerprint,
                "not_after_s": each.not_after_s,
                "issuing": each.issuing,
            }
            for each in found.authorities
        ]
        print_json({"step": found.step, "authorities": authorities, "awaited": list(found.awaited)})
        return
    rows = [
        (each.key_fingerprint[:16], instant(each.not_after_s), "issues" if each.issuing else "")
        for each in found.authorities
    ]
    print_table("Certificate authorities", ("key", "ends", ""), rows)
    say(f"the roll-over is {found.step}")
    if found.awaited:
        say(f"the next step would lock out: {', '.join(found.awaited)}")


@ca_app.command("prepare")
def ca_prepare(data: Data, coordinator: Address = None) -> None:
    """1: make a new authority, and let everybody trust it beside the old one."""
    _take_step(data, coordinator, "prepare", force=False)
    say("wait until 'coordinator ca status' awaits nobody, then: coordinator ca activate")


@ca_app.command("activate")
def ca_activate(data: Data, force: Force = False, coordinator: Address = None) -> None:
    """2: issue every certificate with the new authority from now on."""
    _take_step(data, coordinator, "activate", force=force)
    say("tokens made before 'prepare' are good no more; copies of the admin identity end with drop")
    say("wait until 'coordinator ca status' awaits nobody, then: coordinator ca drop")


@ca_app.command("drop")
def ca_drop(data: Data, force: Force = False, coordinator: Address = None) -> None:
    """3: trust the old authority no longer, and remove its key."""
    _take_step(data, coordinator, "drop", force=force)


def _take_step(data: Path, coordinator: str | None, step: str, *, force: bool) -> None:
    from coordinator.client import admin_of
    from fedreid.v1 import admin_pb2

    value = admin_pb2.AuthorityStep.Value(f"AUTHORITY_STEP_{step.upper()}")
    with admin_of(data, coordinator) as admin:
        answer = admin.ChangeAuthorities(
            admin_pb2.ChangeAuthoritiesRequest(step=value, force=force)
        )
    say(f"the roll-over is {answer.step}")
