"""Does distillation move the aggregate towards its teachers, and only by what the plan allows?

Letters: N images, D feature width.
"""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from coordinator.learning import distillation
from coordinator.learning.distillation import distil, distillation_loss, mean_teacher
from coordinator.learning.jobs import DistilJob, DistilReport
from coordinator.learning.public_images import public_images
from fedreid.errors import DatasetError, JobFailed
from fedreid.files import digest_of
from fedreid.jobs import Progress
from fedreid.plan import DistillationPlan
from fedreid.reid.backbone import load_backbone, shared_tensors
from fedreid.reid.transforms import normalise
from fedreid.wire.tensors import is_statistic, load_tensors, save_tensors, write_model
from tests.coordinator.learning.sites import TINY, backbone, contribution, picture, public_folder

torch.set_num_threads(1)

IMAGES = 21  # not a multiple of the batch size


class Site:
    """A student, two teachers and public images on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.student = folder / "student.safetensors"
        save_tensors(self.student, shared_tensors(backbone(1)))
        self.public = public_folder(folder, IMAGES)
        self.contributions = tuple(
            contribution(folder, silo, seed) for silo, seed in (("north", 2), ("east", 3))
        )
        self.steps: list[Progress] = []

    def plan(
        self,
        *,
        loss: Literal["normalised", "paper"] = "normalised",
        bn_statistics: Literal["keep", "update"] = "keep",
        similarity: float = 0.0,
        learning_rate: float = 0.002,
        weighted: bool = False,
    ) -> DistillationPlan:
        return DistillationPlan(
            images=str(self.public),
            loss=loss,
            bn_statistics=bn_statistics,
            similarity=similarity,
            learning_rate=learning_rate,
            batch_size=8,
            epochs=2,
            weighted_teachers=weighted,
        )

    def job(
        self,
        plan: DistillationPlan,
        *,
        distils: bool = True,
        recalibrates: bool = False,
        seed: int = 7,
        out: str = "out",
    ) -> DistilJob:
        return DistilJob(
            backbone=TINY,
            student=str(self.student),
            contributions=self.contributions,
            weights={"north": 0.75, "east": 0.25},
            distillation=plan,
            distil=distils,
            recalibrate=recalibrates,
            seed=seed,
            out=str(self.folder / out),
        )

    def run(self, job: DistilJob) -> DistilReport:
        return distil(job, self.steps.append)

    def images(self) -> Tensor:
        return normalise(
            public_images(DistillationPlan(images=str(self.public)), TINY).batch(np.arange(IMAGES))
        )

    def features(self, path: str | Path) -> Tensor:
        with torch.no_grad():
            features_ND: Tensor = load_backbone(TINY, load_tensors(Path(path))).eval()(
                self.images()
            )
        return features_ND


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


def slow_target(site: Site, weights: dict[str, float]) -> Tensor:
    target_ND = torch.zeros(IMAGES, 512, dtype=torch.float64)
    for one in site.contributions:
        for row, feature_D in enumerate(site.features(one.path).double()):
            target_ND[row] += weights[one.silo] * feature_D / feature_D.norm()
    return target_ND


@pytest.mark.parametrize(
    ("weighted", "weights"),
    [(False, {"north": 0.5, "east": 0.5}), (True, {"north": 0.75, "east": 0.25})],
)
def test_the_target_is_the_mean_of_the_teachers_unit_features(
    site: Site, weighted: bool, weights: dict[str, float]
) -> None:
    images = public_images(DistillationPlan(images=str(site.public)), TINY)
    job = site.job(site.plan(weighted=weighted))
    target_ND = mean_teacher(job, images, site.steps.append)
    torch.testing.assert_close(target_ND.double(), slow_target(site, weights), rtol=1e-4, atol=1e-6)


def test_each_loss_is_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    student_ND, target_ND = (torch.randn(5, 8, generator=generator) for _ in range(2))
    paper = sum((s - t) ** 2 for s, t in zip(student_ND.ravel(), target_ND.ravel(), strict=True))
    plan = DistillationPlan(loss="paper")
    torch.testing.assert_close(distillation_loss(student_ND, target_ND, plan), paper / 40)

    def cosine(left: Tensor, right: Tensor) -> float:
        return float(left @ right / (left.norm() * right.norm()))

    pairs = [(i, j) for i in range(5) for j in range(5)]
    one_minus = sum(1 - cosine(s, t) for s, t in zip(student_ND, target_ND, strict=True)) / 5
    similar = sum(
        (cosine(student_ND[i], student_ND[j]) - cosine(target_ND[i], target_ND[j])) ** 2
        for i, j in pairs
    ) / len(pairs)
    for weight in (0.0, 3.0):
        plan = DistillationPlan(loss="normalised", similarity=weight)
        loss = distillation_loss(student_ND, target_ND, plan).item()
        assert loss == pytest.approx(one_minus + weight * similar, rel=1e-5)


@pytest.mark.parametrize("similarity", [0.0, 1.0])
def test_distillation_lowers_the_loss_and_nears_the_mean_teacher(
    site: Site, similarity: float
) -> None:
    report = site.run(site.job(site.plan(similarity=similarity)))
    assert report.images == IMAGES
    assert report.loss_before is not None and report.loss_after is not None
    assert report.loss_after < 0.9 * report.loss_before
    target_ND = slow_target(site, {"north": 0.5, "east": 0.5}).float()

    def nearness(path: Path) -> float:
        return torch.cosine_similarity(site.features(path), target_ND).mean().item()

    assert nearness(site.folder / "out") > nearness(site.student)
    if similarity == 0.0:
        assert report.loss_before == pytest.approx(1 - nearness(site.student), rel=1e-4)
        assert report.loss_after == pytest.approx(1 - nearness(site.folder / "out"), rel=1e-4)


def test_the_papers_loss_is_lowered_too(site: Site) -> None:
    report = site.run(site.job(site.plan(loss="paper", learning_rate=5e-5)))
    assert report.loss_before is not None and report.loss_after is not None
    assert report.loss_after < report.loss_before


def statistics(path: Path) -> dict[str, bytes]:
    return {n: v.tobytes() for n, v in load_tensors(path).items() if is_statistic(n)}


def test_keep_fixes_the_batch_norm_statistics_and_update_moves_them(site: Site) -> None:
    site.run(site.job(site.plan(bn_statistics="keep")))
    assert statistics(site.folder / "out") == statistics(site.student)
    site.run(site.job(site.plan(bn_statistics="update")))
    moved = statistics(site.folder / "out")
    assert all(moved[name] != before for name, before in statistics(site.student).items())


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(site: Site) -> None:
    for out, seed in (("first", 7), ("again", 7), ("other", 8)):
        site.run(site.job(site.plan(bn_statistics="update"), seed=seed, out=out))
    digests = {out: digest_of(site.folder / out) for out in ("first", "again", "other")}
    assert digests["first"] == digests["again"] != digests["other"]


def test_the_order_of_the_teachers_does_not_change_a_byte(site: Site) -> None:
    site.run(site.job(site.plan(), out="first"))
    site.contributions = site.contributions[::-1]
    site.run(site.job(site.plan(), out="reversed"))
    assert digest_of(site.folder / "first") == digest_of(site.folder / "reversed")


def test_of_many_images_the_loss_is_taken_over_evenly_spread_ones(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distillation, "LOSS_IMAGES", 8)
    images = public_images(DistillationPlan(images=str(site.public)), TINY)
    targets_ND = mean_teacher(site.job(site.plan()), images, site.steps.append)
    student = load_backbone(TINY, load_tensors(site.student)).eval()
    loss = distillation.mean_loss(student, images, targets_ND, site.plan())
    cosines_N = torch.cosine_similarity(site.features(site.student), targets_ND)
    assert loss == pytest.approx(1.0 - cosines_N[::3].mean().item(), rel=1e-4)


def test_a_job_that_was_cut_off_gives_the_same_bytes_when_it_is_done_again(site: Site) -> None:
    job = site.job(site.plan(bn_statistics="update"), recalibrates=True, out="whole")
    site.run(job)
    again = msgspec.structs.replace(job, out=str(site.folder / "cut-off"))

    def killed(progress: Progress) -> None:
        if (progress.phase, progress.done) == ("distilling", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distil(again, killed)
    assert not Path(again.out).exists()
    site.run(again)
    assert digest_of(Path(again.out)) == digest_of(site.folder / "whole")


def test_memory_does_not_grow_with_the_number_of_teachers(tmp_path: Path) -> None:
    public_folder(tmp_path, 8)
    child = [sys.executable, "-m", "tests.coordinator.learning.distilling_child", str(tmp_path)]
    numbers = ("2", "2", "12")  # the first job also warms up torch
    told = subprocess.run([*child, *numbers], check=True, capture_output=True, text=True).stdout
    _, few_mib, many_mib = map(int, told.split())
    model_mib = (tmp_path / "model.safetensors").stat().st_size / 2**20
    # Ten more that were kept would take ten models; the allocator's own swings take up to one.
    assert many_mib - few_mib < 2 * model_mib


def test_bf16_gives_nearly_the_same_targets_and_lowers_the_loss(site: Site) -> None:
    images = public_images(DistillationPlan(images=str(site.public)), TINY)
    plan = msgspec.structs.replace(site.plan(), mixed_precision="bf16")
    exact_ND = mean_teacher(site.job(site.plan()), images, site.steps.append)
    target_ND = mean_teacher(site.job(plan), images, site.steps.append)
    assert not torch.equal(target_ND, exact_ND)
    assert torch.cosine_similarity(target_ND, exact_ND).min() > 0.98
    report = site.run(site.job(plan, out="bf16"))
    exact = site.run(site.job(site.plan(), out="exact"))
    assert report.loss_before is not None and report.loss_after is not None
    assert report.loss_before == pytest.approx(exact.loss_before, rel=0.05)
    assert report.loss_after < 0.9 * report.loss_before


def test_recalibration_gives_the_statistics_of_the_public_images(site: Site) -> None:
    plan = DistillationPlan(images=str(site.public), batch_size=IMAGES)
    report = site.run(site.job(plan, distils=False, recalibrates=True))
    assert (report.loss_before, report.loss_after) == (None, None)
    before, after = load_tensors(site.student), load_tensors(site.folder / "out")
    student = load_backbone(TINY, before).eval()
    with torch.no_grad():
        first_NCHW: Tensor = student.trunk.get_submodule("features.0.0")(site.images())
    mean_C = first_NCHW.mean(dim=(0, 2, 3)).numpy()
    var_C = first_NCHW.var(dim=(0, 2, 3)).numpy()
    np.testing.assert_allclose(
        after["trunk.features.0.1.running_mean"], mean_C, rtol=1e-3, atol=1e-5
    )
    np.testing.assert_allclose(after["trunk.features.0.1.running_var"], var_C, rtol=1e-3)
    learned = [name for name in before if not is_statistic(name)]
    assert all((before[name] == after[name]).all() for name in learned)


def test_recalibration_forgets_what_the_student_saw_before(site: Site) -> None:
    images = public_images(DistillationPlan(images=str(site.public)), TINY)
    fresh, used = (load_backbone(TINY, load_tensors(site.student)).eval() for _ in range(2))
    used.train()
    with torch.no_grad():
        used(torch.randn(4, 3, TINY.height_px, TINY.width_px))
    for student in (fresh, used):
        distillation.recalibrate(student, images, 8, 1, site.steps.append)
    expected, found = shared_tensors(fresh), shared_tensors(used)
    assert all((expected[name] == found[name]).all() for name in expected)


def test_losses_tell_distillation_apart_from_recalibration(site: Site) -> None:
    both = site.run(site.job(site.plan(), recalibrates=True, out="both"))
    site.run(site.job(site.plan(), distils=False, recalibrates=True, out="recalibrated"))
    images = public_images(DistillationPlan(images=str(site.public)), TINY)
    targets_ND = mean_teacher(site.job(site.plan()), images, site.steps.append)
    recalibrated = load_backbone(TINY, load_tensors(site.folder / "recalibrated")).eval()
    loss = distillation.mean_loss(recalibrated, images, targets_ND, site.plan())
    assert both.loss_before == pytest.approx(loss, rel=1e-6)


def test_a_teacher_that_kept_its_batch_norm_speaks_with_the_aggregates(
    site: Site, tmp_path: Path
) -> None:
    one = site.contributions[0]
    student, teacher = load_tensors(site.student), load_tensors(Path(one.path))
    layers = {name.rpartition(".")[0] for name in teacher if is_statistic(name)}
    sent = {n: v for n, v in teacher.items() if n.rpartition(".")[0] not in layers}
    with (tmp_path / "partial").open("wb") as stream:
        write_model(stream, sent)
    job = site.job(site.plan())
    partial = DistilJob(
        **{
            **{name: getattr(job, name) for name in job.__struct_fields__},
            "contributions": (
                type(one)(
                    silo=one.silo,
                    path=str(tmp_path / "partial"),
                    num_images=1,
                    num_steps=1,
                    cosine_distance=0.1,
                ),
            ),
        }
    )
    images = public_images(DistillationPlan(images=str(site.public)), TINY)
    target_ND = mean_teacher(partial, images, site.steps.append)
    with torch.no_grad():
        expected_ND = load_backbone(TINY, {**student, **sent}).eval()(site.images())
    assert torch.cosine_similarity(target_ND, expected_ND).min() > 0.999


def test_progress_tells_phases_with_the_loss(site: Site) -> None:
    site.steps.clear()
    site.run(site.job(site.plan(), recalibrates=True))
    last = {step.phase: step for step in site.steps}
    assert list(last) == ["recalibrating", "teachers", "distilling"]
    assert all(step.done == step.total for step in last.values())
    assert last["teachers"].total == 2 * IMAGES
    assert last["distilling"].loss is not None


def test_divergence_is_reported_and_nothing_written(site: Site) -> None:
    with pytest.raises(JobFailed, match="learning_rate"):
        site.run(site.job(site.plan(loss="paper", learning_rate=1e30), out="diverged"))
    assert not (site.folder / "diverged").exists()


@pytest.mark.parametrize(("count", "size"), [(2, 32), (3, 2), (5, 2), (33, 32), (64, 32), (7, 3)])
def test_no_batch_has_one_image_and_every_image_comes_once(count: int, size: int) -> None:
    batches = distillation._shuffled(count, size, seed=1)
    assert sorted(row for rows in batches for row in rows) == list(range(count))
    assert all(2 <= len(rows) <= max(size, 3) for rows in batches)


@pytest.mark.parametrize("count", [0, 1])
def test_a_folder_with_less_than_two_images_is_refused(tmp_path: Path, count: int) -> None:
    (tmp_path / "public").mkdir()
    public_folder(tmp_path, count)
    with pytest.raises(DatasetError, match=f"holds {count} image"):
        public_images(DistillationPlan(images=str(tmp_path / "public")), TINY)


def test_a_missing_folder_is_refused_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no folder .*Correct the path"):
        public_images(DistillationPlan(images=str(tmp_path / "nowhere")), TINY)


def test_one_unreadable_image_among_many_is_refused_by_name(site: Site, tmp_path: Path) -> None:
    public = public_folder(tmp_path, 20)
    (public / "011.png").write_bytes(b"no picture")
    plan = DistillationPlan(images=str(public))
    with pytest.raises(DatasetError, match=r"011\.png"):
        site.run(site.job(plan, out="unreadable"))
    assert not (site.folder / "unreadable").exists()


def test_decoded_images_are_kept_until_a_file_changes(tmp_path: Path) -> None:
    public = public_folder(tmp_path, 3)
    kept = public_images(DistillationPlan(images=str(public)), TINY)
    assert public_images(DistillationPlan(images=str(public)), TINY) is kept
    picture(public / "001.png", seed=50)
    os.utime(public / "001.png", ns=(1, 1))
    assert public_images(DistillationPlan(images=str(public)), TINY) is not kept


def test_images_are_found_in_subfolders_and_hidden_files_are_not(tmp_path: Path) -> None:
    public = public_folder(tmp_path, 2)
    picture(public / "east" / "side" / "x.jpg", 1)
    picture(public / "east" / ".hidden.jpg", 1)
    (public / "readme.txt").write_text("not an image")
    assert len(public_images(DistillationPlan(images=str(public)), TINY)) == 3


def test_of_cuhk02_the_people_of_cuhk01_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    for pair, name in itertools.product((1, 2, 3), ("001_1", "001_2")):
        picture(tmp_path / f"Dataset/P{pair}/cam1/{name}.png", pair)
    plan = DistillationPlan(images=str(tmp_path))
    assert len(public_images(plan, TINY)) == 4
    with_p1 = msgspec.structs.replace(plan, exclude_cuhk01=False)
    assert len(public_images(with_p1, TINY)) == 6
