"""Does the growth of null rounds come out as table, pictures and figures to be read back?"""

from pathlib import Path

import msgspec
import pytest
from PIL import Image

from benchmark.scaling import Point, Scaling, measure_scaling, points_to, write_scaling
from benchmark.transport import Spread, Transported
from fedreid.errors import UsageError
from fedreid.plan import Encoding


def measured(
    silos: int, model: str = "resnet50", encoding: Encoding = "fp32", megabytes: float = 94.0
) -> Transported:
    """A point as it would be if everything grew in proportion."""
    size = int(megabytes * silos * 1e6)
    seconds = size / 1e8
    spread = Spread(median=seconds, least=0.9 * seconds, most=1.2 * seconds)
    return Transported(
        silos=silos,
        model=model,
        encoding=encoding,
        rounds=3,
        ratio_to_limit=2.0,
        cpu_ratio_to_limit=2.0,
        round_seconds=spread,
        limit_seconds=Spread(median=seconds / 2, least=seconds / 2, most=seconds / 2),
        limit_kind="c",
        phases={"collecting": spread},
        cpu_seconds=spread,
        limit_cpu_seconds=spread,
        bytes_up=size,
        bytes_down=size,
        service_peak_mb=150.0 + silos,
        worker_peak_mb=60.0,
        agent_peak_mb=130.0,
    )


def test_silos_are_doubled_and_models_and_encodings_measured_at_four() -> None:
    points = points_to(20)
    assert [p.silos for p in points if (p.model, p.encoding) == ("resnet50", "fp32")] == [
        2, 4, 8, 16,
    ]  # fmt: skip
    others = {(p.silos, p.model, p.encoding) for p in points[4:]}
    assert others == {
        (4, "shufflenet_v2_x0_5", "fp32"),
        (4, "resnet18", "fp32"),
        (4, "resnet50", "bf16"),
        (4, "resnet50", "int8_delta"),
        (4, "resnet50", "int8_delta_zstd"),
    }
    with pytest.raises(UsageError, match="at least 4"):
        points_to(3)


def test_what_was_measured_is_written_as_figures_table_and_pictures(tmp_path: Path) -> None:
    scaling = Scaling(
        points=[
            measured(8),
            measured(2),
            measured(4),
            measured(4, "resnet18", megabytes=45.0),
            measured(4, encoding="bf16", megabytes=47.0),
        ]
    )
    assert [point.silos for point in scaling.by_silos()] == [2, 4, 8]
    assert [point.model for point in scaling.by_bytes()] == ["resnet18", "resnet50"]
    write_scaling(scaling, tmp_path)
    assert msgspec.json.decode((tmp_path / "scaling.json").read_bytes(), type=Scaling) == scaling
    lines = (tmp_path / "scaling.md").read_text("utf-8").splitlines()
    assert len(lines) == 2 + 5 and len({line.count("|") for line in lines}) == 1
    assert lines[4].startswith("| 4 | resnet50 | `fp32` | 376.0 | 3.76 (3.38 to 4.51) | 1.88 |")
    for name in ("time", "memory", "bytes"):
        for suffix in ("", "-dark"):
            with Image.open(tmp_path / f"scaling-{name}{suffix}.png") as picture:
                assert min(picture.size) > 500
                assert len(picture.getcolors(1 << 24) or []) > 50


@pytest.mark.slow
def test_points_are_measured_one_after_the_other() -> None:
    told: list[str] = []
    points = [Point(silos=n, model="shufflenet_v2_x0_5", encoding="fp32") for n in (1, 2)]
    kept: list[int] = []
    scaling = measure_scaling(
        points, rounds=1, tell=told.append, keep=lambda so_far: kept.append(len(so_far.points))
    )
    assert kept == [1, 2]
    assert [point.silos for point in scaling.points] == [1, 2]
    assert told[0] == "1 of 2: 1 silos, shufflenet_v2_x0_5, fp32"
