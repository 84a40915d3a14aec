"""What did a run of the benchmark measure? The typed form of ``report.json``.

Ratios are in 0..1, times in seconds, sizes in bytes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar, get_args

import msgspec

from fedreid.contract import EvaluationResult
from fedreid.errors import StorageError, storage_errors
from fedreid.files import write_bytes

ModelKind = Literal["untrained", "standalone", "local", "global"]
"""Before the first round; the silo alone; after its local training; the published model."""

Metric = Literal["rank1", "map"]
"""The two that tables, curves and comparisons show."""

Comparison = Literal["≥", ">"]

MODELS: tuple[ModelKind, ...] = get_args(ModelKind)
DEPLOYABLE: tuple[ModelKind, ...] = MODELS[1:]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the report; immutable. Unknown keys are skipped, so newer reports can be read."""


RecordT = TypeVar("RecordT", bound=Record)


class Accuracy(Record, frozen=True, kw_only=True):
    """One model on one silo's query and gallery (reid-spec §8)."""

    rank1: float
    rank5: float
    map: float
    minp: float
    queries: int
    """Valid queries: those with a match in another camera."""

    @classmethod
    def of(cls, result: EvaluationResult) -> "Accuracy":
        """What a silo has measured, as far as reports show it."""
        return cls(
            rank1=result.rank1,
            rank5=result.rank5,
            map=result.map,
            minp=result.minp,
            queries=result.queries,
        )


class SiloResult(Record, frozen=True, kw_only=True, rename={"global_": "global"}):
    """What a silo has and what it gets out, after the last round; None = not measured."""

    images: int
    identities: int
    colours: Accuracy | None = None
    """Retrieval by colour histograms alone, without any learning."""
    untrained: Accuracy | None = None
    standalone: Accuracy | None = None
    local: Accuracy | None = None
    global_: Accuracy | None = None

    def accuracy(self, model: ModelKind) -> Accuracy | None:
        """The silo's result for one model."""
        of: dict[ModelKind, Accuracy | None] = {
            "untrained": self.untrained,
            "standalone": self.standalone,
            "local": self.local,
            "global": self.global_,
        }
        return of[model]

    @property
    def best(self) -> ModelKind | None:
        """The model to deploy: highest mAP, then rank-1; a tie goes to the cheaper one to have."""
        measured = [(kind, self.accuracy(kind)) for kind in DEPLOYABLE]
        found = [(kind, accuracy) for kind, accuracy in measured if accuracy is not None]
        if not found:
            return None
        return max(found, key=lambda pair: (pair[1].map, pair[1].rank1))[0]


class RoundResult(Record, frozen=True, kw_only=True):
    """One published round."""

    number: int
    model_digest: str
    participants: tuple[str, ...]
    weights: dict[str, float]
    """Share of each participant in the aggregate; sums to 1."""
    cosine_distances: dict[str, float]
    epsilons: dict[str, float] = {}
    """Privacy loss up to this round of each silo whose updates left with noise."""
    phase_seconds: dict[str, float]
    """In the order of the phases."""
    upload_bytes: int
    """Of all silos together, payloads as sent."""
    download_bytes: int
    distillation_loss_before: float | None = None
    distillation_loss_after: float | None = None
    evaluations: dict[str, dict[ModelKind, Accuracy]] = {}
    """By silo, then model."""


class Evidence(Record, frozen=True, kw_only=True):
    """One number that a check compares with its bound."""

    label: str
    value: float | None
    """None = not measured."""
    bound: float | None
    met: bool


class Check(Record, frozen=True, kw_only=True):
    """One claim about the run, computed from its numbers."""

    name: str
    claim: str
    comparison: Comparison
    """How each value must stand to its bound."""
    met: bool
    evidence: tuple[Evidence, ...]


class Results(Record, frozen=True, kw_only=True):
    """Everything a report shows."""

    federation: str
    run: str
    seed: int
    plan: str
    """The plan's TOML text."""
    silos: dict[str, SiloResult]
    rounds: tuple[RoundResult, ...]
    versions: dict[str, str]
    checks: tuple[Check, ...] = ()
    """Filled in by :func:`benchmark.checks.judged`."""

    @property
    def largest_first(self) -> list[str]:
        """The silos by number of images, the order of every table and picture."""
        return sorted(self.silos, key=lambda silo: (-self.silos[silo].images, silo))


def series(
    rounds: Sequence[RoundResult], silo: str, model: ModelKind, metric: Metric
) -> list[tuple[int, float]]:
    """Round number and figure, for the rounds that measured the model on the silo."""
    return [
        (one.number, getattr(one.evaluations[silo][model], metric))
        for one in rounds
        if model in one.evaluations.get(silo, {})
    ]


def write(path: Path, results: Results) -> None:
    """Durably write ``report.json``."""
    write_record(path, results)


def read(path: Path) -> Results:
    """The results in a ``report.json``.

    Raises:
        StorageError: it is missing or damaged.
    """
    return read_record(
        path, Results, what="report", next_step="Run the benchmark again; it writes the file anew."
    )


def write_record(path: Path, record: Record) -> None:
    """Durably write a record as JSON: indented, in the order of its fields."""
    write_bytes(path, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


def read_record(path: Path, kind: type[RecordT], *, what: str, next_step: str) -> RecordT:
    """The record in a JSON file.

    Raises:
        StorageError: it is missing or damaged.
    """
    with storage_errors("read", path):
        text = path.read_bytes()
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError as error:
        raise StorageError(
            f"The {what} {path} can't be read", why=str(error), next_step=next_step
        ) from error
