"""Does a grid's folder say what its cells measured: page, document, pictures, files of figures?"""

import csv
import re
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from benchmark.cells import CellResult, write_cell
from benchmark.drawing import draw_again
from benchmark.finished import Grid, mean_of_silos
from benchmark.grid_plots import convergence, method_styles
from benchmark.grid_report import write_grid_report
from benchmark.grid_tables import privacy_table
from benchmark.long_form import SCHEMA, write_long_form
from benchmark.report import write_report
from benchmark.statistics import spread
from benchmark.theme import DARK, LIGHT, Theme
from fedreid.errors import ConfigRefused, RunError, StorageError
from silo_agent.config import Policy, PrivacyPolicy
from tests.benchmark.made_up import made_up
from tests.benchmark.made_up_grid import accuracy, cell, plausible, round_of, simple, use

PICTURES = ("end", "global-rank1", "global-map", "local-rank1", "local-map", "weights")

NOT_FIGURES = re.compile(r"\b(nan|inf|None(?! of))\b")


def without_pictures(page: str) -> str:
    return re.sub('base64,[^"]+', "", page)


@pytest.fixture(scope="module")
def cells() -> list[CellResult]:
    return plausible(seeds=2, rounds=3, scenarios=("by-dataset",), methods=("best", "reference"))


@pytest.fixture(scope="module")
def folder(cells: list[CellResult], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("grid") / "run"
    assert write_grid_report(cells, out) == out / "report.html"
    return out


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_every_picture_exists_in_both_modes_and_is_not_blank(
    folder: Path, name: str, theme: Theme
) -> None:
    with Image.open(folder / f"by-dataset-{name}{theme.suffix}.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    ground = pixels[0, 0]
    assert (np.abs(pixels.astype(int) - ground) > 40).any(axis=2).mean() > 0.005
    assert (ground.mean() > 128) == (theme is LIGHT)


def test_the_page_holds_everything_and_the_document_links_beside_itself(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    sources = re.findall(r'(?:src|srcset|href)="([^"]*)"', page)
    assert len(sources) == 2 * len(PICTURES)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    document = (folder / "report.md").read_text()
    links = re.findall(r"\]\(([^)]+)\)", document)
    assert links == [f"by-dataset-{name}.png" for name in PICTURES]
    assert all((folder / link).is_file() for link in links)


@pytest.mark.parametrize("name", ["report.html", "report.md"])
def test_page_and_document_show_the_figures_of_the_cells(
    folder: Path, cells: list[CellResult], name: str
) -> None:
    shown = (folder / name).read_text()
    ours = spread(mean_of_silos(c, "global", "rank1") for c in cells if c.method == "best")
    assert ours is not None and ours.sd is not None
    assert f"{100 * ours.mean:.1f}" in shown
    assert f"± {100 * ours.sd:.1f}" in shown
    for text in ("best", "reference", "centralised", "Generated images", "not measured", "FedPav"):
        assert text in shown
    assert "nan" not in re.findall(r"[a-z]+", re.sub('base64,[^"]+', "", shown))


def test_tables_of_the_document_have_as_many_cells_in_each_line(folder: Path) -> None:
    blocks = re.findall(r"(?:^\|.*\|$\n?)+", (folder / "report.md").read_text(), re.MULTILINE)
    assert len(blocks) == 3 + 7
    for block in blocks:
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_csv_and_parquet_hold_the_same_rows(folder: Path, cells: list[CellResult]) -> None:
    table = parquet.read_table(folder / "results.parquet")
    assert table.schema.equals(SCHEMA)
    with (folder / "results.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert list(lines[0]) == SCHEMA.names
    rows = table.to_pylist()
    assert len(rows) == len(lines)
    for row, line in zip(rows, lines, strict=True):
        assert line["method"] == row["method"]
        assert line["map"] == ("" if row["map"] is None else repr(row["map"]))
    federated = 2 * 2 * 4
    baselines = 2 * 2 * 4
    assert len(rows) == federated * (1 + 3 * 2) + baselines


def test_a_row_carries_its_cell_round_silo_and_model(tmp_path: Path) -> None:
    last = round_of(7, {"x": {"global": accuracy(0.5, mean_precision=0.4)}, "y": {}})
    measured = cell("a", 3, (last,), silos={"x": use(60), "y": use(30)})
    write_long_form([msgspec.structs.replace(measured, untrained={"x": accuracy(0.1)})], tmp_path)
    start, ours, unmeasured = parquet.read_table(tmp_path / "results.parquet").to_pylist()
    assert (start["round"], start["model"], start["weight"]) == (0, "untrained", None)
    assert (ours["method"], ours["seed"], ours["silo"], ours["round"]) == ("a", 3, "x", 7)
    assert (ours["rank1"], ours["map"], ours["queries"]) == (0.5, 0.4, 144)
    assert ours["weight"] == last.weights["x"]
    assert ours["cosine_distance"] == last.cosine_distances["x"]
    assert ours["round_upload_bytes"] == last.upload_bytes
    assert (ours["round_seconds"], ours["cell_seconds"]) == (10.5, 63.0)
    assert (ours["generated"], ours["train_images"]) == (True, 60)
    assert (unmeasured["silo"], unmeasured["model"], unmeasured["rank1"]) == ("y", None, None)


def test_parquet_is_typed_where_everything_is_missing(tmp_path: Path) -> None:
    write_long_form([simple("a", 0, {"x": {"global": 0.5}}, kind="centralised")], tmp_path)
    table = parquet.read_table(tmp_path / "results.parquet")
    assert table.schema.field("weight").type == pa.float64()
    assert table.column("weight").null_count == 1


def test_a_grid_of_scraps_is_still_reported(tmp_path: Path) -> None:
    scraps = [
        simple("best", 0, {"x": {"global": 0.5}}),
        simple("other", 1, {"x": {"local": 0.4}, "y": {"local": 0.3}}),
        cell("empty", 0, (), silos={"z": use(10)}),
        simple("alone", 0, {"x": {"standalone": 0.2}}, kind="standalone", scenario="lonely"),
    ]
    page = write_grid_report(scraps, tmp_path).read_text()
    document = (tmp_path / "report.md").read_text()
    for text in (page, document):
        assert "12 of 16 cells are not there" in text
        assert "–" in text
        assert not NOT_FIGURES.search(without_pictures(text))


def test_names_from_outside_can_not_inject_markup(tmp_path: Path) -> None:
    odd = simple("<script>alert(1)</script>", 0, {"x": {"global": 0.5}})
    page = write_grid_report([odd], tmp_path).read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_silos_with_the_same_figures_share_a_panel_and_others_do_not() -> None:
    def panels(second: float) -> list[str]:
        rounds = tuple(
            round_of(n, {"x": {"global": accuracy(0.1 * n)}, "y": {"global": accuracy(second * n)}})
            for n in (1, 2)
        )
        grid = Grid.of([cell("a", 0, rounds)])
        styles = method_styles(grid, LIGHT)
        figure = convergence(grid, "by-dataset", styles, LIGHT, model="global", metric="rank1")
        assert figure is not None
        return [axes.get_title(loc="left") for axes in figure.axes]

    assert panels(0.2) == ["x", "y"]
    (shared,) = panels(0.1)
    assert "share" in shared


def test_the_price_of_noise_stands_beside_what_it_buys(tmp_path: Path) -> None:
    clear = cell("clear", 0, (round_of(1, {"x": {"global": accuracy(0.5)}}),))
    one = round_of(1, {"x": {"global": accuracy(0.25, mean_precision=0.125)}})
    noisy = msgspec.structs.replace(
        cell("noisy", 0, (msgspec.structs.replace(one, epsilons={"x": 4.7285}),)),
        policy=Policy(
            privacy=PrivacyPolicy(noise_multiplier=1.5, clip_norm=0.5, epsilon_budget=9.0)
        ),
    )
    assert privacy_table(Grid.of([clear]), "by-dataset") is None
    table = privacy_table(Grid.of([clear, noisy]), "by-dataset")
    assert table is not None
    assert "| noisy | 0.5 | 1.5 | 4.73 | 1e-05 | 12.5 |" in table.markdown
    assert "| clear | none | none | ∞ |" in table.markdown
    write_long_form([noisy], tmp_path)
    rows = parquet.read_table(tmp_path / "results.parquet").to_pylist()
    assert {row["epsilon"] for row in rows} == {4.7285}


def test_no_cells_are_told_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="Run the benchmark again"):
        write_grid_report([], tmp_path)


def test_a_method_keeps_its_colour_whatever_else_the_grid_holds() -> None:
    first = ("best", "reference")
    many = Grid.of(plausible(seeds=1, rounds=1))
    few = Grid.of(plausible(seeds=1, rounds=1, methods=("reference", "best")))
    for method in first:
        assert (
            method_styles(many, LIGHT, first=first)[method]
            == method_styles(few, LIGHT, first=first)[method]
        )
    colours = [style["color"] for style in method_styles(many, LIGHT, first=first).values()]
    assert len(set(colours)) == len(colours) == 4


def test_the_report_command_knows_a_demo_from_a_grid(tmp_path: Path) -> None:
    grid, demo = tmp_path / "grid", tmp_path / "demo"
    measured = simple("a", 0, {"x": {"global": 0.5}})
    (grid / "cells" / "a-0").mkdir(parents=True)
    write_cell(grid / "cells" / "a-0", measured)
    write_report(msgspec.structs.replace(made_up(1), rounds=()), demo)
    assert "made-up" in draw_again(grid).read_text()
    assert "city-cameras" in draw_again(demo).read_text()
    (grid / "bench.json").write_text('{"name": "x", "best": "a", "seeds": [0]}')
    assert "Mean mAP of a, by-dataset" in draw_again(grid).read_text()
    assert "Mean mAP of a" not in draw_again(grid, best="b").read_text()
    (grid / "bench.json").write_text("{")
    with pytest.raises(StorageError, match="can't be read"):
        draw_again(grid)
    with pytest.raises(ConfigRefused, match="neither"):
        draw_again(tmp_path)
