"""Does a grid find the right figure for each method, scenario, seed and silo?"""

import msgspec

from benchmark.accuracy_table import NOT_COMPARABLE, accuracy_table, published_table
from benchmark.cells import CellResult, SiloUse
from benchmark.finished import Grid, at_the_end, mean_of_silos
from benchmark.grid_tables import comparison_table, cost_table, steadiness_table, winner_table
from benchmark.results import ModelKind
from benchmark.tables import Entry, Row, Table
from tests.benchmark.made_up_grid import accuracy, cell, plausible, round_of, simple, use


def row(table: Table, name: str, note: str = "") -> Row:
    (found,) = (one for one in table.rows if one.name == name and one.note.startswith(note))
    return found


def entry(table: Table, name: str, column: str, note: str = "") -> Entry:
    titles = [one.title for one in table.columns]
    return row(table, name, note).entries[titles.index(column)]


def test_the_last_round_counts_and_not_the_best_one() -> None:
    rounds = tuple(
        round_of(number, {"x": {"global": accuracy(value)}})
        for number, value in ((1, 0.9), (2, 0.4))
    )
    found = at_the_end(cell("a", 0, rounds), "x", "global")
    assert found is not None and found.rank1 == 0.4
    table = accuracy_table(Grid.of([cell("a", 0, rounds)]), "by-dataset")
    assert entry(table, "a", "x", "global").text == "40.0"


def test_a_last_round_without_figures_is_not_replaced_by_an_earlier_one() -> None:
    rounds = (round_of(1, {"x": {"global": accuracy(0.9)}}), round_of(2, {"x": {}}))
    assert at_the_end(cell("a", 0, rounds), "x", "global") is None
    assert at_the_end(cell("a", 0, ()), "x", "global") is None


def test_means_and_deviations_stand_in_the_table() -> None:
    values = (0.50, 0.52, 0.57)
    grid = Grid.of(
        [
            simple("a", seed, {"x": {"global": value}, "y": {"global": value - 0.2}})
            for seed, value in enumerate(values)
        ]
    )
    table = accuracy_table(grid, "by-dataset")
    assert entry(table, "a", "x", "global") == Entry(
        text="53.0", beside="± 3.6", below="53.0 ± 3.6", best=True
    )
    assert entry(table, "a", "mean", "global").text == "43.0"
    assert entry(table, "a", "seeds", "global").text == "3"
    assert entry(table, "a", "x", "local") == Entry()


def two_silos(seed: int, figures: dict[str, dict[ModelKind, float]]) -> CellResult:
    silos = {"x": use(100), "y": use(50)}
    return msgspec.structs.replace(simple("a", seed, figures), silos=silos)


def test_missing_figures_are_dashes_and_n_is_told() -> None:
    grid = Grid.of(
        [
            two_silos(0, {"x": {"global": 0.5}, "y": {"global": 0.3}}),
            two_silos(1, {"x": {"global": 0.7}}),
        ]
    )
    table = accuracy_table(grid, "by-dataset")
    assert entry(table, "a", "x", "global").text == "60.0"
    assert entry(table, "a", "y", "global") == Entry(text="30.0", below="30.0 n = 1", best=True)
    assert entry(table, "a", "mean", "global") == Entry(text="40.0", below="40.0 n = 1", best=True)
    assert mean_of_silos(grid.cells[1], "global", "map") is None


def test_the_highest_federated_rank1_is_marked_and_no_baseline() -> None:
    grid = Grid.of(
        [
            simple("a", 0, {"x": {"global": 0.5, "local": 0.6}}),
            simple("b", 0, {"x": {"global": 0.55, "local": 0.2}}),
            simple("all", 0, {"x": {"global": 0.9}}, kind="centralised"),
        ]
    )
    table = accuracy_table(grid, "by-dataset")
    assert [one.name for one in table.rows][1:] == ["all", "a", "a", "b", "b"]
    marked = [(one.name, one.note) for one in table.rows if one.entries[0].best]
    assert marked == [("a", "local")]


def test_cells_over_both_transports_count_once() -> None:
    local = simple("a", 0, {"x": {"global": 0.5}})
    grid = Grid.of([msgspec.structs.replace(local, transport="grpc"), local])
    assert len(grid.cells) == 1
    assert entry(accuracy_table(grid, "by-dataset"), "a", "seeds", "global").text == "1"


def test_scenarios_are_ordered_by_kind_and_missing_cells_named() -> None:
    cells = plausible(seeds=2, rounds=1, methods=("best",))
    grid = Grid.of(cells[1:])
    assert grid.scenarios == ("by-dataset", "by-camera")
    assert grid.all_methods == ("centralised", "standalone", "best")
    assert grid.missing == (("by-dataset", "best", 0),)


def datasets(*uses: SiloUse) -> Grid:
    silos = {f"silo-{index}": one for index, one in enumerate(uses)}
    made = simple("a", 0, {silo: {"global": 0.5} for silo in silos})
    return Grid.of([msgspec.structs.replace(made, silos=silos)])


def test_published_rows_stand_under_the_silo_with_their_dataset() -> None:
    grid = datasets(
        use(100, dataset="viper", generated=False),
        use(900, dataset="our-site", generated=False),
        use(50, dataset="market1501", generated=False),
    )
    table = accuracy_table(grid, "by-dataset")
    assert [one.title for one in table.columns][:3] == ["silo-2", "silo-0", "silo-1"]
    published = row(table, "FedPav, global")
    assert published.tone == "published" and published.note == "published"
    assert [one.text for one in published.entries] == ["83.4", "48.1", "–", "–", ""]
    assert entry(table, "train images", "silo-2") == Entry(text="50", below="real: Market-1501")
    assert "Really present: Market-1501 (silo-2), VIPeR (silo-0)" in table.remarks[0]
    assert published_table(grid, "by-dataset") is None


def test_published_rows_beside_generated_images_say_that_they_can_not_be_compared() -> None:
    made = use(100, dataset="market1501")
    table = accuracy_table(datasets(made), "by-dataset")
    assert NOT_COMPARABLE in row(table, "CDW, local").note
    assert entry(table, "train images", "silo-0").below == "generated"
    mixed = accuracy_table(datasets(made, use(9, dataset="viper", generated=False)), "by-dataset")
    assert [one.text for one in row(mixed, "CDW, local").entries][:2] == ["(90.3)", "53.5"]


def test_without_any_of_their_datasets_the_published_figures_stand_apart() -> None:
    grid = datasets(use(100))
    assert all(one.tone == "ours" for one in accuracy_table(grid, "by-dataset").rows)
    apart = published_table(grid, "by-dataset")
    assert apart is not None and len(apart.columns) == 9
    assert entry(apart, "clustering + CDW, local", "i-LIDS").text == "80.6"


def test_by_camera_the_published_figure_is_that_of_the_whole_test_set() -> None:
    cells = plausible(
        seeds=1, rounds=1, scenarios=("by-camera",), methods=("best",), dataset="market1501"
    )
    table = accuracy_table(Grid.of(cells), "by-camera")
    assert entry(table, "FedPav", "mean") == Entry(text="(61.1)", below="(36.6)")
    assert entry(table, "FedPav", "camera-1") == Entry()


def test_the_standalone_baseline_supplies_the_figures_of_all_methods() -> None:
    own = simple("a", 0, {"x": {"standalone": 0.9, "local": 0.5, "global": 0.4}})
    baseline = simple("alone", 0, {"x": {"standalone": 0.45}}, kind="standalone")
    stronger = simple("alone-2", 0, {"x": {"standalone": 0.6}}, kind="standalone")
    assert Grid.of([own]).winner(own, "x") == "standalone"
    assert Grid.of([own, baseline]).winner(own, "x") == "local"
    assert Grid.of([own, baseline, stronger]).winner(own, "x") == "standalone"
    other_seed = msgspec.structs.replace(baseline, seed=1)
    assert Grid.of([own, other_seed]).winner(own, "x") == "standalone"


def test_a_federation_that_measured_its_own_standalone_shows_it() -> None:
    own = simple("a", 0, {"x": {"standalone": 0.3, "local": 0.5, "global": 0.4}})
    assert entry(accuracy_table(Grid.of([own]), "by-dataset"), "a", "x", "standalone").text == (
        "30.0"
    )
    baseline = simple("alone", 0, {"x": {"standalone": 0.45}}, kind="standalone")
    table = accuracy_table(Grid.of([own, baseline]), "by-dataset")
    assert [one.note for one in table.rows if one.name == "a"] == ["global", "local"]


def test_winners_are_counted_over_seeds() -> None:
    figures: list[dict[ModelKind, float]] = [
        {"standalone": 0.1, "local": 0.5, "global": 0.6},
        {"standalone": 0.1, "local": 0.5, "global": 0.7},
        {"standalone": 0.1, "local": 0.5, "global": 0.4},
        {"local": 0.5, "global": 0.4},
    ]
    grid = Grid.of([simple("a", seed, {"x": one}) for seed, one in enumerate(figures)])
    table = winner_table(grid, "by-dataset")
    assert entry(table, "a", "x") == Entry(text="global 2", below="local 1")
    unknown = Grid.of([simple("a", 0, {"x": {"local": 0.5, "global": 0.4}})])
    assert entry(winner_table(unknown, "by-dataset"), "a", "all silos") == Entry()


def test_steadiness_is_a_share_of_the_references() -> None:
    def run(method: str, wobble: float) -> CellResult:
        rounds = (
            round_of(number, {"x": {"global": accuracy(0.5 + wobble * (-1) ** number)}})
            for number in range(1, 5)
        )
        return cell(method, 0, tuple(rounds))

    table = steadiness_table(
        Grid.of([run("a", 0.01), run("b", 0.04), simple("c", 0, {"x": {"global": 0.5}})]),
        "by-dataset",
        "b",
    )
    assert [one.text for one in row(table, "a").entries] == [
        "51.0", "50.0", "31.0", "2.0", "0.25", "4", "1",
    ]  # fmt: skip
    assert row(table, "a").entries[1].beside == "± 1.2"
    assert [one.text for one in row(table, "c").entries] == ["50.0", *["–"] * 5, "1"]


def test_comparisons_state_gain_tests_and_n() -> None:
    cells = []
    for seed, step in enumerate((0.01, 0.02, 0.03)):
        cells.append(simple("a", seed, {"x": {"global": 0.5 + step}, "y": {"global": 0.5}}))
        cells.append(simple("b", seed, {"x": {"global": 0.5}, "y": {"global": 0.5}}))
    table = comparison_table(Grid.of(cells), "by-dataset", "b")
    assert table is not None
    found = row(table, "a", "global").entries
    assert found[0] == Entry(text="+1.0", beside="± 0.5")
    assert (found[1].text, found[2].text) == ("0.074", "0.250")
    assert found[6].text == "3"
    assert found[7] == Entry(text="+1.0", beside="± 1.3", below="n = 6")
    assert comparison_table(Grid.of(cells), "by-dataset", "not-there") is None


def test_cost_is_of_the_whole_run_per_silo_and_in_total() -> None:
    rounds = tuple(
        round_of(number, {"x": {"global": accuracy(0.5)}, "y": {"global": accuracy(0.5)}})
        for number in (1, 2, 3)
    )
    grid = Grid.of(
        [
            cell("a", 0, rounds),
            cell("a", 1, rounds),
            simple("alone", 0, {"x": {"standalone": 0.4}}, kind="standalone"),
        ]
    )
    table = cost_table(grid, "by-dataset")
    texts = [one.text for one in row(table, "a").entries]
    assert texts == ["3", "17.7 MiB", "35.5 MiB", "35.5 MiB", "71.0 MiB", "60.5 s", "2"]
    assert [one.text for one in row(table, "alone").entries] == [*["–"] * 5, "60.0 s", "1"]


def test_a_bar_in_a_name_does_not_break_a_markdown_table() -> None:
    table = accuracy_table(Grid.of([simple("a|b", 0, {"x": {"global": 0.5}})]), "by-dataset")
    lines = table.markdown.splitlines()
    assert "| a\\|b<br>global |" in lines[3]
    assert {line.replace("\\|", "").count("|") for line in lines} == {5}
