"""Does exactly what the federation shares leave, and nothing that the operator keeps?"""

from pathlib import Path

import blake3
import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as some

import fedreid.spares
from fedreid.contract import PrivacyReport, TrainTask, UpdateReport
from fedreid.errors import PolicyRefused, StorageError
from fedreid.files import digest_of
from fedreid.names import Digest, RoundNumber, RunName
from fedreid.plan import BackbonePlan, BatchNormPolicy, Encoding, TrainingPlan
from fedreid.spares import Spares
from fedreid.wire.encoding import decode
from fedreid.wire.manifest import ENCODINGS
from fedreid.wire.tensors import (
    FloatArray,
    Layout,
    TensorFile,
    TensorSpec,
    save_tensors,
    write_model,
)
from silo_agent.config import Policy, PrivacyPolicy
from silo_agent.egress import Parcel, check_task, pack
from silo_agent.outbox import RESIDUAL_AFTER_FILE, RESIDUAL_BEFORE_FILE
from tests.silo_agent.example_round import ROUND

Tensors = dict[str, FloatArray]
NORMS = ("bn.bias", "bn.running_mean", "bn.running_var", "bn.weight")
POLICIES: tuple[BatchNormPolicy, ...] = ("pooled", "local", "recalibrated", "reference")
ADDRESS = "coordinator.example:443"
REPORT = UpdateReport(num_images=10, cosine_distance=0.5, train_loss=1.0, num_steps=4)
SECRET = np.frombuffer(b"classifier-row-of-person-0042!!!", dtype=np.float32)


def backbone() -> Tensors:
    return {
        "conv.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "bn.weight": np.full(2, 1.5, dtype=np.float32),
        "bn.bias": np.full(2, 2.5, dtype=np.float32),
        "bn.running_mean": np.full(2, 3.5, dtype=np.float32),
        "bn.running_var": np.full(2, 4.5, dtype=np.float32),
    }


def layout_of(tensors: Tensors) -> Layout:
    return Layout.of(TensorSpec(name, values.shape) for name, values in tensors.items())


def packed(
    folder: Path,
    update: Tensors,
    *,
    bn: BatchNormPolicy = "pooled",
    encoding: Encoding = "fp32",
    batchnorm_statistics: bool = True,
    policy: Policy | None = None,
    num_images: int = 10,
    privacy: PrivacyReport | None = None,
    spares: Spares | None = None,
) -> Parcel:
    path, base = folder / "update.safetensors", folder / "base.safetensors"
    for file, tensors in ((path, update), (base, backbone())):
        with file.open("wb") as stream:
            write_model(stream, tensors)
    finished = msgspec.structs.replace(
        ROUND,
        bn=bn,
        encoding=encoding,
        report=msgspec.structs.replace(REPORT, num_images=num_images, privacy=privacy),
    )
    return pack(
        finished,
        folder=folder,
        update=path,
        base=base,
        policy=policy or Policy(batchnorm_statistics=batchnorm_statistics),
        destination=ADDRESS,
        spares=spares,
    )


def leaving(parcel: Parcel) -> bytes:
    """Every byte that an upload of the parcel sends."""
    return parcel.path.read_bytes()[parcel.start :]


def task(bn: BatchNormPolicy) -> TrainTask:
    return TrainTask(
        run=RunName("spring"),
        round=RoundNumber(1),
        base_digest=Digest("a" * 64),
        seed=0,
        backbone=BackbonePlan(),
        training=TrainingPlan(),
        learning_rate_factor=1.0,
        bn=bn,
        upload_encoding="fp32",
        download_encoding="fp32",
        evaluate=False,
        standalone=False,
        remaining_s=1.0,
    )


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("bn", POLICIES)
def test_a_classifier_in_the_update_file_never_leaves(
    tmp_path: Path, encoding: Encoding, bn: BatchNormPolicy
) -> None:
    update = backbone() | {"classifier.weight": SECRET, "a.first": SECRET, "zz.last": SECRET}
    parcel = packed(tmp_path, update, bn=bn, encoding=encoding)
    assert set(parcel.manifest.layout.names) == backbone().keys()
    assert SECRET.tobytes() not in leaving(parcel)
    assert len(leaving(parcel)) == parcel.manifest.byte_count


@given(
    extra=some.dictionaries(
        some.text("abcdefgh.", min_size=1, max_size=8).filter(lambda n: n not in backbone()),
        some.just(SECRET),
        max_size=4,
    ),
    encoding=some.sampled_from(ENCODINGS),
    bn=some.sampled_from(POLICIES),
    statistics=some.booleans(),
)
@example(extra={}, encoding="fp32", bn="local", statistics=False)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_nothing_that_the_base_model_does_not_name_ever_leaves(
    tmp_path: Path, extra: Tensors, encoding: Encoding, bn: BatchNormPolicy, statistics: bool
) -> None:
    assume(statistics or bn == "local")  # what the policy refuses is tested above
    parcel = packed(
        tmp_path, backbone() | extra, bn=bn, encoding=encoding, batchnorm_statistics=statistics
    )
    assert set(parcel.manifest.layout.names) <= backbone().keys()
    assert SECRET.tobytes() not in leaving(parcel)


def test_the_file_itself_is_the_payload_where_all_of_it_leaves_as_it_is(tmp_path: Path) -> None:
    parcel = packed(tmp_path, backbone())
    assert parcel.path == tmp_path / "update.safetensors"
    with TensorFile(parcel.path) as file:
        assert parcel.start == file.data_offset
    assert not (tmp_path / "payload").exists()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("bn", POLICIES)
@pytest.mark.parametrize("extra", [{}, {"classifier.weight": SECRET}], ids=["plain", "extra"])
def test_the_manifest_states_digest_and_size_of_exactly_what_leaves(
    tmp_path: Path, encoding: Encoding, bn: BatchNormPolicy, extra: Tensors
) -> None:
    parcel = packed(
        tmp_path, backbone() | extra, bn=bn, encoding=encoding, batchnorm_statistics=bn != "local"
    )
    sent = leaving(parcel)
    assert parcel.manifest.payload_digest == blake3.blake3(sent).hexdigest()
    assert parcel.manifest.byte_count == len(sent)
    assert parcel.manifest.encoding == encoding


def test_local_batch_norm_stays_where_the_policy_keeps_it(tmp_path: Path) -> None:
    parcel = packed(tmp_path, backbone(), bn="local", batchnorm_statistics=False)
    assert parcel.manifest.layout.names == ("conv.weight",)
    assert leaving(parcel) == backbone()["conv.weight"].tobytes()


def test_local_batch_norm_leaves_where_the_policy_allows_it(tmp_path: Path) -> None:
    parcel = packed(tmp_path, backbone(), bn="local", batchnorm_statistics=True)
    assert set(NORMS) < set(parcel.manifest.layout.names)


@pytest.mark.parametrize("bn", POLICIES)
def test_a_policy_that_keeps_batch_norm_takes_part_in_local_plans_alone(
    bn: BatchNormPolicy,
) -> None:
    check_task(task(bn), Policy())
    strict = Policy(batchnorm_statistics=False)
    if bn == "local":
        check_task(task(bn), strict)
    else:
        with pytest.raises(PolicyRefused, match=r"policy\.batchnorm_statistics"):
            check_task(task(bn), strict)


@pytest.mark.parametrize("bn", [policy for policy in POLICIES if policy != "local"])
def test_what_the_policy_keeps_does_not_leave_even_if_nobody_checked_the_task(
    tmp_path: Path, bn: BatchNormPolicy
) -> None:
    # the one door, by the module's own first sentence: not only the first of two locks
    try:
        parcel = packed(tmp_path, backbone(), bn=bn, batchnorm_statistics=False)
    except PolicyRefused:
        return
    assert not set(NORMS) & set(parcel.manifest.layout.names)


@pytest.mark.parametrize("missing", sorted(backbone()))
def test_an_update_without_a_tensor_of_the_base_model_is_not_sent(
    tmp_path: Path, missing: str
) -> None:
    update = backbone()
    del update[missing]
    with pytest.raises(StorageError, match="other tensors"):
        packed(tmp_path, update)


def test_an_update_of_another_shape_is_not_sent(tmp_path: Path) -> None:
    update = backbone() | {"conv.weight": np.zeros((3, 2), dtype=np.float32)}
    with pytest.raises(StorageError, match="other tensors"):
        packed(tmp_path, update)


def test_packing_again_gives_the_same_parcel(tmp_path: Path) -> None:
    update = backbone() | {"classifier.weight": SECRET}
    first = packed(tmp_path, update, encoding="bf16")
    sent = leaving(first)
    assert packed(tmp_path, update, encoding="bf16") == first
    assert leaving(first) == sent


def test_a_payload_file_is_private(tmp_path: Path) -> None:
    parcel = packed(tmp_path, backbone(), encoding="bf16")
    assert parcel.path.stat().st_mode & 0o777 == 0o600


def test_a_silo_with_too_few_images_sends_nothing(tmp_path: Path) -> None:
    packed(tmp_path, backbone(), policy=Policy(minimum_images=10))
    with pytest.raises(PolicyRefused, match="demands at least 11"):
        packed(tmp_path, backbone(), policy=Policy(minimum_images=11))
    with pytest.raises(PolicyRefused, match="1 training images"):
        packed(tmp_path, backbone(), num_images=1)


@pytest.mark.parametrize(
    "patterns",
    [("conv.*",), ("bn.*", "conv"), ("CONV.*", "bn.*"), ("*.weight", "*.bias", "bn.running_mean")],
)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_base_model_that_names_more_than_the_policy_is_not_served_at_all(
    tmp_path: Path, patterns: tuple[str, ...], encoding: Encoding
) -> None:
    with pytest.raises(PolicyRefused, match=r"policy\.tensors") as refused:
        packed(tmp_path, backbone(), encoding=encoding, policy=Policy(tensors=patterns))
    assert refused.value.again_at_s is None
    assert not (tmp_path / "payload").exists()


def test_patterns_that_fit_every_name_let_the_base_models_tensors_leave_and_no_other(
    tmp_path: Path,
) -> None:
    update = backbone() | {"classifier.weight": SECRET}
    parcel = packed(tmp_path, update, policy=Policy(tensors=("conv.*", "bn.*", "classifier.*")))
    assert set(parcel.manifest.layout.names) == backbone().keys()
    assert SECRET.tobytes() not in leaving(parcel)


def test_names_that_stay_here_anyway_need_no_pattern(tmp_path: Path) -> None:
    policy = Policy(tensors=("conv.*",), batchnorm_statistics=False)
    parcel = packed(tmp_path, backbone(), bn="local", policy=policy)
    assert parcel.manifest.layout.names == ("conv.weight",)


@pytest.mark.parametrize(
    ("proposed", "allowed", "sent"),
    [
        ("bf16", (), "bf16"),
        ("bf16", ("fp32", "bf16"), "bf16"),
        ("bf16", ("fp32",), "fp32"),
        ("fp32", ("fp32",), "fp32"),
        ("fp32", ("bf16",), None),
    ],
)
def test_the_plan_proposes_an_encoding_and_the_policy_disposes(
    tmp_path: Path, proposed: Encoding, allowed: tuple[Encoding, ...], sent: Encoding | None
) -> None:
    policy = Policy(encodings=allowed)
    if sent is None:
        with pytest.raises(PolicyRefused, match=r"policy\.encodings"):
            packed(tmp_path, backbone(), encoding=proposed, policy=policy)
    else:
        parcel = packed(tmp_path, backbone(), encoding=proposed, policy=policy)
        assert parcel.manifest.encoding == sent
        assert len(leaving(parcel)) == parcel.manifest.byte_count


def test_an_update_is_packed_for_the_policys_coordinators_only(tmp_path: Path) -> None:
    packed(tmp_path, backbone(), policy=Policy(coordinators=("other:1", ADDRESS)))
    with pytest.raises(PolicyRefused, match=r"policy\.coordinators"):
        packed(tmp_path, backbone(), policy=Policy(coordinators=("other:1",)))


def test_another_architecture_than_the_policys_is_refused_before_anything_is_fetched() -> None:
    check_task(task("pooled"), Policy(backbones=("resnet18", "resnet50")))
    with pytest.raises(PolicyRefused, match="'resnet50'") as refused:
        check_task(task("pooled"), Policy(backbones=("resnet18",)))
    assert refused.value.again_at_s is None


def test_what_the_log_keeps_is_what_the_parcel_sends(tmp_path: Path) -> None:
    parcel = packed(tmp_path, backbone(), encoding="bf16")
    departure = parcel.departure()
    assert departure.payload_digest == blake3.blake3(leaving(parcel)).hexdigest()
    assert departure.byte_count == len(leaving(parcel))
    assert departure.names_digest == layout_of(backbone()).digest()
    assert (departure.destination, departure.report) == (ADDRESS, REPORT)
    assert departure.tensor_count == len(backbone())


def test_an_update_without_noise_does_not_leave_where_the_policy_demands_it(
    tmp_path: Path,
) -> None:
    policy = Policy(privacy=PrivacyPolicy(noise_multiplier=1.0, epsilon_budget=8.0))
    with pytest.raises(PolicyRefused, match="without noise"):
        packed(tmp_path, backbone(), policy=policy)
    spent = PrivacyReport(clip_norm=1.0, noise_multiplier=1.0, epsilon=4.8, delta=1e-5)
    assert packed(tmp_path, backbone(), policy=policy, privacy=spent).manifest.byte_count > 0


def packed_with(
    folder: Path, name: str, residual: Tensors | None, *, spares: Spares | None = None
) -> Parcel:
    """A round in int8_delta that has this to say too."""
    (folder / name / "private").mkdir(parents=True)
    if residual is not None:
        save_tensors(folder / name / RESIDUAL_BEFORE_FILE, residual)
    moved = {name: values + np.float32(0.001) * values**2 for name, values in backbone().items()}
    return packed(folder / name, moved, encoding="int8_delta", spares=spares)


def test_what_a_payload_leaves_unsaid_stays_here_and_the_next_one_says_it(tmp_path: Path) -> None:
    first = packed_with(tmp_path, "first", None)
    after = tmp_path / "first" / RESIDUAL_AFTER_FILE
    assert first.residual_digest == digest_of(after)
    with TensorFile(after) as file:
        assert file.layout.names == ("conv.weight",)
        left = file.read_all()
    assert 0 < np.abs(left["conv.weight"]).max() < 0.001 * 25 / 127
    assert left["conv.weight"].tobytes() not in leaving(first)
    second = packed_with(tmp_path, "second", {"conv.weight": 100 * left["conv.weight"]})
    assert leaving(second) != leaving(first)
    assert second.residual_digest != first.residual_digest


def test_packed_again_a_round_with_a_residual_gives_the_same_bytes(tmp_path: Path) -> None:
    residual = {"conv.weight": np.full((2, 3), 0.01, np.float32)}
    first = packed_with(tmp_path, "round", residual)
    payload = leaving(first)
    again = packed(tmp_path / "round", backbone(), encoding="fp32")  # the policy had changed
    assert again.residual_digest == ""
    moved = {name: values + np.float32(0.001) * values**2 for name, values in backbone().items()}
    assert packed(tmp_path / "round", moved, encoding="int8_delta") == first
    assert leaving(first) == payload


def test_a_payload_and_what_it_leaves_unsaid_go_over_the_room_of_earlier_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fedreid.spares, "LEAST_SPARE_BYTES", 1)
    first = packed_with(tmp_path, "first", None)
    files = (first.path, tmp_path / "first" / RESIDUAL_AFTER_FILE)
    contents = [file.read_bytes() for file in files]
    inodes = {file.stat().st_ino for file in files}
    spares = Spares(tmp_path / "spare", kept=2)
    for file in files:
        spares.retire(file)
    second = packed_with(tmp_path, "second", None, spares=spares)
    files = (second.path, tmp_path / "second" / RESIDUAL_AFTER_FILE)
    assert {file.stat().st_ino for file in files} == inodes
    assert [file.read_bytes() for file in files] == contents
    assert not list((tmp_path / "spare").iterdir())


def test_differences_are_put_back_onto_the_model_as_it_was_published(tmp_path: Path) -> None:
    """The silo's base was rounded on its way; that does not come back with the update."""
    moved = {name: values + np.float32(0.5) for name, values in backbone().items()}
    parcel = packed(tmp_path, moved, encoding="int8_delta")
    published = {**backbone(), "conv.weight": backbone()["conv.weight"] + np.float32(0.25)}
    save_tensors(tmp_path / "published.safetensors", published)
    out = tmp_path / "decoded.safetensors"
    with (
        TensorFile(tmp_path / "published.safetensors") as base,
        parcel.path.open("rb") as payload,
        out.open("wb") as stream,
    ):
        decode(payload, parcel.manifest.layout, "int8_delta", stream, base)
    with TensorFile(out) as file:
        back = file.read_all()
    assert back["conv.weight"] == pytest.approx(backbone()["conv.weight"] + 0.75)
    assert back["bn.bias"].tolist() == moved["bn.bias"].tolist()
