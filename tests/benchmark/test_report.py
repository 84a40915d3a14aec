"""Does a report say what was measured, the same in its file, its page and its pictures?"""

import re
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from benchmark import results
from benchmark.checks import judged
from benchmark.report import write_report
from benchmark.results import Accuracy, Check, Results, SiloResult
from benchmark.summary import summary_table
from benchmark.theme import DARK, LIGHT, Theme
from fedreid.errors import DatasetError, StorageError
from fedreid.pages.page import duration_text, percent, size_text
from fedreid.pictures.ranked import RankedQuery, ranked_picture
from tests.benchmark.made_up import accuracy, made_up

PICTURES = ("accuracy-rank1", "accuracy-map", "weights", "distillation", "cost", "ranked")


def picture(path: Path, colour: str) -> Path:
    Image.new("RGB", (32, 64), colour).save(path)
    return path


def rows(folder: Path) -> list[RankedQuery]:
    return [
        RankedQuery(
            query=picture(folder / "query.png", "gray"),
            gallery=(picture(folder / "one.png", "gray"), picture(folder / "two.png", "gray")),
            correct=(True, False),
        )
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report") / "nested" / "run"
    write_report(made_up(4), out, ranked=rows(tmp_path_factory.mktemp("images")))
    return out


def test_the_file_holds_exactly_the_judged_results(folder: Path) -> None:
    assert results.read(folder / "report.json") == judged(made_up(4))


def test_the_files_keys_are_the_documented_ones(folder: Path) -> None:
    tree = msgspec.json.decode((folder / "report.json").read_bytes())
    assert {"silos", "rounds", "versions", "plan", "seed", "federation", "checks"} <= set(tree)
    assert set(tree["silos"]["mall"]) == {
        "images",
        "identities",
        "colours",
        "untrained",
        "standalone",
        "local",
        "global",
    }
    assert set(tree["silos"]["mall"]["global"]) == {"rank1", "rank5", "map", "minp", "queries"}
    assert set(tree["rounds"][0]["evaluations"]["mall"]) == {"standalone", "local", "global"}


@pytest.mark.parametrize("text", ["", "{", '{"federation": 3}'])
def test_a_damaged_file_is_told_with_the_next_step(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(StorageError, match="Run the benchmark again"):
        results.read(tmp_path / "report.json")
    with pytest.raises(StorageError, match="missing"):
        results.read(tmp_path / "missing.json")


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_every_picture_exists_in_both_modes_and_is_not_blank(
    folder: Path, name: str, theme: Theme
) -> None:
    with Image.open(folder / f"{name}{theme.suffix}.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    ground = pixels[0, 0]
    drawn = (np.abs(pixels.astype(int) - ground) > 40).any(axis=2).mean()
    assert drawn > 0.005
    assert (ground.mean() > 128) == (theme is LIGHT)


class Addresses(HTMLParser):
    """Everything that a browser would fetch, and the words that it would show."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [v for k, v in attrs if k in ("src", "srcset", "href", "data") and v]


def test_the_page_fetches_nothing(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    parser = Addresses()
    parser.feed(page)
    assert len(parser.found) == 2 * len(PICTURES)
    assert all(address.startswith("data:image/png;base64,") for address in parser.found)
    assert "script" not in parser.tags
    assert "link" not in parser.tags
    assert "@import" not in page
    assert "url(" not in page


def test_the_page_shows_the_figures_of_the_file(folder: Path) -> None:
    page = (folder / "report.html").read_text()
    for name, silo in made_up(4).silos.items():
        assert name in page
        for model in results.MODELS:
            measured = silo.accuracy(model)
            assert measured is not None
            assert percent(measured.rank1) in page
            assert f"mAP {percent(measured.map)}" in page


def test_seeing_more_than_colours_needs_twice_their_map_on_every_silo() -> None:
    run = made_up()
    enough = with_silo(run, "mall", colours=accuracy(0.1), global_=accuracy(0.2))
    assert check(enough, "sees-more-than-colours").met
    short = with_silo(run, "mall", colours=accuracy(0.1), global_=accuracy(0.19))
    assert not check(short, "sees-more-than-colours").met


def test_names_from_outside_can_not_inject_markup(tmp_path: Path) -> None:
    odd = msgspec.structs.replace(made_up(1), plan="<script>alert(1)</script>")
    page = write_report(odd, tmp_path / "out").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_a_report_written_again_keeps_the_ranked_picture(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = write_report(made_up(1), out, ranked=rows(tmp_path)).read_text()
    again = write_report(results.read(out / "report.json"), out).read_text()
    assert again == first


def check(measured: Results, name: str) -> Check:
    return next(one for one in judged(measured).checks if one.name == name)


def with_silo(measured: Results, name: str, **changes: Accuracy | None) -> Results:
    silo = msgspec.structs.replace(measured.silos[name], **changes)
    return msgspec.structs.replace(measured, silos={**measured.silos, name: silo})


def test_all_promises_are_met_by_a_good_run() -> None:
    assert [one.met for one in judged(made_up()).checks] == [True, True, True, True]


def test_learning_needs_one_and_a_half_times_the_untrained_on_every_silo() -> None:
    run = made_up()
    enough = with_silo(run, "mall", untrained=accuracy(0.2), global_=accuracy(0.3))
    assert check(enough, "learns").met
    short = with_silo(run, "mall", untrained=accuracy(0.2), global_=accuracy(0.29))
    assert not check(short, "learns").met
    assert [one.label for one in check(short, "learns").evidence if not one.met] == ["mall"]


def test_finding_nobody_is_never_one_and_a_half_times_nothing() -> None:
    nothing = with_silo(made_up(), "mall", untrained=accuracy(0.0), global_=accuracy(0.0))
    assert not check(nothing, "learns").met


def test_only_the_two_smallest_silos_must_gain_from_the_global_model() -> None:
    run = made_up()
    assert [one.label for one in check(run, "helps-the-smallest").evidence] == ["campus", "depot"]
    losing = {"standalone": accuracy(0.9)}
    assert check(with_silo(run, "station", **losing), "helps-the-smallest").met
    assert not check(with_silo(run, "campus", **losing), "helps-the-smallest").met
    equal = with_silo(run, "depot", standalone=accuracy(0.4), global_=accuracy(0.4))
    assert not check(equal, "helps-the-smallest").met


def test_local_must_be_as_good_as_standalone_on_average_only() -> None:
    run = made_up()
    for name, silo in run.silos.items():
        run = with_silo(run, name, local=silo.standalone)
    assert check(run, "costs-nothing").met
    assert not check(with_silo(run, "mall", local=accuracy(0.1)), "costs-nothing").met


@pytest.mark.parametrize("missing", ["untrained", "standalone", "local", "global_"])
def test_what_was_not_measured_is_not_met_and_still_reported(tmp_path: Path, missing: str) -> None:
    run = with_silo(made_up(2), "depot", **{missing: None})
    assert not all(one.met for one in judged(run).checks)
    assert "not met" in write_report(run, tmp_path).read_text()


def test_a_run_without_rounds_or_distillation_is_reported_without_their_pictures(
    tmp_path: Path,
) -> None:
    write_report(made_up(2, distilled=False), tmp_path / "plain")
    assert not (tmp_path / "plain" / "distillation.png").exists()
    empty = msgspec.structs.replace(made_up(2), rounds=())
    write_report(empty, tmp_path / "empty")
    assert list((tmp_path / "empty").glob("*.png")) == []


def test_the_best_model_is_by_rank1_then_map_and_never_the_untrained() -> None:
    silo = SiloResult(
        images=1,
        identities=1,
        untrained=accuracy(0.9),
        standalone=accuracy(0.5),
        local=msgspec.structs.replace(accuracy(0.5), map=0.4),
        global_=accuracy(0.4),
    )
    assert silo.best == "local"
    assert SiloResult(images=1, identities=1, untrained=accuracy(0.9)).best is None


def test_the_summary_table_marks_the_model_to_deploy() -> None:
    shown = StringIO()
    Console(width=120, file=shown).print(summary_table(made_up()))
    lines = [line for line in shown.getvalue().splitlines() if re.match("│ [a-z]+ ", line)]
    assert [line.split()[1] for line in lines] == ["station", "mall", "campus", "depot"]
    for line in lines:
        silo = made_up().silos[line.split()[1]]
        assert silo.best is not None
        best = silo.accuracy(silo.best)
        assert best is not None
        assert f"● {100 * best.rank1:.1f} / {100 * best.map:.1f}" in line
        assert line.count("●") == 1


def test_a_match_is_framed_green_and_a_miss_red(tmp_path: Path) -> None:
    out = ranked_picture(rows(tmp_path), tmp_path / "ranked.png")
    with Image.open(out) as image:
        colours = {colour for _, colour in image.getcolors(1 << 20) or []}
    for frame in (LIGHT.good, LIGHT.bad, LIGHT.muted):
        assert tuple(bytes.fromhex(frame[1:])) in colours
    all_wrong = [
        RankedQuery(query=row.query, gallery=row.gallery, correct=(False, False))
        for row in rows(tmp_path)
    ]
    with Image.open(ranked_picture(all_wrong, tmp_path / "wrong.png")) as image:
        colours = {colour for _, colour in image.getcolors(1 << 20) or []}
    assert tuple(bytes.fromhex(LIGHT.good[1:])) not in colours


def test_rows_of_different_length_fit_one_picture(tmp_path: Path) -> None:
    (row,) = rows(tmp_path)
    short = RankedQuery(query=row.query, gallery=row.gallery[:1], correct=(True,))
    one = Image.open(ranked_picture([row], tmp_path / "one-row.png")).size
    two = Image.open(ranked_picture([short, row], tmp_path / "two-rows.png")).size
    assert one[0] == two[0]
    assert one[1] < two[1]


def test_flags_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    (row,) = rows(tmp_path)
    with pytest.raises(ValueError, match="flag"):
        ranked_picture([], tmp_path / "none.png")
    with pytest.raises(ValueError, match="flag"):
        odd = RankedQuery(query=row.query, gallery=row.gallery, correct=(True,))
        ranked_picture([odd], tmp_path / "odd.png")
    with pytest.raises(DatasetError, match=r"missing\.png"):
        gone = RankedQuery(query=tmp_path / "missing.png", gallery=(), correct=())
        ranked_picture([gone], tmp_path / "gone.png")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (percent(None), "–"),
        (percent(0.5432), "54.3 %"),
        (size_text(900), "900 B"),
        (size_text(1536), "1.5 KiB"),
        (size_text(98.2 * 1024**2), "98.2 MiB"),
        (size_text(58.9 * 1024**3), "58.9 GiB"),
        (duration_text(18.84), "18.8 s"),
        (duration_text(119.99), "120.0 s"),
        (duration_text(376), "6 min 16 s"),
        (duration_text(3 * 3600 + 65), "3 h 01 min"),
    ],
)
def test_figures_carry_units(text: str, expected: str) -> None:
    assert text == expected
