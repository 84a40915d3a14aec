"""Does an attack turn the attacker's update round, pass the door, and leave the others alone?"""

from pathlib import Path

import numpy as np

from benchmark.attack import Attack, tampering
from coordinator.rounds.validation import check_values
from fedreid.contract import UpdateReport
from fedreid.plan import ValidationPlan
from fedreid.wire.tensors import FloatArray, TensorFile, load_tensors, save_tensors

REPORT = UpdateReport(num_images=10, cosine_distance=0.1, train_loss=1.0, num_steps=4)
BASE = {"w": np.array([1.0, 2.0]), "bn.running_var": np.array([1.0, 1.0])}
TRAINED = {"w": np.array([1.1, 1.9]), "bn.running_var": np.array([1.2, 0.9])}


def stored(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    save_tensors(path, {name: values.astype(np.float32) for name, values in tensors.items()})
    return path


def tampered(folder: Path, silo: str, attack: Attack) -> tuple[dict[str, FloatArray], UpdateReport]:
    update, base = stored(folder / "update", TRAINED), stored(folder / "base", BASE)
    report = tampering(attack)(silo, update, base, REPORT)
    with TensorFile(update) as sent, TensorFile(base) as before:
        check_values(sent, before, ValidationPlan())
    return load_tensors(update), report


def test_the_attacker_sends_its_change_turned_round_and_the_largest_distance(
    tmp_path: Path,
) -> None:
    sent, report = tampered(tmp_path, "bad", Attack(silo="bad"))
    np.testing.assert_allclose(sent["w"], [0.0, 3.0], atol=1e-5)
    np.testing.assert_allclose(sent["bn.running_var"], [0.0, 2.0], atol=1e-5)
    assert report.cosine_distance == 2.0
    _, honest_report = tampered(tmp_path, "bad", Attack(silo="bad", lies=False))
    assert honest_report == REPORT


def test_every_other_silo_sends_what_it_trained(tmp_path: Path) -> None:
    sent, report = tampered(tmp_path, "good", Attack(silo="bad"))
    np.testing.assert_array_equal(sent["w"], TRAINED["w"].astype(np.float32))
    assert report == REPORT
