"""Where does what lie in the coordinator's data folder?

::

    coordinator.toml   settings            journal.sqlite   the durable truth
    authority/         certificate authorities models/      published models, by digest
    server/  admin/    identities          spool/           updates of the current round
    model-key.pem .pub signs models        work/            intermediate models of the round
    audit/             what happened, hash-chained  spare/    zeros for the next round's files
"""

from dataclasses import dataclass
from pathlib import Path

from fedreid.files import make_folder
from fedreid.limits import COORDINATOR_SPARES
from fedreid.spares import Spares


@dataclass(frozen=True, slots=True)
class Folders:
    """The paths below one data folder."""

    root: Path

    @property
    def config(self) -> Path:
        """Settings."""
        return self.root / "coordinator.toml"

    @property
    def endpoint(self) -> Path:
        """HOST:PORT at which the running coordinator can be reached from this machine."""
        return self.root / "endpoint"

    @property
    def journal(self) -> Path:
        """The SQLite file."""
        return self.root / "journal.sqlite"

    @property
    def authority(self) -> Path:
        """The federation's certificate authorities."""
        return self.root / "authority"

    @property
    def server(self) -> Path:
        """Identity of the port."""
        return self.root / "server"

    @property
    def admin(self) -> Path:
        """Identity of the first administrator."""
        return self.root / "admin"

    @property
    def model_key(self) -> Path:
        """Key that signs models."""
        return self.root / "model-key.pem"

    @property
    def model_public_key(self) -> Path:
        """Its public half, for silos that do not enrol here."""
        return self.root / "model-key.pub"

    @property
    def audit(self) -> Path:
        """What happened."""
        return self.root / "audit"

    @property
    def models(self) -> Path:
        """Published models."""
        return make_folder(self.root / "models")

    @property
    def spares(self) -> Spares:
        """Files to be written over by the next round's updates and model."""
        return Spares(self.root / "spare", kept=COORDINATOR_SPARES)

    def rounds(self) -> list[Path]:
        """The spool and work folders of every round that left one."""
        return [*self.root.glob("spool/*-*"), *self.root.glob("work/*-*")]

    def of_round(self, run: str, number: int) -> tuple[Path, Path]:
        """Spool and work folder of one round, whether or not they are there."""
        name = f"{run}-{number:06d}"
        return self.root / "spool" / name, self.root / "work" / name

    def spool(self, run: str, number: int) -> Path:
        """Updates of one round."""
        return make_folder(self.of_round(run, number)[0], mode=0o700)

    def work(self, run: str, number: int) -> Path:
        """Intermediate models of one round."""
        return make_folder(self.of_round(run, number)[1], mode=0o700)
