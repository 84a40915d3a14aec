import json
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from fedreid.datasets.layouts import load
from fedreid.errors import DatasetError, StorageError, UsageError
from silo_agent.cli import app
from silo_agent.config import AgentConfig, Folders, load_config, save_config
from silo_agent.using.commands import own_dataset
from tests.fixtures.layouts import Crop, write_crops, write_set


@pytest.fixture(autouse=True)
def _no_new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """``join`` would replace this process, the tests', by one with other settings."""
    monkeypatch.setattr("fedreid.launch.prepare", lambda: None)


def run(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_check_prints_counts_and_warns_of_an_incomplete_set(tmp_path: Path) -> None:
    result = run("data", "check", write_set("cuhk01", tmp_path))
    assert result.exit_code == 0
    assert "in the layout cuhk01" in " ".join(result.output.split())  # long titles are wrapped
    assert "warning: This is not the complete CUHK01" in result.output


def test_check_of_another_split_finds_others(tmp_path: Path) -> None:
    root = write_set("ilids", tmp_path)
    found = [json.loads(run("data", "check", root, "--split", n, "--json").stdout) for n in "01"]
    assert found[0]["splits"]["train"]["identities"] == found[1]["splits"]["train"]["identities"]
    assert found[0]["splits"] != found[1]["splits"]


def test_check_names_files_that_no_alphabet_holds(tmp_path: Path) -> None:
    write_crops(tmp_path, (Crop(f"train/{p}/c/1.jpg", p, 1) for p in range(1, 4)))
    broken = tmp_path / "train/1/c/caf\udce9.jpg"
    broken.touch()
    plain, machine = run("data", "check", tmp_path), run("data", "check", tmp_path, "--json")
    assert (plain.exit_code, machine.exit_code) == (0, 0)
    assert "caf\ufffd.jpg: it is empty" in plain.stdout
    assert json.loads(machine.stdout)["unreadable"][0]["path"].endswith("caf?.jpg")


def test_check_refuses_what_cannot_be_trained_on(tmp_path: Path) -> None:
    write_crops(tmp_path, (Crop(f"train/1/c/{n}.jpg", 1, 1) for n in range(3)))
    result = run("data", "check", tmp_path)
    assert isinstance(result.exception, DatasetError)
    assert "one identity" in str(result.exception)


def test_duke_needs_a_confirmation_in_every_command(tmp_path: Path) -> None:
    root = write_set("dukemtmc-reid", tmp_path / "set")
    sheet = tmp_path / "sheet.png"
    for words in (("data", "check", root), ("data", "preview", root, "--out", sheet)):
        assert isinstance(run(*words).exception, UsageError)
        assert run(*words, "--confirm-withdrawn").exit_code == 0


def test_preview_writes_a_sheet_and_says_what_is_on_it(tmp_path: Path) -> None:
    root = write_set("market1501", tmp_path / "market")
    result = run("data", "preview", root, "--out", tmp_path / "sheet.png")
    assert result.exit_code == 0, result.exception
    assert "3 identities in 4 cameras" in result.output
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.height > sheet.width > 900


@pytest.mark.parametrize(
    ("folder", "out", "error", "sentence"),
    [
        ("", "sheet.jpg", UsageError, "no name of a PNG"),
        ("", "nowhere/sheet.png", StorageError, "Can't write"),
        ("empty", "sheet.png", DatasetError, "holds no image"),
        ("missing", "sheet.png", DatasetError, "is not there"),
    ],
)
def test_preview_tells_what_is_wrong(
    tmp_path: Path, folder: str, out: str, error: type[Exception], sentence: str
) -> None:
    root = write_set("market1501", tmp_path / "market")
    (root / "empty").mkdir()
    result = run("data", "preview", root / folder, "--out", tmp_path / out)
    assert isinstance(result.exception, error)
    assert sentence in str(result.exception)
    assert not (tmp_path / out).exists()


def test_join_looks_at_the_images_before_it_spends_a_token(tmp_path: Path) -> None:
    write_crops(tmp_path / "images", (Crop(f"train/1/c/{n}.jpg", 1, 1) for n in range(3)))
    words = ("join", "--coordinator", "reid.example.org:443", "--data", tmp_path / "agent")
    result = run(*words, "--dataset", tmp_path / "images")
    assert isinstance(result.exception, DatasetError)
    assert "one identity" in str(result.exception)
    assert not (tmp_path / "agent").exists()


def test_join_keeps_split_and_confirmation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Member:
        silo, federation = "station", "harbour"

    monkeypatch.setattr("silo_agent.cli._enrolled", lambda folders: True)
    monkeypatch.setattr("silo_agent.config.load_membership", lambda folders: Member)
    root = write_set("dukemtmc-reid", tmp_path / "images")
    words = ("join", "--coordinator", "reid.example.org:443", "--dataset", root, "--enrol-only")
    data = ("--data", tmp_path / "agent", "--split", "3", "--confirm-withdrawn")
    (tmp_path / "agent").mkdir()
    result = run(*words, *data)
    assert result.exit_code == 0, result.exception
    assert "warning: This is not the complete DukeMTMC-reID" in result.output
    config = load_config(Folders(tmp_path / "agent"))
    assert (config.split, config.withdrawn_confirmed) == (3, True)


def test_a_model_is_measured_on_the_split_that_the_silo_uses(tmp_path: Path) -> None:
    root = write_set("cuhk01", tmp_path / "images")
    assert load(root, split=3) != load(root)
    config = AgentConfig(coordinator="reid.example.org:443", dataset=str(root), split=3)
    (tmp_path / "agent").mkdir()
    save_config(Folders(tmp_path / "agent"), config)
    assert own_dataset(Folders(tmp_path / "agent")) == load(root, split=3)
