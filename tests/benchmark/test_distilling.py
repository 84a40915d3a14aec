"""Does the distillation benchmark measure both loops, and refuse nonsense?"""

from dataclasses import astuple, replace

import pytest

from benchmark.distilling import Distilled, distilling_trial, measure_distilling, table_of
from fedreid.errors import UsageError
from fedreid.plan import BackbonePlan


def test_every_figure_of_a_small_trial_is_measured() -> None:
    small = BackbonePlan(name="shufflenet_v2_x0_5", height_px=64, width_px=32)
    trial = distilling_trial("resnet18", 6, "2", batch=3, epochs=1, threads=1, repeats=1)
    told: list[str] = []
    (result,) = measure_distilling(replace(trial, backbone=small), told.append)
    assert result.teachers == 2
    assert min(astuple(result)) > 0.0
    assert result.ratio == pytest.approx(result.ours / result.plain_loop)
    assert told[-1] == "2 teachers, plain_loop, 1 of 1"


def test_every_figure_has_a_column() -> None:
    result = Distilled(
        teachers=8,
        ours=30.0,
        ours_bf16=40.0,
        plain_loop=15.0,
        ratio=2.0,
        cpu_ratio=1.9,
        ours_peak_mb=800.0,
        plain_peak_mb=1200.0,
    )
    columns, (row,) = table_of([result])
    assert row == ("8", "30.0", "40.0", "15.0", "2.00", "1.90", "800", "1200")
    assert len(columns) == len(row)


@pytest.mark.parametrize(
    ("images", "teachers", "repeats"), [(1, "2", 1), (8, "0", 1), (8, "few", 1), (8, "2", 0)]
)
def test_options_that_cannot_be_are_refused(images: int, teachers: str, repeats: int) -> None:
    with pytest.raises(UsageError):
        distilling_trial(
            "resnet18", images, teachers, batch=4, epochs=1, threads=1, repeats=repeats
        )
