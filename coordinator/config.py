"""How is this coordinator set up? ``coordinator.toml`` in the data folder, and ``init``."""

from typing import Annotated

import msgspec
import tomli_w
from cryptography import x509
from msgspec import Meta

from coordinator.folders import Folders
from fedreid.clock import Clock
from fedreid.errors import ConfigRefused, IdentityMissing, PlanRefused
from fedreid.files import make_folder, write_bytes
from fedreid.limits import SERVER_LIFE_S
from fedreid.names import FederationName, Principal, Role
from fedreid.pki.certificates import (
    Authority,
    create_authority,
    key_from_pem,
    key_to_pem,
    new_key,
    to_pem,
)
from fedreid.pki.identity import Identity, IdentityStore
from fedreid.pki.signing import new_signing_key_pem
from fedreid.plan import Section, parse_toml

HostPort = Annotated[str, Meta(pattern=r"^.+:\d+$")]


class Config(Section, frozen=True, kw_only=True):
    """Settings of one coordinator."""

    federation: str
    hostnames: tuple[str, ...]
    """Names and addresses in the server certificate; the first is put into join tokens."""
    listen: HostPort = "0.0.0.0:443"
    metrics: HostPort = "127.0.0.1:9464"
    """Plain HTTP: /livez, /readyz, /metrics. Bind it where only Prometheus can reach it."""


def initialise(folders: Folders, config: Config, clock: Clock) -> None:
    """Make a data folder: authority, server and admin identity, signing key, settings.

    Raises:
        ConfigRefused: the folder holds a coordinator already.
    """
    if folders.config.exists():
        raise ConfigRefused(
            f"{folders.root} holds a coordinator already",
            why="its keys would be lost, and with them every silo's trust",
            next_step="Choose another --data folder, or go on with: coordinator serve.",
        )
    make_folder(folders.root, mode=0o700)
    now_s = clock.now_s()
    authority = create_authority(FederationName(config.federation), now_s=now_s)
    make_folder(folders.authority, mode=0o700)
    write_bytes(folders.authority / "key.pem", key_to_pem(authority.key), mode=0o600)
    write_bytes(folders.authority / "certificate.pem", authority.certificate_pem)
    for role, name, store, hostnames in (
        (Role.COORDINATOR, "coordinator", folders.server, config.hostnames),
        (Role.ADMIN, "admin", folders.admin, ()),
    ):
        key = new_key()
        principal = Principal(federation=FederationName(config.federation), role=role, name=name)
        certificate = authority.issue(
            principal, key.public_key(), now_s=now_s, life_s=SERVER_LIFE_S, hostnames=hostnames
        )
        identity = Identity(
            key_pem=key_to_pem(key),
            certificate_pem=to_pem(certificate),
            authorities_pem=authority.certificate_pem,
        )
        IdentityStore(store).save(identity)
    write_bytes(folders.model_key, new_signing_key_pem(), mode=0o600)
    settings = msgspec.to_builtins(config)
    write_bytes(folders.config, tomli_w.dumps(settings).encode())


def load_config(folders: Folders) -> Config:
    """The settings of a data folder.

    Raises:
        ConfigRefused: there is no coordinator, or its settings are wrong.
    """
    if not folders.config.exists():
        raise ConfigRefused(
            f"There is no coordinator in {folders.root}",
            next_step=f"Make one: coordinator init --data {folders.root} --hostname NAME.",
        )
    try:
        return parse_toml(folders.config.read_text("utf-8"), Config, what=str(folders.config))
    except PlanRefused as error:
        raise ConfigRefused(error.what, why=error.why, next_step=error.next_step) from error


def load_authority(folders: Folders) -> Authority:
    """The federation's certificate authority.

    Raises:
        IdentityMissing: its files can't be read.
    """
    try:
        return Authority(
            certificate=x509.load_pem_x509_certificate(
                (folders.authority / "certificate.pem").read_bytes()
            ),
            key=key_from_pem((folders.authority / "key.pem").read_bytes()),
        )
    except (OSError, ValueError) as error:
        raise IdentityMissing(
            f"The federation's authority in {folders.authority} can't be read",
            why=str(error),
            next_step="Restore the folder from a backup.",
        ) from error
