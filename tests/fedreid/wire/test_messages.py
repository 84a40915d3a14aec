"""Is a task from the coordinator checked before the agent acts on it? It names files there."""

import pytest

from fedreid.contract import (
    EvaluateTask,
    EvaluationResult,
    PrivacyReport,
    Release,
    ReleasePayload,
    RenewTask,
    Task,
    TrainTask,
    UpdateReport,
    WaitTask,
)
from fedreid.errors import FedreidError, Refusal, UpdateRefused
from fedreid.names import Digest, RoundNumber, RunName
from fedreid.plan import BackbonePlan, TrainingPlan
from fedreid.v1 import federation_pb2 as pb
from fedreid.wire.messages import (
    evaluation_from_wire,
    evaluation_to_wire,
    policy_key_from_wire,
    release_from_wire,
    release_to_wire,
    report_from_wire,
    report_to_wire,
    task_from_wire,
    task_to_wire,
)

DIGEST = Digest("a" * 64)
TRAIN = TrainTask(
    run=RunName("spring"),
    round=RoundNumber(3),
    base_digest=DIGEST,
    seed=2**63 - 1,
    backbone=BackbonePlan(name="resnet18", neck="bnneck", height_px=64, width_px=32, last_stride=1),
    training=TrainingPlan(
        recipe="bot",
        epochs=2,
        batch_size=8,
        images_per_identity=2,
        optimiser="adam",
        triplet_margin=0.3,
        padding_px=4,
        dropout=0.25,
        proximal=0.5,
        mixed_precision="bf16",
        threads=3,
    ),
    learning_rate_factor=0.25,
    bn="local",
    upload_encoding="bf16",
    download_encoding="fp32",
    evaluate=True,
    standalone=False,
    remaining_s=12.5,
)
EVALUATE = EvaluateTask(
    run=RunName("spring"),
    round=RoundNumber(3),
    model_digest=DIGEST,
    backbone=BackbonePlan(),
    bn="pooled",
    download_encoding="bf16",
    threads=2,
)
REPORT = UpdateReport(num_images=7, cosine_distance=0.5, train_loss=1.25, num_steps=3)
RELEASE = Release(
    federation="harbour",
    run=RunName("spring"),
    round=RoundNumber(2),
    version=9,
    model_digest=DIGEST,
    base_digest=Digest(""),
    layout_digest=DIGEST,
    payloads=(
        ReleasePayload(encoding="fp32", payload_digest=DIGEST, byte_count=8),
        ReleasePayload(encoding="bf16", payload_digest=DIGEST, byte_count=4),
    ),
)


@pytest.mark.parametrize(
    "task",
    [
        TRAIN,
        EVALUATE,
        RenewTask(reason="why"),
        WaitTask(reason="later"),
        WaitTask(reason="", run_finished=True),
    ],
)
def test_a_task_comes_back_from_the_wire_as_it_was(task: Task) -> None:
    sent = task_to_wire(task).SerializeToString()
    assert task_from_wire(pb.NextTaskResponse.FromString(sent)) == task


def test_an_empty_answer_is_a_pause() -> None:
    assert task_from_wire(pb.NextTaskResponse()) == WaitTask(reason="")


# What a newer version sends: field 1000, a number.
UNKNOWN = bytes([0xC0, 0x3E, 0x01])


def test_a_kind_of_task_that_is_unknown_is_no_pause() -> None:
    with pytest.raises(FedreidError, match=r"kind of task.*Upgrade the older"):
        task_from_wire(pb.NextTaskResponse.FromString(UNKNOWN))


@pytest.mark.parametrize("part", ["training", "backbone"])
def test_a_plan_with_a_key_that_is_unknown_is_not_followed_in_part(part: str) -> None:
    message = task_to_wire(TRAIN)
    getattr(message.train, part).MergeFromString(UNKNOWN)
    with pytest.raises(FedreidError, match=r"key.*Upgrade the older"):
        task_from_wire(message)


def test_what_a_newer_version_adds_elsewhere_is_passed_over() -> None:
    message = task_to_wire(TRAIN)
    message.train.MergeFromString(UNKNOWN)
    message.MergeFromString(UNKNOWN)
    assert task_from_wire(message) == TRAIN
    told = report_to_wire(REPORT)
    told.MergeFromString(UNKNOWN)
    assert report_from_wire(told) == REPORT
    released = release_to_wire(RELEASE)
    released.MergeFromString(UNKNOWN)
    assert release_from_wire(released) == RELEASE


def test_a_task_in_an_encoding_that_is_unknown_is_refused() -> None:
    message = task_to_wire(TRAIN)
    message.train.upload_encoding = 99  # type: ignore[assignment]
    with pytest.raises(FedreidError, match="encoding"):
        task_from_wire(message)


ESCAPES = ["../../etc", "/etc", "a/b", "..", ".", "", "a\0b", "Spring", "a" * 64]


@pytest.mark.parametrize("run", ESCAPES)
def test_a_task_whose_run_name_could_lead_out_of_the_data_folder_is_refused(run: str) -> None:
    for task in (TRAIN, EVALUATE):
        message = task_to_wire(task)
        (message.train if message.HasField("train") else message.evaluate).run = run
        with pytest.raises(FedreidError):
            task_from_wire(message)


@pytest.mark.parametrize("digest", ["", "../" * 21 + "x", "a" * 63, "A" * 64, "a" * 63 + "/"])
def test_a_task_whose_digest_is_none_is_refused(digest: str) -> None:
    train, evaluate = task_to_wire(TRAIN), task_to_wire(EVALUATE)
    train.train.base_digest = digest
    evaluate.evaluate.model_digest = digest
    for message in (train, evaluate):
        with pytest.raises(FedreidError):
            task_from_wire(message)


def test_a_task_of_a_newer_coordinator_is_refused_with_what_to_do() -> None:
    cases = []
    for name in ("neck", "bn", "batch_size", "upload_encoding"):
        message = task_to_wire(TRAIN)
        cases.append(message)
        if name == "neck":
            message.train.backbone.neck = "attention"
        elif name == "bn":
            message.train.bn = "frozen"
        elif name == "batch_size":
            message.train.training.batch_size = 1
        else:
            message.train.upload_encoding = 77  # type: ignore[assignment]
    for message in cases:
        with pytest.raises(FedreidError, match="Upgrade the older"):
            task_from_wire(message)


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), -1.0])
def test_a_task_whose_learning_rate_factor_is_no_factor_is_refused(factor: float) -> None:
    message = task_to_wire(TRAIN)
    message.train.learning_rate_factor = factor
    with pytest.raises(FedreidError):
        task_from_wire(message)


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), 0.0, -0.1])
def test_a_task_whose_learning_rate_is_no_rate_is_refused(rate: float) -> None:
    message = task_to_wire(TRAIN)
    message.train.training.learning_rate = rate
    with pytest.raises(FedreidError):
        task_from_wire(message)


def test_a_report_comes_back_from_the_wire_as_it_was() -> None:
    assert report_from_wire(report_to_wire(REPORT)) == REPORT


PRIVACY = PrivacyReport(clip_norm=0.5, noise_multiplier=2.0, epsilon=3.25, delta=1e-5)


def test_a_private_report_says_what_was_done_and_withholds_what_no_noise_covers() -> None:
    private = REPORT.withheld(PRIVACY)
    assert report_from_wire(report_to_wire(private)) == private
    assert private.privacy == PRIVACY
    assert (private.cosine_distance, private.train_loss) == (0.0, 0.0)
    assert (private.num_images, private.num_steps) == (REPORT.num_images, REPORT.num_steps)


def test_a_report_without_noise_says_nothing_of_privacy() -> None:
    assert not report_to_wire(REPORT).HasField("privacy")


@pytest.mark.parametrize("field", ["clip_norm", "noise_multiplier", "epsilon", "delta"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_report_of_privacy_that_cannot_be_is_refused(field: str, value: float) -> None:
    message = report_to_wire(REPORT.withheld(PRIVACY))
    setattr(message.privacy, field, value)
    with pytest.raises(UpdateRefused) as refused:
        report_from_wire(message)
    assert refused.value.reason is Refusal.REPORT


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_images", 0),
        ("num_images", 100_000_001),
        ("num_images", 2**64 - 1),
        ("num_steps", 0),
        ("num_steps", 10_000_001),
        ("num_steps", 2**64 - 1),
        ("cosine_distance", float("nan")),
        ("cosine_distance", -1e-9),
        ("cosine_distance", 2.0000001),
        ("cosine_distance", float("inf")),
        ("train_loss", float("nan")),
        ("train_loss", float("-inf")),
    ],
)
def test_a_report_of_numbers_that_cannot_be_is_refused(field: str, value: float) -> None:
    message = report_to_wire(REPORT)
    setattr(message, field, value)
    with pytest.raises(UpdateRefused):
        report_from_wire(message)


RESULT = EvaluationResult(
    model="local", rank1=0.5, rank5=0.75, rank10=1.0, map=0.25, minp=0.0, queries=9
)


def test_an_evaluation_comes_back_from_the_wire_as_it_was() -> None:
    assert evaluation_from_wire(evaluation_to_wire(RESULT)) == RESULT


@pytest.mark.parametrize("field", ["rank1", "rank5", "rank10", "map", "minp"])
@pytest.mark.parametrize("value", [float("nan"), -0.001, 1.001, float("inf")])
def test_an_evaluation_with_a_ratio_that_is_none_is_refused(field: str, value: float) -> None:
    message = evaluation_to_wire(RESULT)
    setattr(message, field, value)
    with pytest.raises(UpdateRefused):
        evaluation_from_wire(message)


@pytest.mark.parametrize("kind", [0, 4, -1])
def test_an_evaluation_of_an_unknown_kind_of_model_is_refused(kind: int) -> None:
    message = evaluation_to_wire(RESULT)
    message.model = kind  # type: ignore[assignment]
    with pytest.raises(UpdateRefused):
        evaluation_from_wire(message)


def test_a_release_comes_back_from_the_wire_as_it_was() -> None:
    assert release_from_wire(release_to_wire(RELEASE)) == RELEASE
    assert RELEASE.payload("bf16") == RELEASE.payloads[1]


def test_a_release_with_an_encoding_of_a_newer_coordinator_can_still_be_used() -> None:
    message = pb.Release(model_digest=DIGEST)
    message.payloads.add(encoding=77, payload_digest=DIGEST)
    message.payloads.add(encoding=1, payload_digest=DIGEST)
    assert release_from_wire(message).payload("fp32") is not None


@pytest.mark.parametrize("key", ["rounds_per_day", "privacy.epsilon_budget"])
def test_a_silo_declines_with_a_key_of_its_policy(key: str) -> None:
    assert policy_key_from_wire(key) == key


@pytest.mark.parametrize("text", ["", "a b", "cam1/0001.jpg", "x" * 65, "a.b.c", "Ü", "a\n"])
def test_what_can_be_no_policy_key_is_not_kept(text: str) -> None:
    assert policy_key_from_wire(text) == "policy"
