"""How is this coordinator set up? ``coordinator.toml`` in the data folder, and ``init``."""

from pathlib import Path
from typing import Annotated

import msgspec
import tomli_w
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec import Meta

from coordinator.folders import Folders
from coordinator.founding import Keys, new_keys
from coordinator.trust.authorities import Authorities
from coordinator.trust.own import keep_own_identities
from fedreid.clock import Clock
from fedreid.errors import (
    ConfigRefused,
    IdentityBroken,
    TrustError,
    UsageError,
    storage_errors,
)
from fedreid.files import make_folder, write_bytes
from fedreid.limits import LEAF_LIFE_MAX_S, LEAF_LIFE_MIN_S, LEAF_LIFE_S, MODELS_KEPT
from fedreid.names import FederationName, federation_name
from fedreid.pki.certificates import Authority
from fedreid.pki.files import IdentityFiles
from fedreid.pki.signing import (
    public_bytes,
    public_from_pem,
    public_pem,
    signing_key,
)
from fedreid.plan import Section, parse_toml

HostPort = Annotated[str, Meta(pattern=r"^.+:\d+$")]


class Pki(Section, frozen=True, kw_only=True):
    """Files of the operators' own PKI; with none of them the coordinator has its own authority.

    They are read again when they change. The coordinator then issues no certificate for silos,
    and a silo that the PKI vouches for still has to be registered: ``coordinator silo register``.
    """

    server_certificate: str = ""
    """PEM, with a P-256 key; it names the hosts that silos dial. Relative to the data folder."""
    server_key: str = ""
    client_authorities: str = ""
    """Certificates, PEM, of the authorities that issue the silos' and the server's."""

    def __post_init__(self) -> None:
        names = (self.server_certificate, self.server_key, self.client_authorities)
        if any(names) and not all(names):
            raise ValueError("server_certificate, server_key and client_authorities go together")

    @property
    def outside(self) -> bool:
        """Whether there is such a PKI."""
        return bool(self.server_certificate)

    def files(self, folder: Path) -> IdentityFiles | None:
        """Where the files lie, or None if there is no such PKI."""
        if not self.outside:
            return None
        return IdentityFiles(
            certificate=folder / self.server_certificate,
            key=folder / self.server_key,
            authorities=folder / self.client_authorities,
        )


class Config(Section, frozen=True, kw_only=True):
    """Settings of one coordinator."""

    federation: str
    hostnames: tuple[str, ...]
    """Names and addresses in the server certificate."""
    address: str = ""
    """HOST:PORT that silos dial, put into join tokens; empty: the first host name, and the port
    that is served."""
    listen: HostPort = "0.0.0.0:443"
    metrics: HostPort = "127.0.0.1:9464"
    """Plain HTTP: /livez, /readyz, /metrics. Bind it where only Prometheus can reach it."""
    leaf_life_s: Annotated[float, Meta(ge=LEAF_LIFE_MIN_S, le=LEAF_LIFE_MAX_S)] = LEAF_LIFE_S
    """Life of a silo's certificate; it is renewed after two thirds of it."""
    models_kept: Annotated[int, Meta(ge=2, le=100_000)] = MODELS_KEPT
    """Rounds whose models stay on disk beside the newest one's, to roll back to."""
    approval: bool = False
    """A new silo is let in only after ``coordinator silo approve``, token or not."""
    pki: Pki = Pki()


def initialise(folders: Folders, config: Config, clock: Clock, keys: Keys | None = None) -> None:
    """Make a data folder: authority, server and admin identity, signing key, settings.

    ``keys`` are those of a federation that is there already; without them one is founded.

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
    keys = keys or new_keys(FederationName(config.federation), now_s=now_s)
    keep_own_identities(
        folders,
        Authorities.create(folders.authority, keys.authority),
        federation=config.federation,
        hostnames=config.hostnames,
        now_s=now_s,
    )
    write_bytes(folders.model_key, keys.model_key_pem, mode=0o600)
    write_bytes(folders.model_public_key, public_pem(signing_key(keys.model_key_pem)))
    _write_config(folders, config)


def renew_config(folders: Folders, config: Config) -> bool:
    """Put other settings into a folder that holds a coordinator; False if they are the same.

    Raises:
        ConfigRefused: they are of another federation.
    """
    before = load_config(folders)
    if before.federation != config.federation:
        raise ConfigRefused(
            f"{folders.root} is of the federation {before.federation}",
            why=f"the settings are for {config.federation}, and certificates name the federation",
            next_step="Choose another --data folder for another federation.",
        )
    if before != config:
        _write_config(folders, config)
    return before != config


def dialled_address(folders: Folders, config: Config) -> str:
    """HOST:PORT that silos dial."""
    served = folders.endpoint.read_text() if folders.endpoint.exists() else ":443"
    return config.address or f"{config.hostnames[0]}:{served.strip().rpartition(':')[2]}"


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
    return read_config(folders.config)


def read_config(path: Path) -> Config:
    """The settings in a file.

    Raises:
        ConfigRefused: they are wrong.
        StorageError: it can't be read.
    """
    with storage_errors("read", path):
        text = path.read_text("utf-8")
    try:
        config = parse_toml(text, Config, what=str(path))
        federation_name(config.federation)
    except UsageError as error:
        raise ConfigRefused(error.what, why=error.why, next_step=error.next_step) from error
    return config


def _write_config(folders: Folders, config: Config) -> None:
    write_bytes(folders.config, tomli_w.dumps(msgspec.to_builtins(config)).encode())


def load_authority(folders: Folders) -> Authority:
    """The authority that issues the federation's certificates.

    Raises:
        IdentityMissing: its files can't be read.
    """
    return Authorities(folders.authority).issuing


def load_model_key(folders: Folders) -> Ed25519PrivateKey:
    """The key that signs models.

    Raises:
        StorageError: a file of it can't be read.
        IdentityBroken: it is damaged: any 32 bytes are a key, so its public half must fit.
    """
    with storage_errors("read", folders.model_key):
        pem, public = folders.model_key.read_bytes(), folders.model_public_key.read_bytes()
    try:
        key = signing_key(pem)
        why = "" if public_from_pem(public) == public_bytes(key) else "they do not fit together"
    except TrustError as error:
        why = str(error)
    if why:
        raise IdentityBroken(
            f"The key that signs models, {folders.model_key} and .pub, is damaged",
            why=why,
            next_step="Put both files back from a backup: silos trust this key and no other.",
        )
    return key
