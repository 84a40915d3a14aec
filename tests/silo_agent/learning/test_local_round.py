import shutil
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from fedreid.errors import DatasetError, JobFailed, StorageError, UsageError
from fedreid.files import digest_of
from fedreid.jobs import Progress
from fedreid.plan import TrainingPlan
from fedreid.wire.tensors import batch_norm_names, save_tensors
from silo_agent.learning.jobs import EvaluateJob, TrainReport
from silo_agent.learning.local_round import UPDATE_FILE, has_own_batch_norm, own_batch_norm
from silo_agent.learning.state import read_classifier
from silo_agent.learning.worker import SiloWorker
from tests.silo_agent.learning.sites import (
    ALL,
    TINY,
    TRAINING,
    draw_person,
    draw_silo,
    first_model,
    quiet,
    read,
    train_job,
)


@pytest.fixture
def silo(tmp_path: Path) -> Path:
    return draw_silo(tmp_path / "images")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return first_model(tmp_path / "w0.safetensors")


def scores(report: TrainReport) -> dict[str, float]:
    return {result.model: result.map for result in report.evaluations}


def test_two_runs_are_equal_to_the_bit(tmp_path: Path, silo: Path, base: Path) -> None:
    outs = []
    for name in ("a", "b"):
        worker, previous = SiloWorker(), None
        for number in (1, 2):
            out = tmp_path / f"{name}{number}"
            job = train_job(
                silo, base, out, previous=previous, round=number, standalone=True, evaluate=ALL
            )
            report = worker.train(job, quiet)
            previous = out
        outs.append((out, report))
    (first, told), (second, again) = outs
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(files) == 6
    assert [digest_of(first / file) for file in files] == [
        digest_of(second / file) for file in files
    ]
    assert told == again


def test_the_classifier_stays_in_the_private_folder(tmp_path: Path, silo: Path, base: Path) -> None:
    SiloWorker().train(train_job(silo, base, tmp_path / "out", standalone=True), quiet)
    update = read(tmp_path / "out/update.safetensors")
    assert update.keys() == read(base).keys()
    assert not [name for name in update if "classifier" in name]
    assert (3, 512) not in {values.shape for values in update.values()}
    private = tmp_path / "out/private"
    assert read_classifier(private / "federated").identities == (1, 2, 3)
    assert (tmp_path / "out/private/standalone").stat().st_mode & 0o077 == 0


def test_a_report_holds_counts_distance_loss_and_three_models(
    tmp_path: Path, silo: Path, base: Path
) -> None:
    heard: list[Progress] = []
    job = train_job(silo, base, tmp_path / "out", standalone=True, evaluate=ALL)
    report = SiloWorker().train(job, heard.append)
    assert (report.num_images, report.num_identities) == (12, 3)
    assert 0.0 < report.cosine_distance <= 2.0
    assert 0.0 < report.train_loss < 10.0
    assert report.num_steps == 3  # 12 images by 4; the standalone baseline's are not counted
    assert [result.model for result in report.evaluations] == list(ALL)
    phases = [line.phase for line in heard]
    assert list(dict.fromkeys(phases)) == ["evaluating", "training", "standalone"]
    assert [line.loss for line in heard if line.phase == "training"][-1] == report.train_loss


def test_only_the_models_asked_for_are_measured(tmp_path: Path, silo: Path, base: Path) -> None:
    job = train_job(silo, base, tmp_path / "out", evaluate=("local",))
    assert scores(SiloWorker().train(job, quiet)).keys() == {"local"}
    assert not (tmp_path / "out/private/standalone").exists()


def test_the_classifier_goes_on_from_the_last_round(tmp_path: Path, silo: Path, base: Path) -> None:
    worker, still = SiloWorker(), replace(TRAINING, learning_rate=1e-12)
    worker.train(train_job(silo, base, tmp_path / "one"), quiet)
    worker.train(
        train_job(silo, base, tmp_path / "two", previous=tmp_path / "one", training=still), quiet
    )
    one, two = (read_classifier(tmp_path / name / "private/federated") for name in ("one", "two"))
    np.testing.assert_allclose(one.weight, two.weight, atol=1e-6)
    assert np.abs(one.weight).max() > 0.005  # trained: a new one is N(0, 0.001)


def test_a_person_who_joins_or_leaves_moves_no_other_row(
    tmp_path: Path, silo: Path, base: Path
) -> None:
    worker, still = SiloWorker(), replace(TRAINING, learning_rate=1e-12)
    worker.train(train_job(silo, base, tmp_path / "one"), quiet)
    train = silo / "bounding_box_train"
    for path in train.glob("0001_*"):
        path.unlink()
    for camera in (1, 2):
        draw_person(train / f"0009_c{camera}s1_000001_01.png", 9, camera)
    report = worker.train(
        train_job(silo, base, tmp_path / "two", previous=tmp_path / "one", training=still), quiet
    )
    one, two = (read_classifier(tmp_path / name / "private/federated") for name in ("one", "two"))
    assert (two.identities, report.num_images) == ((2, 3, 9), 10)
    np.testing.assert_allclose(one.weight[1:], two.weight[:2], atol=1e-6)


def test_the_first_standalone_round_is_like_the_first_local_one(
    tmp_path: Path, silo: Path, base: Path
) -> None:
    frozen = replace(TRAINING, learning_rate=1e-12, backbone_learning_rate=1e-12)
    job = train_job(silo, base, tmp_path / "out", training=frozen, standalone=True, evaluate=ALL)
    told = scores(SiloWorker().train(job, quiet))
    assert told["global"] > 0.0
    standalone = read(tmp_path / "out/private/standalone/backbone.safetensors")
    assert np.allclose(standalone["neck.linear.weight"], read(base)["neck.linear.weight"])


def test_the_standalone_baseline_never_sees_a_later_base_model(
    tmp_path: Path, silo: Path, base: Path
) -> None:
    worker = SiloWorker()
    worker.train(train_job(silo, base, tmp_path / "one", standalone=True), quiet)
    shifted = {name: values + np.float32(0.01) for name, values in read(base).items()}
    save_tensors(tmp_path / "other.safetensors", shifted)
    digests = []
    for name, model in (("a", base), ("b", tmp_path / "other.safetensors")):
        out = tmp_path / name
        worker.train(
            train_job(silo, model, out, previous=tmp_path / "one", round=2, standalone=True), quiet
        )
        digests.append(digest_of(out / "private/standalone/backbone.safetensors"))
    assert digests[0] == digests[1]


def test_a_round_without_the_baseline_does_not_end_it(
    tmp_path: Path, silo: Path, base: Path
) -> None:
    worker = SiloWorker()
    worker.train(train_job(silo, base, tmp_path / "one", standalone=True), quiet)
    worker.train(train_job(silo, base, tmp_path / "two", previous=tmp_path / "one"), quiet)
    kept = "private/standalone/backbone.safetensors"
    assert digest_of(tmp_path / "one" / kept) == digest_of(tmp_path / "two" / kept)


def test_adaptive_batch_norm_stays_where_there_are_several_cameras(
    tmp_path: Path, silo: Path, base: Path
) -> None:
    for name, kept in (("several", True), ("one", False)):
        if name == "one":
            for path in (silo / "bounding_box_train").glob("*_c2s1_*"):
                path.unlink()
        out = tmp_path / name
        SiloWorker().train(train_job(silo, base, out, bn="adaptive"), quiet)
        assert has_own_batch_norm(str(out), "adaptive") == kept
        own = own_batch_norm(str(out), "adaptive")
        assert own.keys() == (batch_norm_names(read(base)) if kept else set())


def test_local_batch_norm_outlives_the_base_model(tmp_path: Path, silo: Path, base: Path) -> None:
    worker = SiloWorker()
    worker.train(train_job(silo, base, tmp_path / "one", bn="local"), quiet)
    update = read(tmp_path / "one/update.safetensors")
    own = read(tmp_path / "one/private/federated/batch_norm.safetensors")
    names = batch_norm_names(update)
    assert own.keys() == names
    spoilt = {n: v * np.float32(0) if n in names else v for n, v in update.items()}
    results = []
    for name, tensors in (("spoilt", spoilt), ("whole", update)):
        model = tmp_path / f"{name}.safetensors"
        save_tensors(model, tensors)
        job = train_job(
            silo, model, tmp_path / name, previous=tmp_path / "one", bn="local", evaluate=ALL
        )
        results.append(
            (worker.train(job, quiet), digest_of(tmp_path / name / "update.safetensors"))
        )
    assert results[0] == results[1]


def test_a_published_model_is_measured_with_the_silos_own_batch_norm(
    tmp_path: Path, silo: Path, base: Path
) -> None:
    worker = SiloWorker()
    worker.train(train_job(silo, base, tmp_path / "one", bn="local"), quiet)
    update = tmp_path / "one/update.safetensors"
    job = EvaluateJob(
        silo=train_job(silo, base, tmp_path / "unused").silo,
        backbone=TINY,
        bn="local",
        model=str(base),
        previous=str(tmp_path / "one"),
        threads=1,
    )
    mixed = read(base) | {
        n: v for n, v in read(update).items() if n in batch_norm_names(read(base))
    }
    save_tensors(tmp_path / "mixed.safetensors", mixed)
    told = worker.evaluate(job, quiet)
    assert told.evaluations[0].model == "global"
    assert told == worker.evaluate(
        replace(job, bn="pooled", model=str(tmp_path / "mixed.safetensors")), quiet
    )


@pytest.mark.parametrize(
    "training",
    [
        replace(TRAINING, batch_size=64),
        replace(TRAINING, label_smoothing=0.1, random_erasing=0.5, proximal=0.1, threads=0),
    ],
)
def test_a_silo_of_few_images_trains(tmp_path: Path, base: Path, training: TrainingPlan) -> None:
    silo = draw_silo(tmp_path / "few", people=range(1, 3), per_camera=1)
    report = SiloWorker().train(
        train_job(silo, base, tmp_path / "out", training=training, standalone=True), quiet
    )
    assert (report.num_images, report.num_identities) == (4, 2)


def test_what_of_the_recipe_a_silo_leaves_out_is_told(tmp_path: Path, base: Path) -> None:
    silo, worker = draw_silo(tmp_path / "few", per_camera=1), SiloWorker()
    triplets = replace(TRAINING, triplet_margin=0.3, images_per_identity=2)
    report = worker.train(train_job(silo, base, tmp_path / "one", training=triplets), quiet)
    assert report.notes == ()
    for path in (silo / "bounding_box_train").glob("*_c2*"):
        path.unlink()
    report = worker.train(train_job(silo, base, tmp_path / "two", training=triplets), quiet)
    assert ["single image" in note for note in report.notes] == [True]


def test_a_dataset_gone_between_rounds_is_told(tmp_path: Path, silo: Path, base: Path) -> None:
    worker = SiloWorker()
    worker.train(train_job(silo, base, tmp_path / "one"), quiet)
    silo.rename(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match="is not there"):
        worker.train(train_job(silo, base, tmp_path / "two"), quiet)
    (tmp_path / "elsewhere").rename(silo)
    worker.train(train_job(silo, base, tmp_path / "three"), quiet)


def test_a_model_that_diverges_is_no_update(tmp_path: Path, silo: Path, base: Path) -> None:
    wild = replace(TRAINING, learning_rate=0.3, backbone_learning_rate=0.3, epochs=2)
    with pytest.raises(JobFailed, match="diverged"):
        SiloWorker().train(train_job(silo, base, tmp_path / "out", training=wild), quiet)
    assert not list((tmp_path / "out").iterdir())


def test_one_training_image_is_too_few(tmp_path: Path, base: Path) -> None:
    draw_person(tmp_path / "one/bounding_box_train/0001_c1s1_000001_01.png", 1, 1)
    with pytest.raises(DatasetError, match="one training image"):
        SiloWorker().train(train_job(tmp_path / "one", base, tmp_path / "out"), quiet)


def test_a_silo_of_one_person_has_nothing_to_learn(tmp_path: Path, base: Path) -> None:
    silo = draw_silo(tmp_path / "one", people=range(1, 2))
    with pytest.raises(DatasetError, match="All training images show one identity"):
        SiloWorker().train(train_job(silo, base, tmp_path / "out"), quiet)


def test_a_silo_without_a_test_set_trains_and_has_no_figures(tmp_path: Path, base: Path) -> None:
    silo = draw_silo(tmp_path / "silo")
    shutil.rmtree(silo / "query")
    shutil.rmtree(silo / "bounding_box_test")
    for image in (silo / "bounding_box_train").glob("*_c2s1_*"):
        image.unlink()
    report = SiloWorker().train(
        train_job(silo, base, tmp_path / "out", evaluate=ALL, standalone=True), quiet
    )
    assert (report.num_images, report.evaluations) == (6, ())


def test_a_damaged_image_is_left_out_and_counted(tmp_path: Path, base: Path) -> None:
    silo = draw_silo(tmp_path / "silo")
    whole = SiloWorker().train(train_job(silo, base, tmp_path / "whole", evaluate=ALL), quiet)
    damaged = [min((silo / part).iterdir()) for part in ("bounding_box_train", "query")]
    for image in damaged:
        image.write_bytes(image.read_bytes()[:60])
    report = SiloWorker().train(train_job(silo, base, tmp_path / "out", evaluate=ALL), quiet)
    assert (whole.num_images, whole.notes, whole.evaluations[0].queries) == (12, (), 3)
    assert (report.num_images, report.evaluations[0].queries) == (11, 2)
    assert ["trains without 1 images" in note for note in report.notes] == [True]
    damaged[0].unlink()
    damaged[1].unlink()
    gone = SiloWorker().train(train_job(silo, base, tmp_path / "gone", evaluate=ALL), quiet)
    assert gone.evaluations == report.evaluations
    assert read(tmp_path / "gone" / UPDATE_FILE).keys() == read(base).keys()
    for name, tensor in read(tmp_path / "out" / UPDATE_FILE).items():
        assert (tensor == read(tmp_path / "gone" / UPDATE_FILE)[name]).all()


def test_many_damaged_images_stop_the_round_and_the_first_is_named(
    tmp_path: Path, base: Path
) -> None:
    silo = draw_silo(tmp_path / "silo")
    damaged = sorted((silo / "bounding_box_train").iterdir())[:2]
    for image in damaged:
        image.write_bytes(b"")
    with pytest.raises(DatasetError, match=f"{damaged[0].name} can't be read: it is empty"):
        SiloWorker().train(train_job(silo, base, tmp_path / "out"), quiet)


def test_a_damaged_or_foreign_base_model_is_refused(tmp_path: Path, silo: Path, base: Path) -> None:
    worker = SiloWorker()
    (tmp_path / "damaged").write_bytes(b"x" * 20)
    with pytest.raises(StorageError, match="damaged"):
        worker.train(train_job(silo, tmp_path / "damaged", tmp_path / "one"), quiet)
    foreign = first_model(tmp_path / "foreign", replace(TINY, name="resnet18"))
    with pytest.raises(UsageError, match="don't fit"):
        worker.train(train_job(silo, foreign, tmp_path / "two"), quiet)
