"""How is this agent set up, and where does what lie in its data folder?

::

    agent.toml        settings and the operator's policy
    identity/         key and certificate; pending-key.pem while enrolling
    membership.json   federation, silo, and the key that signs models
    privacy.json      updates that have left with noise: what has been spent of the budget
    models/           fetched models, by digest
    rounds/           what each round left: the update (outbox) and what never leaves (private/)
    audit/            what happened and what left, hash-chained
    doing.json        a note of what the running agent does, for people; no state
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Protocol

import msgspec
import tomli_w
from msgspec import Meta

from fedreid.errors import ConfigRefused, IdentityMissing, PlanRefused, StorageError
from fedreid.files import make_folder, write_bytes
from fedreid.limits import AGENT_SPARES
from fedreid.pki.files import IdentityFiles
from fedreid.pki.identity import Identity, IdentityStore
from fedreid.plan import Encoding, NonNegative, Positive, Section, parse_toml
from fedreid.spares import Spares

Limit = Annotated[int, Meta(ge=0)]


class PrivacyPolicy(Section, frozen=True, kw_only=True):
    """Differential privacy of what leaves; off unless ``noise_multiplier`` is set.

    What is protected is all that this silo contributes, against its replacement by any other
    silo's images of the same number; docs/privacy.md says what that means.
    """

    noise_multiplier: NonNegative = 0.0
    """Standard deviation of the noise on each value, over twice ``clip_norm``; 0 = none."""
    clip_norm: Positive = 1.0
    """Largest L2 norm of what a round changes; a larger change is scaled down to it."""
    delta: Annotated[float, Meta(gt=0, lt=1)] = 1e-5
    """The probability with which epsilon may not hold."""
    epsilon_budget: NonNegative = 0.0
    """Epsilon that all updates together may cost; the next one beyond it is not trained."""

    def __post_init__(self) -> None:
        """Refuse noise without a budget; msgspec makes a ValidationError of it."""
        if self.on and self.epsilon_budget == 0.0:
            raise ValueError("a noise_multiplier needs an epsilon_budget")

    @property
    def on(self) -> bool:
        """Whether updates leave with noise only."""
        return self.noise_multiplier > 0.0


class Policy(Section, frozen=True, kw_only=True):
    """The ceiling that the operator sets; no plan of a coordinator goes beyond it.

    An empty list, or a limit of 0, adds no ceiling of its own.
    """

    coordinators: tuple[str, ...] = ()
    """HOST:PORT of each coordinator that this silo may ever speak to, whatever ``join`` is told."""
    tensors: tuple[str, ...] = ()
    """Patterns (``layer4.*``) of names that may leave. Exactly the base model's tensors leave; if
    one of them fits no pattern, the silo does not train."""
    backbones: tuple[str, ...] = ()
    """Names of the networks that this silo trains and measures."""
    encodings: tuple[Encoding, ...] = ()
    """In which an update may leave: the plan's if it is here, else ``fp32`` if that is."""
    batchnorm_statistics: bool = True
    """Whether BatchNorm tensors may leave under the plan ``bn = local``, for models of
    outsiders. Other plans average them, so a silo that forbids it can't take part in those."""
    minimum_images: int = 2
    """Refuse to train on fewer: a model of very few images says too much about each."""
    bytes_per_day: Limit = 0
    """Bytes of tensors that may leave in a day (UTC)."""
    rounds_per_day: Limit = 0
    """Rounds whose update may leave in a day (UTC)."""
    rounds_total: Limit = 0
    """Rounds whose update may ever leave."""
    largest_model_change: Annotated[float, Meta(ge=0)] = 2.0
    """Largest ‖w − w_before‖ / ‖w_before‖ between the model to train on and the one that this silo
    trained on before in the run, over learned tensors; the demo's rounds stay below 0.3. A model
    with NaN or infinity is refused always."""
    privacy: PrivacyPolicy = PrivacyPolicy()


class AgentConfig(Section, frozen=True, kw_only=True):
    """Settings of one agent."""

    coordinator: str
    """HOST:PORT."""
    dataset: str
    layout: str = "auto"
    split: int = 0
    """Which of the ten drawn splits of a small public set."""
    withdrawn_confirmed: bool = False
    """The operator answers for using a dataset that its owners have withdrawn."""
    identity: str = ""
    """Folder of an identity of your own PKI (tls.crt, tls.key, ca.crt), read again when it changes.
    Empty: the identity that joining brought."""
    metrics: str = ""
    """HOST:PORT of plain HTTP: /livez, /readyz, /metrics; empty: none. Bind it where only your
    Prometheus can reach it."""
    metrics_textfile: str = ""
    """File of the figures for node_exporter, where nobody scrapes this machine; empty: none."""
    processes: Annotated[int, Meta(ge=1, le=64)] = 1
    """Training processes, started by torchrun; one for each GPU of the machine."""
    compiled: bool = False
    """Train with torch.compile, which needs a C++ compiler and a minute or more each round."""
    policy: Policy = Policy()


class Membership(msgspec.Struct, frozen=True, kw_only=True):
    """What enrolment settled."""

    federation: str
    silo: str
    model_key: bytes
    """Ed25519 public key that signs models."""


@dataclass(frozen=True, slots=True)
class Folders:
    """The paths below one data folder."""

    root: Path

    @property
    def config(self) -> Path:
        """Settings."""
        return self.root / "agent.toml"

    @property
    def identity(self) -> Path:
        """Key and certificate."""
        return self.root / "identity"

    @property
    def pending_key(self) -> Path:
        """The key of an enrolment that has not been answered yet."""
        return self.root / "pending-key.pem"

    @property
    def membership(self) -> Path:
        """What enrolment settled."""
        return self.root / "membership.json"

    @property
    def audit(self) -> Path:
        """What happened, and what left."""
        return self.root / "audit"

    @property
    def privacy(self) -> Path:
        """What has been spent of the privacy budget."""
        return self.root / "privacy.json"

    @property
    def doing(self) -> Path:
        """What the running agent does."""
        return self.root / "doing.json"

    @property
    def models(self) -> Path:
        """Fetched models."""
        return make_folder(self.root / "models", mode=0o700)

    @property
    def rounds(self) -> Path:
        """What each round left."""
        return make_folder(self.root / "rounds", mode=0o700)

    @property
    def spares(self) -> Spares:
        """Files to be written over by the next model and the next update."""
        return Spares(self.root / "spare", kept=AGENT_SPARES)


class Identities(Protocol):
    """Where this agent's identity is kept, by itself or by others."""

    def load(self) -> Identity:
        """The newest one."""
        ...


def identities(folders: Folders, config: AgentConfig) -> Identities:
    """Where the identity is: in a folder of the operators' PKI, or in our own store."""
    if config.identity:
        return IdentityFiles.in_folder(Path(config.identity))
    return IdentityStore(folders.identity)


def save_config(folders: Folders, config: AgentConfig) -> None:
    """Write the settings."""
    write_bytes(folders.config, tomli_w.dumps(msgspec.to_builtins(config)).encode())


def load_config(folders: Folders) -> AgentConfig:
    """The settings of a data folder.

    Raises:
        ConfigRefused: there is no agent, or its settings are wrong.
    """
    try:
        text = folders.config.read_text("utf-8")
    except FileNotFoundError as error:
        raise ConfigRefused(
            f"There is no agent in {folders.root}",
            next_step="Join first: silo-agent join --coordinator HOST:PORT --dataset PATH.",
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigRefused(
            f"The settings {folders.config} can't be read",
            why=str(error),
            next_step="Correct or remove the file, then join again.",
        ) from error
    try:
        return parse_toml(text, AgentConfig, what=str(folders.config))
    except PlanRefused as error:
        raise ConfigRefused(error.what, why=error.why, next_step=error.next_step) from error


def read_policy(path: Path) -> Policy:
    """The policy in a file.

    Raises:
        ConfigRefused: it is wrong, or can't be read.
    """
    try:
        return parse_toml(path.read_text("utf-8"), Policy, what=str(path))
    except PlanRefused as error:
        raise ConfigRefused(error.what, why=error.why, next_step=error.next_step) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigRefused(f"The policy {path} can't be read", why=str(error)) from error


def save_membership(folders: Folders, membership: Membership) -> None:
    """Write what enrolment settled."""
    write_bytes(folders.membership, msgspec.json.encode(membership))


def load_membership(folders: Folders) -> Membership:
    """What enrolment settled.

    Raises:
        IdentityMissing: this agent has not enrolled.
        StorageError: the file is damaged.
    """
    try:
        return msgspec.json.decode(folders.membership.read_bytes(), type=Membership)
    except FileNotFoundError as error:
        raise IdentityMissing(
            f"The agent in {folders.root} has not joined a federation",
            next_step="Join with a token: silo-agent join --token-file FILE.",
        ) from error
    except msgspec.DecodeError as error:
        raise StorageError(
            f"The file {folders.membership} is damaged",
            why=str(error),
            next_step="Join again with a new token: silo-agent join --rejoin. Local state stays.",
        ) from error
