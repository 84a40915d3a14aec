"""Do report, evaluate, export, embed and search do what operators ask for, and nothing else?

One worker holds all of these tests: torch and the trained agents are loaded once.
"""

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fedreid.contract import ModelKind
from fedreid.datasets.layouts import load as load_dataset
from fedreid.errors import (
    DatasetError,
    IdentityMissing,
    JobFailed,
    StorageError,
    UsageError,
)
from fedreid.files import digest_of
from fedreid.reid.backbone import load_backbone
from fedreid.reid.features import extract_features
from fedreid.reid.transforms import ImageStore
from fedreid.wire.tensors import FloatArray, load_tensors
from silo_agent.budget import PrivacyBudget
from silo_agent.cli import app
from silo_agent.config import (
    AgentConfig,
    Folders,
    Membership,
    Policy,
    PrivacyPolicy,
    save_config,
    save_membership,
)
from silo_agent.held import newest_held
from silo_agent.outbox import UPDATE_FILE, Outbox
from silo_agent.privacy import make_private
from silo_agent.using import evaluating, exporting, gallery
from silo_agent.using.chosen import choose
from silo_agent.using.formats import Built
from tests.silo_agent.finished import BACKBONE

pytestmark = pytest.mark.xdist_group("using")

ROOT = Path(__file__).parents[3]
KINDS: tuple[ModelKind, ...] = ("global", "local", "standalone")


def run(folders: Folders, *arguments: object) -> str:
    """What a command prints; its error is raised."""
    command = [str(argument) for argument in arguments]
    result = CliRunner().invoke(
        app, [*command, "--data", str(folders.root)], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return result.stdout


def run_json(folders: Folders, *arguments: object) -> Any:
    return json.loads(run(folders, *arguments, "--json"))


def original(folders: Folders, paths: list[Path], model: Path | None = None) -> FloatArray:
    """feats_ND as the product measures them, of the silo's local model or of a file."""
    if model is None:
        last = Outbox(folders).last()
        assert last is not None
        model = Outbox(folders).folder(last) / "update.safetensors"
    backbone = load_backbone(BACKBONE, load_tensors(model))
    size = {"height_px": BACKBONE.height_px, "width_px": BACKBONE.width_px}
    return extract_features(backbone, ImageStore(paths, **size))


def query_paths(silo_images: Path) -> list[Path]:
    return [record.path for record in load_dataset(silo_images).query]


# report


def test_the_report_names_the_newest_figures_of_each_model_and_the_one_to_deploy(
    agent: Folders,
) -> None:
    told = run_json(agent, "report")
    assert [(one["model"], one["of_round"]) for one in told["models"]] == [
        ("global", 2), ("local", 2), ("standalone", 2),
    ]  # fmt: skip
    assert [one["of_round"] for one in told["history"] if one["model"] == "global"] == [0, 1, 2]
    best = max(told["models"], key=lambda one: one["map"])
    assert f"{100 * best['map']:.1f}%" in told["why"]
    page = run(agent, "report")
    assert f"Deploy the {told['deploy']} model: {told['why']}" in page
    assert f"{told['deploy']}, deploy" in page


def test_the_local_model_is_the_one_without_noise(agent: Folders, tmp_path: Path) -> None:
    own = Folders(Path(shutil.copytree(agent.root, tmp_path / "agent")))
    privacy = PrivacyPolicy(noise_multiplier=1.0, epsilon_budget=8.0)
    last = Outbox(own).last()
    held = newest_held(own, "spring")
    assert last is not None and held is not None
    before = choose(own, "local").provenance.digest
    update = Outbox(own).folder(last) / UPDATE_FILE
    without = digest_of(update)
    make_private(
        update.parent, Path(held.path), bn=last.bn, policy=Policy(privacy=privacy),
        budget=PrivacyBudget(own, privacy),
    )  # fmt: skip
    assert digest_of(update) != without
    assert choose(own, "local").provenance.digest == before
    found = run_json(own, "report")["privacy"]
    assert (found["updates"], found["on"]) == (1, False)
    assert found["epsilon"] == pytest.approx(4.73, abs=0.01)
    assert "epsilon 4.729" in run(own, "report")


def test_looking_at_a_folder_that_is_no_agents_makes_none(tmp_path: Path) -> None:
    for command in (["report"], ["evaluate"], ["embed", ".", "--out", tmp_path / "x.npz"]):
        with pytest.raises((IdentityMissing, UsageError)):
            run(Folders(tmp_path / "nobody"), *command)
    assert list(tmp_path.iterdir()) == []


def test_a_silo_that_has_trained_nothing_is_told_to_take_part(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    save_membership(folders, Membership(federation="harbour", silo="north", model_key=b""))
    save_config(folders, AgentConfig(coordinator="127.0.0.1:1", dataset=str(tmp_path)))
    with pytest.raises(UsageError, match="silo-agent run"):
        run(folders, "report")


# evaluate


@pytest.mark.parametrize("kind", KINDS)
def test_evaluating_again_gives_the_figures_of_the_run(agent: Folders, kind: str) -> None:
    (reported,) = (one for one in run_json(agent, "report")["models"] if one["model"] == kind)
    measured = run_json(agent, "evaluate", "--model", kind)
    for name in ("rank1", "rank5", "rank10", "map", "minp", "queries"):
        assert measured[name] == pytest.approx(reported[name]), name
    assert (measured["model"]["run"], measured["model"]["round"]) == ("spring", 2)


def test_the_global_model_carries_the_silos_own_batch_norm_where_the_plan_keeps_it(
    own_norm_agent: Folders,
) -> None:
    (reported,) = (
        one for one in run_json(own_norm_agent, "report")["models"] if one["model"] == "global"
    )
    measured = run_json(own_norm_agent, "evaluate", "--model", "global")
    assert measured["map"] == pytest.approx(reported["map"])
    assert measured["model"]["own_batch_norm"]
    assert measured["model"]["digest"] != measured["model"]["published_digest"]


def test_a_model_file_is_measured_on_another_dataset(
    agent: Folders, silo_images: Path, tmp_path: Path
) -> None:
    other = tmp_path / "moved"
    other.symlink_to(silo_images)
    run(agent, "model", "export", "--model", "standalone", "--format", "safetensors",
        "--out", tmp_path / "m.safetensors")  # fmt: skip
    measured = run_json(
        agent, "evaluate", "--model", tmp_path / "m.safetensors", "--dataset", other,
        "--layout", "market1501",
    )  # fmt: skip
    assert measured["map"] == run_json(agent, "evaluate", "--model", "standalone")["map"]
    assert measured["model"]["model"] == "standalone"
    assert measured["dataset"] == str(other)
    nobody = Folders(tmp_path / "nobody")  # with its note a file needs no agent
    again = run_json(nobody, "evaluate", "--model", tmp_path / "m.safetensors", "--dataset", other)
    assert again["map"] == measured["map"]
    (tmp_path / "m.safetensors.json").unlink()
    unknown = run_json(agent, "evaluate", "--model", tmp_path / "m.safetensors")
    assert unknown["map"] == measured["map"]
    assert (unknown["model"]["model"], unknown["model"]["round"]) == ("file", None)


def test_figures_after_reranking_are_other_ones_and_say_so(
    agent: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run_json(agent, "evaluate", "--model", "standalone")
    reranked = run_json(agent, "evaluate", "--model", "standalone", "--rerank")
    assert (plain["reranked"], reranked["reranked"]) == (False, True)
    assert reranked["map"] != plain["map"]
    assert reranked["queries"] == plain["queries"]
    assert "re-ranked" in run(agent, "evaluate", "--rerank")
    monkeypatch.setattr(evaluating, "RERANK_IMAGES", 10)
    with pytest.raises(UsageError, match="too large to be re-ranked"):
        run(agent, "evaluate", "--rerank")


def test_ranked_lists_are_drawn(agent: Folders, tmp_path: Path) -> None:
    out = tmp_path / "ranked.png"
    printed = run(agent, "evaluate", "--visualise", out, "--queries", 3)
    assert "ranked lists of 3 queries" in printed
    with Image.open(out) as three:
        run(agent, "evaluate", "--visualise", out, "--queries", 1)
        with Image.open(out) as one:
            assert three.width == one.width > 1000
            assert three.height > 2 * one.height - 150


@pytest.mark.parametrize(
    ("model", "said"),
    [("globl", "Use global, local, standalone"), ("standalone", "its plan trains none")],
)
def test_a_model_that_is_not_there_is_refused(
    own_norm_agent: Folders, model: str, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        run(own_norm_agent, "evaluate", "--model", model)


def test_a_file_that_is_no_model_is_refused(agent: Folders, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"something else")
    with pytest.raises(UsageError, match="is no model of ours"):
        run(agent, "evaluate", "--model", tmp_path / "m.safetensors")


def test_a_test_set_without_an_answer_is_refused(agent: Folders, tmp_path: Path) -> None:
    for split in ("query", "gallery"):
        (tmp_path / "set" / split / "7" / "1").mkdir(parents=True)
        Image.new("RGB", (32, 64)).save(tmp_path / "set" / split / "7" / "1" / "a.png")
    with pytest.raises(DatasetError, match="no query has its person in another camera"):
        run(agent, "evaluate", "--dataset", tmp_path / "set")


# model export


def run_onnx(path: Path, images: FloatArray) -> FloatArray:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    embeddings: FloatArray = session.run(["embeddings"], {"images": images})[0]
    return embeddings


def run_torchscript(path: Path, images: FloatArray) -> FloatArray:
    loaded = torch.jit.load(path)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        embeddings: FloatArray = loaded(torch.from_numpy(images)).numpy()
    return embeddings


RUNNERS = {"onnx": run_onnx, "torchscript": run_torchscript}


Export = tuple[str, Path, Any]
"""Format, file, and what the command printed."""


@pytest.fixture(scope="module")
def onnx_export(agent: Folders, tmp_path_factory: pytest.TempPathFactory) -> Export:
    return export(agent, "onnx", tmp_path_factory.mktemp("onnx"))


@pytest.fixture(scope="module")
def torchscript_export(agent: Folders, tmp_path_factory: pytest.TempPathFactory) -> Export:
    return export(agent, "torchscript", tmp_path_factory.mktemp("torchscript"))


@pytest.fixture(params=["onnx_export", "torchscript_export"])
def exported(request: pytest.FixtureRequest) -> Export:
    """The local model in a format that others run."""
    chosen: Export = request.getfixturevalue(request.param)
    return chosen


def export(folders: Folders, form: str, folder: Path) -> Export:
    out = folder / "reid"
    told = run_json(folders, "model", "export", "--model", "local", "--format", form, "--out", out)
    return form, out, told


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_an_exported_model_gives_a_stranger_the_same_embeddings(
    agent: Folders, silo_images: Path, exported: Export
) -> None:
    form, out, told = exported
    assert 0 <= told["largest_difference"] <= 1e-4
    paths = query_paths(silo_images)[:5]
    expected = original(agent, paths)
    images = np.stack(
        [
            np.asarray(Image.open(path).resize((32, 64), Image.Resampling.BICUBIC), np.float32)
            for path in paths
        ]
    ).transpose(0, 3, 1, 2) / np.float32(255)
    for count in (1, 5):
        embeddings = RUNNERS[form](out, images[:count])
        np.testing.assert_allclose(embeddings, expected[:count], atol=1e-4)
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)


def test_the_documented_example_runs_an_exported_file(
    agent: Folders,
    silo_images: Path,
    onnx_export: Export,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reid.onnx").symlink_to(onnx_export[1])
    paths = query_paths(silo_images)[:2]
    for name, path in zip("ab", paths, strict=True):
        (tmp_path / f"{name}.jpg").symlink_to(path)
    text = (ROOT / "docs/models.md").read_text()
    exec(text.split("```python\n")[1].split("```")[0], {})
    a, b = original(agent, paths)
    assert float(capsys.readouterr().out.split()[-1]) == pytest.approx(float(a @ b), abs=1e-4)


def test_the_note_says_which_model_it_is_and_what_it_takes(exported: Export) -> None:
    form, out, _ = exported
    note = json.loads(out.with_name("reid.json").read_bytes())
    assert (note["format"], note["file_digest"]) == (form, digest_of(out))
    assert note["input"]["shape"] == ["N", 3, 64, 32]
    assert note["output"]["shape"] == ["N", 512]
    assert (note["model"]["model"], note["model"]["round"]) == ("local", 2)
    assert len(note["normalisation"]["mean"]) == 3
    assert note["left_to_the_caller"] == ["resize, RGB, divide by 255"]


def test_a_published_model_is_exported_bit_by_bit(agent: Folders, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    run(agent, "model", "export", "--format", "safetensors", "--out", out)
    note = json.loads((tmp_path / "m.safetensors.json").read_bytes())
    assert digest_of(out) == note["model"]["published_digest"] == note["model"]["digest"]
    assert len(note["left_to_the_caller"]) == 2


def test_an_exported_file_holds_its_note_and_no_path_of_this_machine(
    agent: Folders, exported: Export
) -> None:
    _, out, _ = exported
    data = out.read_bytes()
    assert b"fedreid.json" in data and b'"published_digest"' in data
    for path in (b"site-packages", str(ROOT).encode(), bytes(agent.root)):
        assert path not in data


def test_a_file_that_gives_other_embeddings_is_not_written(
    agent: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Built:
        return Built(data=b"x", run=lambda pixels: np.zeros((len(pixels), 512), np.float32))

    monkeypatch.setattr(exporting, "torchscript", broken)
    with pytest.raises(JobFailed, match="none was written"):
        run(agent, "model", "export", "--format", "torchscript", "--out", tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("package", "extra", "command"),
    [
        ("onnxruntime", "export", ["model", "export", "--format", "onnx", "--out"]),
        ("pyarrow", "search", ["embed", "IMAGES", "--out"]),
        ("faiss", "search", ["embed", "IMAGES", "--out"]),
    ],
)
def test_a_missing_package_is_told_with_its_extra(
    agent: Folders,
    silo_images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
    extra: str,
    command: list[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    endings = {"onnxruntime": "onnx", "pyarrow": "parquet", "faiss": "faiss"}
    filled = [str(silo_images / "query") if word == "IMAGES" else word for word in command]
    with pytest.raises(UsageError, match=rf"fedreid\[{extra}\]"):
        run(agent, *filled, tmp_path / f"out.{endings[package]}")
    assert list(tmp_path.iterdir()) == []


# embed


@pytest.mark.parametrize("ending", ["npz", "parquet", "faiss"])
def test_embeddings_come_back_as_they_were_made(
    agent: Folders, silo_images: Path, tmp_path: Path, ending: str
) -> None:
    out = tmp_path / f"gallery.{ending}"
    told = run_json(agent, "embed", silo_images / "query", "--model", "local", "--out", out)
    paths = query_paths(silo_images)
    assert (told["images"], told["width"], told["skipped"]) == (len(paths), 512, [])
    read = gallery.load(out)
    assert read.paths == tuple(map(str, paths))
    assert read.values_ND.dtype == np.float32
    np.testing.assert_allclose(read.values_ND, original(agent, paths), atol=1e-6)
    assert read.provenance.to_builtins() == told["model"]


def test_an_unreadable_image_of_a_folder_is_skipped_and_named_and_one_by_name_is_an_error(
    agent: Folders, silo_images: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "crops"
    folder.mkdir()
    (folder / "good.jpg").symlink_to(query_paths(silo_images)[0])
    (folder / "bad.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    out = tmp_path / "out.npz"
    told = run_json(agent, "embed", folder, "--out", out)
    assert told["images"] == 1
    assert told["skipped"] == [{"path": str(folder / "bad.jpg"), "why": "it is empty"}]
    assert "1 image files can't be read and are skipped" in run(
        agent, "embed", folder, "--out", out
    )
    out.unlink()
    for named in ([folder / "bad.jpg"], [folder, folder / "bad.jpg"]):
        with pytest.raises(DatasetError, match=r"bad\.jpg"):
            run(agent, "embed", *named, "--out", out)
    (folder / "good.jpg").unlink()
    with pytest.raises(DatasetError, match="None of 1 image files can be read"):
        run(agent, "embed", folder, "--out", out)
    assert not out.exists()


def test_a_name_that_tells_no_format_is_refused_before_any_work(
    agent: Folders, silo_images: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"\.npz, \.parquet, \.faiss"):
        run(agent, "embed", silo_images, "--out", tmp_path / "out.csv")


@pytest.mark.parametrize("ending", ["npz", "parquet", "faiss", "faiss.json"])
def test_a_damaged_gallery_is_an_error_that_names_it(
    agent: Folders, silo_images: Path, tmp_path: Path, ending: str
) -> None:
    out = tmp_path / f"gallery.{ending.removesuffix('.json')}"
    run(agent, "embed", silo_images / "query", "--out", out)
    (tmp_path / f"gallery.{ending}").write_bytes(b"{}")
    with pytest.raises(StorageError, match=out.name):
        run(agent, "search", silo_images / "query", "--gallery", out)


def test_an_index_with_the_note_of_another_is_refused(
    agent: Folders, silo_images: Path, tmp_path: Path
) -> None:
    out, other = tmp_path / "one.faiss", tmp_path / "other.faiss"
    run(agent, "embed", silo_images / "query", "--out", out)
    run(agent, "embed", silo_images / "bounding_box_test", "--out", other)
    out.write_bytes(other.read_bytes())
    with pytest.raises(StorageError, match="belongs to another index"):
        gallery.load(out)


# search


@pytest.mark.parametrize("ending", ["npz", "parquet", "faiss", "folder"])
def test_a_search_ranks_by_cosine_whatever_the_gallery_lies_in(
    agent: Folders, silo_images: Path, tmp_path: Path, ending: str
) -> None:
    searched = silo_images / "bounding_box_test"
    where = searched
    if ending != "folder":
        where = tmp_path / f"gallery.{ending}"
        run(agent, "embed", searched, "--model", "local", "--out", where)
    queries = query_paths(silo_images)[:3]
    told = run_json(agent, "search", *queries, "--gallery", where, "--model", "local", "--top", 4)
    paths = sorted(searched.iterdir())
    assert told["gallery_images"] == len(paths)
    cosines = original(agent, queries) @ original(agent, paths).T
    for row, found in zip(cosines, told["queries"], strict=True):
        similarities = [match["similarity"] for match in found["matches"]]
        np.testing.assert_allclose(similarities, np.sort(row)[::-1][:4], atol=1e-6)
        for match in found["matches"]:
            assert row[paths.index(Path(match["path"]))] == pytest.approx(
                match["similarity"], abs=1e-6
            )


def test_a_query_never_finds_its_own_file(agent: Folders, silo_images: Path) -> None:
    folder = silo_images / "query"
    for found in run_json(agent, "search", folder, "--gallery", folder, "--top", 50)["queries"]:
        paths = [match["path"] for match in found["matches"]]
        assert found["query"] not in paths
        assert len(paths) == len(query_paths(silo_images)) - 1


def test_matches_are_written_as_a_table_and_drawn(
    agent: Folders, silo_images: Path, tmp_path: Path
) -> None:
    table, picture = tmp_path / "t.csv", tmp_path / "p.png"
    told = run_json(
        agent, "search", silo_images / "query", "--gallery", silo_images / "bounding_box_test",
        "--top", 2, "--out", table, "--picture", picture,
    )  # fmt: skip
    with table.open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    expected = [
        (found["query"], str(rank), match["path"])
        for found in told["queries"]
        for rank, match in enumerate(found["matches"], start=1)
    ]
    assert [(line["query"], line["rank"], line["path"]) for line in lines] == expected
    with Image.open(picture) as image:
        assert image.height > len(told["queries"]) * 200


def test_a_gallery_of_another_model_is_refused_with_the_model_to_choose(
    agent: Folders, silo_images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "gallery.faiss"
    run(agent, "embed", silo_images / "query", "--model", "standalone", "--out", out)
    with pytest.raises(UsageError, match="--model standalone"):
        run(agent, "search", silo_images / "query", "--gallery", out, "--model", "global")


def test_an_image_or_folder_that_is_not_there_is_named(agent: Folders, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DatasetError, match="nowhere"):
        run(agent, "search", tmp_path / "nowhere", "--gallery", tmp_path)
    with pytest.raises(DatasetError, match="no image below"):
        run(agent, "embed", empty, "--out", tmp_path / "out.npz")
