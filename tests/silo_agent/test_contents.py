"""Is an upload shown as it is sent, and before the first one the most that it can be?"""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from fedreid.errors import PolicyRefused, UsageError
from fedreid.plan import Encoding
from fedreid.wire.tensors import FloatArray, save_tensors
from silo_agent.config import AgentConfig, Folders, Policy, save_config
from silo_agent.contents import TensorShown, contents_of
from silo_agent.egress import pack
from silo_agent.held import Held
from silo_agent.outbox import RESIDUAL_BEFORE_FILE, UPDATE_FILE, FinishedRound, Outbox
from tests.silo_agent.example_round import ROUND as EXAMPLE

ADDRESS = "coordinator.example:443"
BASE: dict[str, FloatArray] = {
    "bn.running_mean": np.zeros(3, dtype=np.float32),
    "conv.weight": np.ones((3, 2), dtype=np.float32),
}
CLASSIFIER = {"classifier.weight": np.full((4, 4), 7.0, dtype=np.float32)}
ROUND = msgspec.structs.replace(EXAMPLE, encoding="bf16", evaluations=())


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model file from the coordinator."""
    path = tmp_path / "model.safetensors"
    save_tensors(path, BASE)
    return path


def agent(tmp_path: Path, policy: Policy | None = None) -> Folders:
    folders = Folders(tmp_path / "agent")
    folders.root.mkdir(exist_ok=True)
    save_config(folders, AgentConfig(coordinator=ADDRESS, dataset="/d", policy=policy or Policy()))
    return folders


def fetched(folders: Folders) -> None:
    """Let the round's base model be in the cache."""
    name = f"{'b' * 64}.fp32"
    path = folders.models / f"{name}.safetensors"
    save_tensors(path, BASE)
    held = Held(path=str(path), digest="b" * 64, run="spring", round=6, version=6)
    (folders.models / f"{name}.json").write_bytes(msgspec.json.encode(held))


def trained(folders: Folders, finished: FinishedRound = ROUND) -> None:
    """Let a round be trained; its update file holds more than may leave."""
    outbox = Outbox(folders)
    built = outbox.begin("spring", 7)
    (built / "private").mkdir()
    moved = {**BASE, "conv.weight": np.array([[0, 1]] * 3, dtype=np.float32)}
    save_tensors(built / UPDATE_FILE, {**moved, **CLASSIFIER})
    save_tensors(built / RESIDUAL_BEFORE_FILE, {"conv.weight": np.eye(3, 2, dtype=np.float32)})
    outbox.put(built, finished)


@pytest.mark.parametrize("encoding", ["bf16", "int8_delta_zstd"])
def test_a_trained_round_is_shown_as_it_is_packed_for_sending(
    tmp_path: Path, encoding: Encoding
) -> None:
    folders = agent(tmp_path)
    fetched(folders)
    finished = msgspec.structs.replace(ROUND, encoding=encoding)
    trained(folders, finished)
    before = sorted(folders.rounds.rglob("*"))
    shown = contents_of(folders)
    assert sorted(folders.rounds.rglob("*")) == before  # nothing that the agent sends is touched
    folder = Outbox(folders).folder(ROUND)
    parcel = pack(
        finished,
        folder=folder,
        update=folder / UPDATE_FILE,
        base=folders.models / f"{'b' * 64}.fp32.safetensors",
        policy=Policy(),
        destination=ADDRESS,
    )
    assert shown.payload_digest == parcel.manifest.payload_digest
    assert shown.byte_count == parcel.manifest.byte_count
    assert tuple(shown.tensors) == parcel.manifest.layout.names == tuple(sorted(BASE))
    assert shown.destination == parcel.destination
    assert shown.numbers == {
        "num_images": 10, "cosine_distance": 0.5, "train_loss": 1.0, "num_steps": 4,
        "privacy": None, "run": "spring", "round": 7,
    }  # fmt: skip


def test_before_the_first_upload_the_fetched_model_says_what_can_leave(tmp_path: Path) -> None:
    folders = agent(tmp_path)
    fetched(folders)
    shown = contents_of(folders)
    assert shown.tensors == {
        "bn.running_mean": TensorShown(shape=(3,), bytes=12),
        "conv.weight": TensorShown(shape=(3, 2), bytes=24),
    }
    assert (shown.encoding, shown.byte_count, shown.payload_digest) == ("fp32", 36, None)
    assert set(shown.numbers) >= {"num_images", "cosine_distance", "train_loss", "num_steps"}
    assert set(shown.numbers.values()) == {None}


def test_a_model_file_can_be_shown_before_anything_was_ever_fetched(
    tmp_path: Path, base: Path
) -> None:
    folders = agent(tmp_path)
    with pytest.raises(UsageError, match="--base"):
        contents_of(folders)
    assert tuple(contents_of(folders, base).tensors) == tuple(sorted(BASE))


def test_what_the_policy_keeps_here_is_not_shown_as_leaving(tmp_path: Path, base: Path) -> None:
    private = agent(tmp_path, Policy(batchnorm_statistics=False, encodings=("bf16",)))
    shown = contents_of(private, base)
    assert shown.tensors == {"conv.weight": TensorShown(shape=(3, 2), bytes=12)}
    with pytest.raises(PolicyRefused, match=r"policy\.tensors"):
        contents_of(agent(tmp_path, Policy(tensors=("bn.*",))), base)


def test_a_file_that_is_no_model_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no tensors")
    with pytest.raises(UsageError, match=r"notes\.txt is no model"):
        contents_of(agent(tmp_path), tmp_path / "notes.txt")


def test_a_round_whose_base_model_is_gone_says_where_to_look(tmp_path: Path) -> None:
    folders = agent(tmp_path)
    trained(folders)
    with pytest.raises(UsageError, match="audit show"):
        contents_of(folders)
