"""What has each round left on disk? The update to deliver, and what never leaves.

::

    rounds/RUN-000007/
    ├── update.safetensors   the whole local backbone after training; with noise, what leaves
    ├── payload              the update as it is sent, in another encoding than fp32
    ├── private/             classifier and standalone state; with noise, the backbone without it;
    │                        residuals: what earlier payloads left unsaid, and what this one does
    ├── round.json           what round it was, and its numbers
    ├── digests.json         of the files beside it, by which damage is noticed
    ├── accepted             the coordinator counts the update; holds its residual's digest
    ├── delivered            the coordinator has answered for the update and taken the figures
    └── published.json       what the model that came of it scored here, after the last round

A folder appears by one rename when training is complete, so a killed agent has trained a round
wholly or not at all. It stays until a later round takes its place: whatever the coordinator
loses, it gets again without training. Until then ``.RUN-000007.checkpoints`` holds what a killed
training goes on from.
"""

from pathlib import Path

import msgspec

from fedreid import faults
from fedreid.contract import EvaluationResult, PrivacyReport, TrainTask, UpdateReport
from fedreid.errors import StorageError, storage_errors
from fedreid.files import (
    digest_of,
    flip_folder,
    has_digest,
    link_file,
    make_folder,
    remove_folder,
    write_bytes,
)
from fedreid.limits import FIGURES_KEPT
from fedreid.plan import BackbonePlan, BatchNormPolicy, Encoding
from silo_agent.config import Folders
from silo_agent.learning.jobs import TrainReport

UPDATE_FILE = "update.safetensors"
OWN_FILE = "private/backbone.safetensors"
"""The backbone as it was trained, where the update has noise."""
RESIDUAL_BEFORE_FILE = "private/residual-before.safetensors"
"""What payloads of earlier rounds left unsaid, and this round's says too."""
RESIDUAL_AFTER_FILE = "private/residual-after.safetensors"
"""What this round's payload leaves unsaid."""
PAYLOAD_FILE = "payload"
"""What leaves, where the update itself is not it."""
_LARGE = (UPDATE_FILE, RESIDUAL_BEFORE_FILE, RESIDUAL_AFTER_FILE, PAYLOAD_FILE)
_NOTE = "round.json"
_DIGESTS = "digests.json"
_ACCEPTED = "accepted"
_DELIVERED = "delivered"
_PUBLISHED = "published.json"


class ModelFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What one model scored on the silo's own test set."""

    round: int
    """The round that made the model; 0 for start weights."""
    result: EvaluationResult


class FinishedRound(msgspec.Struct, frozen=True, kw_only=True):
    """A round whose training is complete."""

    run: str
    round: int
    base_digest: str
    base_round: int
    """The round that made the base model; 0 for start weights."""
    backbone: BackbonePlan
    bn: BatchNormPolicy
    encoding: Encoding
    report: UpdateReport
    """As it goes with the update."""
    num_identities: int
    evaluations: tuple[EvaluationResult, ...]
    earlier: tuple[ModelFigures, ...]
    """Figures of the run's rounds before this one, oldest first."""

    @classmethod
    def of(
        cls,
        task: TrainTask,
        report: TrainReport,
        *,
        base_round: int,
        previous: "FinishedRound | None",
        privacy: PrivacyReport | None = None,
    ) -> "FinishedRound":
        """The round of a task that was trained; ``previous`` is the run's one before it.

        ``privacy`` is what was done to the update, if anything.
        """
        numbers = report.numbers()
        return cls(
            run=task.run,
            round=task.round,
            base_digest=task.base_digest,
            base_round=base_round,
            backbone=task.backbone,
            bn=task.bn,
            encoding=task.upload_encoding,
            report=numbers if privacy is None else numbers.withheld(privacy),
            num_identities=report.num_identities,
            evaluations=report.evaluations,
            earlier=() if previous is None else previous.figures(),
        )

    def figures(self) -> tuple[ModelFigures, ...]:
        """Figures of the last rounds up to this one, oldest first."""
        own = tuple(
            ModelFigures(
                round=self.base_round if result.model == "global" else self.round, result=result
            )
            for result in self.evaluations
        )
        # After a round that failed the same base model is measured again.
        known = {(one.round, one.result.model): one for one in (*self.earlier, *own)}
        kept = frozenset(sorted({one.round for one in known.values()})[-FIGURES_KEPT:])
        return tuple(one for one in known.values() if one.round in kept)


class Outbox:
    """The rounds that this silo has trained; one at a time is being trained."""

    def __init__(self, folders: Folders) -> None:
        self._folder = folders.rounds
        self.spares = folders.spares

    def begin(self, run: str, number: int) -> Path:
        """An empty folder for a round to be trained.

        What a killed attempt left is removed, but for the checkpoints of this round.
        """
        kept = self.checkpoints(run, number)
        for left in (*self._folder.glob(".*.training"), *self._folder.glob(".*.checkpoints")):
            if left != kept:
                remove_folder(left)
        return make_folder(self._folder / f".{_name(run, number)}.training", mode=0o700)

    def checkpoints(self, run: str, number: int) -> Path:
        """Where the training of a round keeps what it can go on from."""
        return self._folder / f".{_name(run, number)}.checkpoints"

    def put(self, built: Path, finished: FinishedRound) -> None:
        """Keep a trained round, durably and all at once."""
        path = self._folder / _name(finished.run, finished.round)
        with faults.step("outbox.write"):
            write_bytes(built / _NOTE, msgspec.json.encode(finished))
            write_bytes(built / _DIGESTS, msgspec.json.encode(_digests(built)))
            remove_folder(path)
            flip_folder(built, path)
        remove_folder(self.checkpoints(finished.run, finished.round))

    def find(self, run: str, number: int, base_digest: str) -> FinishedRound | None:
        """The round, if it was trained from this base model."""
        finished = self._read(self._folder / _name(run, number))
        return finished if finished is not None and finished.base_digest == base_digest else None

    def damaged(self, folder: Path) -> list[str]:
        """The files of a round that are not as they were put; none where no digests were kept."""
        try:
            digests = msgspec.json.decode((folder / _DIGESTS).read_bytes(), type=dict[str, str])
        except FileNotFoundError:
            return []
        except (OSError, msgspec.MsgspecError):
            return [_DIGESTS]
        return [name for name, digest in digests.items() if not has_digest(folder / name, digest)]

    def all_folders(self) -> list[Path]:
        """Every round, also one whose note can't be read."""
        return sorted(self._folder.glob("[!.]*"))

    def folder(self, finished: FinishedRound) -> Path:
        """Where a round lies."""
        return self._folder / _name(finished.run, finished.round)

    def newest(self, run: str, *, before: int | None = None) -> FinishedRound | None:
        """The last trained round of a run."""
        found = [f for f in self._all() if f.run == run and (before is None or f.round < before)]
        return max(found, key=lambda finished: finished.round, default=None)

    def last(self) -> FinishedRound | None:
        """The round that was trained last, of whichever run."""
        found = sorted(self._all(), key=lambda f: (self.folder(f) / _NOTE).stat().st_mtime)
        return found[-1] if found else None

    def carry_over(self, previous: FinishedRound | None, built: Path, *, private: bool) -> None:
        """Let the round that is being built say what the run's payloads before it left unsaid.

        That is the residual of the last update that the coordinator counts; one that it did not
        count leaves unsaid what it would have said. With ``private`` a residual of values without
        noise is dropped: it would leave beside the noise, and tell of them.
        """
        if previous is None or (private and previous.report.privacy is None):
            return
        residual = self._residual_of(previous)
        if residual is not None:
            make_folder((built / RESIDUAL_BEFORE_FILE).parent, mode=0o700)
            link_file(residual, built / RESIDUAL_BEFORE_FILE)

    def _residual_of(self, finished: FinishedRound) -> Path | None:
        """What a round has left unsaid, if that lies on the disk as it was written."""
        folder = self.folder(finished)
        accepted, before = folder / _ACCEPTED, folder / RESIDUAL_BEFORE_FILE
        if not accepted.exists():
            return before if before.exists() and not self.damaged(folder) else None
        after = folder / RESIDUAL_AFTER_FILE
        with storage_errors("read", accepted):
            digest = accepted.read_text("utf-8")
        return after if digest and has_digest(after, digest) else None

    def note_accepted(self, finished: FinishedRound, residual_digest: str) -> None:
        """The coordinator counts the round's update, which has left this residual, if any."""
        write_bytes(self.folder(finished) / _ACCEPTED, residual_digest.encode())

    def note_delivered(self, finished: FinishedRound) -> None:
        """Nothing of the round is owed to the coordinator any more."""
        write_bytes(self.folder(finished) / _DELIVERED, b"")

    def undelivered(self) -> FinishedRound | None:
        """The round that was trained last, if the coordinator's answer to it did not come."""
        last = self.last()
        return None if last is None or (self.folder(last) / _DELIVERED).exists() else last

    def depth(self) -> int:
        """How many rounds the coordinator has not answered for."""
        return sum(not (folder / _DELIVERED).exists() for folder in self.all_folders())

    def note_published(self, finished: FinishedRound, result: EvaluationResult) -> None:
        """Keep what the model that the round led to has scored here."""
        write_bytes(self.folder(finished) / _PUBLISHED, msgspec.json.encode(result))

    def figures(self, finished: FinishedRound) -> tuple[ModelFigures, ...]:
        """The run's last figures, with those of the model that the round led to, if measured."""
        path = self.folder(finished) / _PUBLISHED
        if not path.exists():
            return finished.figures()
        published = msgspec.json.decode(path.read_bytes(), type=EvaluationResult)
        return (*finished.figures(), ModelFigures(round=finished.round, result=published))

    def remove_before(self, finished: FinishedRound) -> None:
        """Delete the rounds of the same run that ``finished`` has taken the place of."""
        for other in self._all():
            if other.run == finished.run and other.round < finished.round:
                for name in _LARGE:
                    self.spares.retire(self.folder(other) / name)
                remove_folder(self.folder(other))

    def _all(self) -> list[FinishedRound]:
        found = [self._read(path) for path in self.all_folders()]
        return [finished for finished in found if finished is not None]

    def _read(self, path: Path) -> FinishedRound | None:
        note = path / _NOTE
        if not note.exists():
            return None
        try:
            with storage_errors("read", note):
                return msgspec.json.decode(note.read_bytes(), type=FinishedRound)
        except msgspec.DecodeError as error:
            raise StorageError(
                f"The file {note} is damaged",
                why=str(error),
                next_step=f"Remove {path}; the round is trained again if it still runs.",
            ) from error


def _name(run: str, number: int) -> str:
    return f"{run}-{number:06d}"


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): digest_of(file) for file in files}
