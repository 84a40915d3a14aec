"""Does the throughput benchmark measure both loops on the same images, and refuse nonsense?"""

from dataclasses import asdict, replace

import pytest

from benchmark.training import Throughput, measure_training, rows, trial_of
from fedreid.errors import UsageError
from fedreid.plan import BackbonePlan


def test_every_rate_of_a_small_trial_is_measured() -> None:
    small = BackbonePlan(name="shufflenet_v2_x0_5", height_px=64, width_px=32)
    trial = replace(trial_of("resnet18", 8, 4, 1, 1), backbone=small)
    told: list[str] = []
    result = measure_training(trial, told.append)
    assert (result.model, result.images, result.batch) == ("shufflenet_v2_x0_5", 8, 4)
    rates = [value for value in asdict(result).values() if isinstance(value, float)]
    assert len(rates) == 11 and min(rates) > 0.0
    assert result.ratio == pytest.approx(result.ours / result.plain_loop)
    assert told[-1] == "epoch 1 of 1 of each"


def test_every_rate_has_a_row() -> None:
    result = Throughput(
        model="m",
        images=1,
        batch=1,
        threads=1,
        device="cpu",
        ours=30.0,
        ours_bf16=40.0,
        ours_first_epoch=20.0,
        plain_loop=15.0,
        our_inputs_first_epoch=50.0,
        our_inputs=60.0,
        plain_inputs=70.0,
        ratio=2.0,
        cpu_ratio=1.9,
        ours_peak_mb=80.0,
        plain_peak_mb=90.0,
    )
    values = [value for _, value in rows(result)]
    rates = ["30.0", "40.0", "20.0", "15.0", "50.0", "60.0", "70.0"]
    assert values == [*rates, "80.0", "90.0", "2.00", "1.90"]


@pytest.mark.parametrize(
    "options", [(1, 8, 1, 1), (8, 1, 1, 1), (8, 8, 0, 1), (8, 8, 1, 0), (8, 8, -1, 1)]
)
def test_options_that_cannot_be_are_refused(options: tuple[int, int, int, int]) -> None:
    with pytest.raises(UsageError):
        trial_of("resnet18", *options)
