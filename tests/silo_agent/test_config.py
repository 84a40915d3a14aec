"""Are the agent's settings read strictly, and is every damaged file told as such?"""

from pathlib import Path

import pytest

from fedreid.errors import ConfigRefused, IdentityMissing, StorageError
from silo_agent.config import (
    AgentConfig,
    Folders,
    Membership,
    Policy,
    load_config,
    load_membership,
    read_policy,
    save_config,
    save_membership,
)

CONFIG = AgentConfig(
    coordinator="coordinator.example:443",
    dataset="/data/images",
    layout="market1501",
    processes=4,
    compiled=True,
    policy=Policy(batchnorm_statistics=False, minimum_images=100),
)
MINIMAL = 'coordinator = "a:1"\ndataset = "/d"\n'
MEMBERSHIP = Membership(federation="harbour", silo="north", model_key=bytes(range(32)))


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """An agent's data folder."""
    return Folders(tmp_path)


def refusal(folders: Folders, text: str) -> str:
    folders.config.write_text(text)
    with pytest.raises(ConfigRefused) as refused:
        load_config(folders)
    return str(refused.value)


def test_settings_come_back_as_they_were_saved(folders: Folders) -> None:
    save_config(folders, CONFIG)
    assert load_config(folders) == CONFIG


def test_an_operator_who_sets_nothing_has_the_documented_policy(folders: Folders) -> None:
    folders.config.write_text(MINIMAL)
    config = load_config(folders)
    assert config.layout == "auto"
    assert config.policy == Policy(batchnorm_statistics=True, minimum_images=2)


def test_a_folder_without_an_agent_says_how_to_join(folders: Folders) -> None:
    with pytest.raises(ConfigRefused, match="silo-agent join"):
        load_config(folders)


@pytest.mark.parametrize(
    ("line", "nearest"),
    [
        ("datasets = '/d'", "dataset"),
        ("[policy]\nbatchnorm_statistic = false", "batchnorm_statistics"),
        ("[policy]\nminimum_image = 5", "minimum_images"),
    ],
)
def test_a_misspelt_setting_is_refused_and_not_ignored(
    folders: Folders, line: str, nearest: str
) -> None:
    assert f"Did you mean {nearest!r}?" in refusal(folders, MINIMAL + line)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "coordinator = 'a:1'",
        "coordinator = 1\ndataset = '/d'",
        MINIMAL + "[policy]\nminimum_images = 'many'",
        MINIMAL + "[policy]\nbatchnorm_statistics = 0",
        MINIMAL + "policy = true",
        MINIMAL + "processes = 0",
        "no toml",
    ],
)
def test_settings_that_cannot_be_are_refused(folders: Folders, text: str) -> None:
    assert str(folders.config) in refusal(folders, text)


def test_settings_that_are_no_text_are_refused(folders: Folders) -> None:
    folders.config.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigRefused):
        load_config(folders)


def test_settings_that_cannot_be_read_are_refused(folders: Folders) -> None:
    folders.config.mkdir()
    with pytest.raises((ConfigRefused, StorageError)):
        load_config(folders)


def test_a_membership_comes_back_as_it_was_saved(folders: Folders) -> None:
    save_membership(folders, MEMBERSHIP)
    assert load_membership(folders) == MEMBERSHIP


def test_an_agent_that_has_not_enrolled_says_so(folders: Folders) -> None:
    with pytest.raises(IdentityMissing, match="--token-file"):
        load_membership(folders)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"federation":"x"}', b"\xff"])
def test_a_damaged_membership_is_a_storage_error(folders: Folders, damage: bytes) -> None:
    folders.membership.write_bytes(damage)
    with pytest.raises(StorageError, match="is damaged"):
        load_membership(folders)


def test_folders_that_hold_models_and_rounds_are_private(folders: Folders) -> None:
    for folder in (folders.models, folders.rounds):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_policy_is_read_from_a_file_as_strictly(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("# nothing beyond the default\n")
    assert read_policy(path) == Policy()
    path.write_text(
        "minimum_images = 500\n[privacy]\nnoise_multiplier = 1.0\nepsilon_budget = 2.0\n"
    )
    assert read_policy(path).minimum_images == 500 and read_policy(path).privacy.on
    path.write_text("minimum_image = 5\n")
    with pytest.raises(ConfigRefused, match="Did you mean 'minimum_images'"):
        read_policy(path)
    with pytest.raises(ConfigRefused, match="can't be read"):
        read_policy(tmp_path / "nothing.toml")
