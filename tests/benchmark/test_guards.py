"""Are colours, untrained and trained backbones compared on every silo?"""

from pathlib import Path

from benchmark.baselines import colour_accuracy
from benchmark.guards import measure_guards
from fedreid.datasets.synthetic import SyntheticSpec, render


def test_every_way_of_ranking_is_measured_on_every_silo(tmp_path: Path) -> None:
    spec = SyntheticSpec(
        silos=2,
        ratio=(2, 1),
        unit_identities=3,
        test_identities=4,
        distractors=2,
        junk=1,
        public_images=0,
        height_px=64,
        width_px=32,
    )
    render(tmp_path / "silos", spec, workers=1)
    rows = measure_guards(
        tmp_path / "silos", trainers=1, epochs=1, threads=1, tell=lambda progress: None
    )
    assert set(rows) == {"colours", "untrained", "trained on station"}
    for row in rows.values():
        assert set(row) == {"station", "mall"}
        assert all(0.0 < value <= 1.0 for value in row.values())
    assert rows["untrained"] != rows["trained on station"]
    assert rows["colours"]["mall"] == colour_accuracy(tmp_path / "silos" / "mall").map
