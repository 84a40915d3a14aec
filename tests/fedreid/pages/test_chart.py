"""Do lines and bars stand where their values say?"""

import pytest

from fedreid.pages.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, bar_chart, line_chart


def text(value: float) -> str:
    return f"{value:g}"


def test_without_values_there_is_no_chart() -> None:
    assert line_chart("a", "b", {}, text=text) is None
    assert bar_chart("a", "b", {"x": []}, text=text) is None


@pytest.mark.parametrize("highest", [0.0, 1e-9, 0.37, 1.0, 57.2, 4e6])
def test_every_point_lies_inside_and_the_ticks_cover_it(highest: float) -> None:
    series = {"a": [(0, 0.0), (1, highest / 3)], "b": [(4, highest)]}
    chart = line_chart("a", "b", series, text=text)
    assert chart is not None
    for line in chart.lines:
        for x, y in line.dots:
            assert LEFT <= x <= WIDTH - RIGHT
            assert TOP - 0.01 <= y <= HEIGHT - BOTTOM + 0.01
    assert chart.up[0].at == HEIGHT - BOTTOM and chart.up[-1].at == pytest.approx(TOP)
    assert float(chart.up[-1].label) >= highest
    assert [tick.label for tick in chart.across] == ["0", "1", "2", "3", "4"]


def test_ticks_are_round_numbers() -> None:
    chart = line_chart("a", "b", {"a": [(1, 0.67)]}, text=text)
    assert chart is not None
    assert [tick.label for tick in chart.up] == ["0", "0.2", "0.4", "0.6", "0.8"]


def test_a_thousand_rounds_have_few_ticks_and_no_dots() -> None:
    chart = line_chart("a", "b", {"a": [(n, 1.0) for n in range(1, 1001)]}, text=text)
    assert chart is not None
    assert [tick.label for tick in chart.across] == ["200", "400", "600", "800", "1000"]
    assert chart.lines[0].dots == () and chart.lines[0].path.count(",") == 1000


def test_a_rounds_layers_stand_on_each_other() -> None:
    chart = bar_chart("a", "b", {"x": [(1, 2.0), (2, 1.0)], "y": [(1, 4.0)]}, text=text)
    assert chart is not None
    low, short, high = chart.bars
    assert high.y + high.height == pytest.approx(low.y)
    assert high.height == pytest.approx(2 * low.height) and short.height * 2 == low.height
    assert low.x == high.x and "round 1, y: 4" in high.title
    assert (low.colour, high.colour) == (0, 1)
