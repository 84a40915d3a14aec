"""What does a grid of finished cells hold, and which figure stands at the end of each?

A figure is always that of the last round (reid-spec §8). What is not there is None.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import get_args

from benchmark.cells import CellKind, CellResult, ScenarioKind
from benchmark.published import DATASETS
from benchmark.results import Accuracy, Metric, ModelKind, SiloResult, series

_MODELS: Mapping[CellKind, tuple[ModelKind, ...]] = {
    "federated": ("global", "local"),
    "standalone": ("standalone",),
    "centralised": ("global",),
}
_KIND_ORDER = ("centralised", "standalone", "federated")
"""Baselines lead a table, as in the papers."""


def models_of(cell: CellResult) -> tuple[ModelKind, ...]:
    """The model kinds that the cell is about; a baseline has one."""
    return _MODELS[cell.kind]


def at_the_end(cell: CellResult, silo: str, model: ModelKind) -> Accuracy | None:
    """What the last round measured; a baseline's one model answers for every ``model``."""
    own = model if cell.kind == "federated" else _MODELS[cell.kind][0]
    return cell.rounds[-1].evaluations.get(silo, {}).get(own) if cell.rounds else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Finished cells by scenario, method and seed."""

    by_place: Mapping[tuple[str, str, int], CellResult]

    @classmethod
    def of(cls, cells: Iterable[CellResult]) -> "Grid":
        """Cells that differ in their transport only publish the same models and count once."""
        by_transport = sorted(cells, key=lambda cell: cell.transport, reverse=True)
        places = {(cell.scenario, cell.method, cell.seed): cell for cell in by_transport}
        return cls(by_place=dict(sorted(places.items())))

    @property
    def cells(self) -> tuple[CellResult, ...]:
        """Every cell that counts, by scenario, method and seed."""
        return tuple(self.by_place.values())

    @property
    def scenarios(self) -> tuple[str, ...]:
        """By kind, then name."""
        kinds = {cell.scenario: cell.scenario_kind for cell in self.cells}
        order = get_args(ScenarioKind)
        return tuple(sorted(kinds, key=lambda name: (order.index(kinds[name]), name)))

    @property
    def all_methods(self) -> tuple[str, ...]:
        """Centralised, standalone, then the federated ones, each by name."""
        kinds = {cell.method: cell.kind for cell in self.cells}
        return tuple(sorted(kinds, key=lambda name: (_KIND_ORDER.index(kinds[name]), name)))

    @property
    def missing(self) -> tuple[tuple[str, str, int], ...]:
        """Places of scenarios x methods x seeds without a finished cell."""
        seeds = sorted({cell.seed for cell in self.cells})
        return tuple(
            (scenario, method, seed)
            for scenario in self.scenarios
            for method in self.all_methods
            for seed in seeds
            if (scenario, method, seed) not in self.by_place
        )

    def methods(self, scenario: str, *, federated: bool = False) -> tuple[str, ...]:
        """Those with a cell in the scenario, in the order of ``all_methods``."""
        found = {
            cell.method
            for cell in self.cells
            if cell.scenario == scenario and (cell.kind == "federated" or not federated)
        }
        return tuple(method for method in self.all_methods if method in found)

    def of_method(self, scenario: str, method: str) -> tuple[CellResult, ...]:
        """The cells of a method in a scenario, by seed."""
        return tuple(
            cell
            for (where, who, _), cell in self.by_place.items()
            if (where, who) == (scenario, method)
        )

    def models(self, scenario: str, method: str) -> tuple[ModelKind, ...]:
        """The method's model kinds; also its own standalone where no baseline measured that."""
        cells = self.of_method(scenario, method)
        alone = any(cell.kind == "standalone" for cell in self.in_scenario(scenario))
        if alone or cells[0].kind != "federated":
            return models_of(cells[0])
        own = any(at_the_end(cell, silo, "standalone") for cell in cells for silo in cell.silos)
        return (*models_of(cells[0]), "standalone") if own else models_of(cells[0])

    def in_scenario(self, scenario: str) -> tuple[CellResult, ...]:
        """The cells of a scenario, by method and seed."""
        return tuple(cell for cell in self.cells if cell.scenario == scenario)

    def kind(self, scenario: str) -> ScenarioKind:
        """How the scenario divides images into silos."""
        return self.in_scenario(scenario)[0].scenario_kind

    def silos(self, scenario: str) -> tuple[str, ...]:
        """The papers' datasets in their order, other ones by training images, parts by name."""
        uses = {
            name: use for cell in self.in_scenario(scenario) for name, use in cell.silos.items()
        }
        published = list(DATASETS)

        def place(name: str) -> tuple[int, int, str]:
            dataset = uses[name].dataset
            known = published.index(dataset) if dataset in DATASETS else len(published)
            images = uses[name].train_images if self.kind(scenario) == "by-dataset" else 0
            return known, -images, name

        return tuple(sorted(uses, key=place))

    def standalone(self, cell: CellResult, silo: str) -> Accuracy | None:
        """What the silo reaches alone, to set beside the cell.

        From the standalone baseline of the same scenario and seed, of several the strongest by
        mAP; without one, what the federated cell measured itself.
        """
        baselines = [
            at_the_end(other, silo, "standalone")
            for other in self.in_scenario(cell.scenario)
            if other.kind == "standalone" and other.seed == cell.seed
        ]
        found = [accuracy for accuracy in baselines if accuracy is not None]
        if found:
            return max(found, key=lambda accuracy: (accuracy.map, accuracy.rank1))
        return at_the_end(cell, silo, "standalone") if cell.kind == "federated" else None

    def winner(self, cell: CellResult, silo: str) -> ModelKind | None:
        """The model to deploy at the silo; None unless all three were measured."""
        use = cell.silos[silo]
        three = SiloResult(
            images=use.train_images,
            identities=use.train_identities,
            standalone=self.standalone(cell, silo),
            local=at_the_end(cell, silo, "local"),
            global_=at_the_end(cell, silo, "global"),
        )
        complete = three.standalone and three.local and three.global_
        return three.best if complete else None


def mean_of_silos(cell: CellResult, model: ModelKind, metric: Metric) -> float | None:
    """Mean over the cell's silos at the end; None unless every silo was measured."""
    found = [at_the_end(cell, silo, model) for silo in sorted(cell.silos)]
    known = [getattr(accuracy, metric) for accuracy in found if accuracy is not None]
    return fmean(known) if known and len(known) == len(found) else None


def curve(
    cells: Sequence[CellResult], silo: str, model: ModelKind, metric: Metric
) -> dict[int, list[float]]:
    """By round, the figures of the cells (seeds) that measured it."""
    rounds: dict[int, list[float]] = {}
    for cell in cells:
        for number, value in series(cell.rounds, silo, model, metric):
            rounds.setdefault(number, []).append(value)
    return dict(sorted(rounds.items()))
