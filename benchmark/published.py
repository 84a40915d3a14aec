"""Which figures did the papers publish, to stand beside ours?

Source: Zhuang et al., *Performance Optimization for Federated Person Re-identification via
Benchmark Analysis*, ACM MM 2020 (arXiv 2008.11560), and its journal version in ACM TOMM 2023, as
gathered in reid-spec §11. They are the best 3 of 30 tests on the test set; ours are those of the
last round.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmark.cells import ScenarioKind

SOURCE = "Zhuang et al., ACM MM 2020 and ACM TOMM 2023"

DATASETS: Mapping[str, str] = {
    "msmt17": "MSMT17",
    "dukemtmc-reid": "DukeMTMC-reID",
    "market1501": "Market-1501",
    "cuhk03-np": "CUHK03-NP",
    "prid2011": "PRID2011",
    "cuhk01": "CUHK01",
    "viper": "VIPeR",
    "3dpes": "3DPeS",
    "ilids": "i-LIDS",
}
"""The nine datasets in the papers' order, with the name to print."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedRow:
    """One line of a published table; ratios in 0..1, by dataset."""

    name: str
    rank1: Mapping[str, float]
    map: Mapping[str, float] = field(default_factory=dict)


def _nine(name: str, percents: str) -> PublishedRow:
    figures = [float(text) / 100 for text in percents.split(" / ")]
    return PublishedRow(name=name, rank1=dict(zip(DATASETS, figures, strict=True)))


def _market(name: str, rank1: float, mean_precision: float) -> PublishedRow:
    return PublishedRow(name=name, rank1={"market1501": rank1}, map={"market1501": mean_precision})


PUBLISHED: Mapping[ScenarioKind, tuple[PublishedRow, ...]] = {
    "by-dataset": (
        _nine("centralised", "54.6 / 84.2 / 91.7 / 64.0 / 80.0 / 89.7 / 65.5 / 82.1 / 80.6"),
        _nine("standalone", "49.6 / 80.1 / 88.9 / 49.3 / 55.0 / 69.0 / 27.5 / 65.4 / 52.0"),
        _nine("FedPav, global", "41.0 / 74.3 / 83.4 / 31.7 / 37.7 / 73.4 / 48.1 / 69.2 / 79.9"),
        _nine("FedPav, local", "48.3 / 78.1 / 83.6 / 39.5 / 50.7 / 80.7 / 52.0 / 80.6 / 84.7"),
        _nine("CDW, local", "53.6 / 81.4 / 90.3 / 50.5 / 62.3 / 82.8 / 53.5 / 81.7 / 82.3"),
        _nine(
            "clustering + CDW, local",
            "53.7 / 83.9 / 90.9 / 51.5 / 68.0 / 75.1 / 55.7 / 71.9 / 80.6",
        ),
    ),
    "by-camera": (_market("FedPav", 0.611, 0.366), _market("centralised", 0.889, 0.726)),
    "by-identity": (_market("FedPav", 0.857, 0.664), _market("centralised", 0.889, 0.726)),
}
"""By scenario. By-camera and by-identity were measured on the whole test set of Market-1501."""

BYTES_PER_SILO = 58.9e9
"""Both ways, 300 rounds of ResNet-50."""
