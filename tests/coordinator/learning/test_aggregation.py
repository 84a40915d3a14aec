"""Is the aggregate the weighted mean it claims to be, to the bit, whatever the order and size?

Letters: K silos, S samples of one silo, C channels.
"""

import itertools
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from coordinator.learning import side_by_side
from coordinator.learning.aggregation import aggregate
from coordinator.learning.jobs import AggregateJob, AggregateReport, Contribution
from fedreid.errors import UpdateRefused
from fedreid.files import digest_of, write_with
from fedreid.jobs import Progress
from fedreid.plan import AggregationPlan, BatchNormPolicy
from fedreid.wire.tensors import FloatArray, TensorFile, write_model

Model = dict[str, FloatArray]

SHAPES: dict[str, tuple[int, ...]] = {
    "conv.weight": (4, 3, 3, 3),
    "bn.weight": (4,),
    "bn.bias": (4,),
    "bn.running_mean": (4,),
    "bn.running_var": (4,),
    "neck.weight": (5, 4),
    "scale": (),
}


def random_model(seed: int, scale: float = 1.0) -> Model:
    random = np.random.default_rng(seed)
    model = {n: np.asarray(random.normal(size=s) * scale, np.float32) for n, s in SHAPES.items()}
    model["bn.running_var"] = np.abs(model["bn.running_var"])
    return model


def saved(path: Path, model: Model) -> Path:
    write_with(path, lambda stream: write_model(stream, model))
    return path


class Federation:
    """A base model and K updates on disk."""

    def __init__(self, folder: Path, models: list[Model], base: Model | None = None) -> None:
        self.folder = folder
        self.models = models
        self.base = base if base is not None else random_model(99)
        self.base_path = saved(folder / "base.safetensors", self.base)
        self.contributions = [
            Contribution(
                silo=f"silo-{k}",
                path=str(saved(folder / f"{k}.safetensors", model)),
                num_images=10 * (k + 1),
                num_steps=4 * (k + 1),
                cosine_distance=0.1 * (k + 1),
            )
            for k, model in enumerate(models)
        ]
        self.steps: list[Progress] = []

    def aggregate(
        self,
        bn: BatchNormPolicy = "pooled",
        *,
        order: list[int] | None = None,
        out: str = "out",
        seed: int = 0,
    ) -> tuple[AggregateReport, Model]:
        chosen = order if order is not None else list(range(len(self.models)))
        job = AggregateJob(
            base=str(self.base_path),
            contributions=tuple(self.contributions[k] for k in chosen),
            aggregation=AggregationPlan(
                weighting="samples", max_share=1.0, bn=bn, clip_norm_ratio=0.0, screen=False
            ),
            seed=seed,
            out=str(self.folder / out),
        )
        report = aggregate(job, self.steps.append)
        with TensorFile(self.folder / out) as file:
            return report, file.read_all()


def slow_mean(models: list[Model], shares: list[float], name: str) -> FloatArray:
    total = np.zeros(SHAPES[name])
    for model, share in zip(models, shares, strict=True):
        total = total + share * model[name].astype(np.float64)
    return np.asarray(total, dtype=np.float32)


@pytest.fixture
def three(tmp_path: Path) -> Federation:
    return Federation(tmp_path, [random_model(k) for k in range(3)])


def test_learned_tensors_and_means_are_the_weighted_mean(three: Federation) -> None:
    report, model = three.aggregate()
    p_K = list(report.weights.values())
    assert p_K == pytest.approx([1 / 6, 2 / 6, 3 / 6])
    for name in SHAPES:
        if name != "bn.running_var":
            np.testing.assert_array_equal(model[name], slow_mean(three.models, p_K, name))


def test_progress_counts_every_tensor(three: Federation) -> None:
    three.aggregate()
    for phase in ("comparing", "aggregating"):
        steps = [step for step in three.steps if step.phase == phase]
        assert [step.done for step in steps] == list(range(1, len(SHAPES) + 1))
        assert {step.total for step in steps} == {len(SHAPES)}


def test_pooled_statistics_are_those_of_the_concatenated_data(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    data_K = [random.normal(3.0 * k, 1.0 + k, size=(10 * (k + 1), 4)) for k in range(3)]
    models = []
    for k, data_SC in enumerate(data_K):
        model = random_model(k)
        model["bn.running_mean"] = data_SC.mean(axis=0).astype(np.float32)
        model["bn.running_var"] = data_SC.var(axis=0).astype(np.float32)
        models.append(model)
    _, pooled = Federation(tmp_path, models).aggregate("pooled")
    everything = np.concatenate(data_K)
    np.testing.assert_allclose(pooled["bn.running_mean"], everything.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(pooled["bn.running_var"], everything.var(axis=0), rtol=1e-5)


def test_pooled_variance_is_the_formula_of_the_specification(three: Federation) -> None:
    report, model = three.aggregate()
    mean, square = np.zeros(4), np.zeros(4)
    for share, update in zip(report.weights.values(), three.models, strict=True):
        mean += share * update["bn.running_mean"].astype(np.float64)
        square += share * (
            update["bn.running_var"].astype(np.float64)
            + update["bn.running_mean"].astype(np.float64) ** 2
        )
    np.testing.assert_allclose(model["bn.running_var"], square - mean**2, rtol=1e-6)


def test_pooled_variance_is_not_negative_where_the_plain_formula_cancels(tmp_path: Path) -> None:
    models = [random_model(k) for k in range(3)]
    for model in models:
        model["bn.running_mean"] = np.full(4, 16777216.0 / 3, np.float32)
        model["bn.running_var"] = np.zeros(4, np.float32)
    _, pooled = Federation(tmp_path, models).aggregate()
    assert (pooled["bn.running_var"] >= 0.0).all()


def test_recalibrated_starts_from_the_pooled_statistics(three: Federation) -> None:
    three.aggregate("pooled", out="pooled")
    three.aggregate("recalibrated", out="recalibrated")
    assert digest_of(three.folder / "pooled") == digest_of(three.folder / "recalibrated")


@pytest.mark.parametrize(("seed", "first"), [(0, 0), (1, 1), (5, 2)])
def test_reference_takes_one_silos_buffers_and_averages_all_parameters(
    three: Federation, seed: int, first: int
) -> None:
    report, model = three.aggregate("reference", order=[2, 0, 1], seed=seed)
    for name in ("bn.running_mean", "bn.running_var"):
        np.testing.assert_array_equal(model[name], three.models[first][name])
    expected = slow_mean(three.models, list(report.weights.values()), "bn.weight")
    np.testing.assert_array_equal(model["bn.weight"], expected)


def without_batch_norm(model: Model) -> Model:
    return {name: values for name, values in model.items() if not name.startswith("bn.")}


def test_local_keeps_the_bases_batch_norm_where_no_silo_sends_any(tmp_path: Path) -> None:
    federation = Federation(tmp_path, [without_batch_norm(random_model(k)) for k in range(3)])
    report, model = federation.aggregate("local")
    for name in ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"):
        np.testing.assert_array_equal(model[name], federation.base[name])
    p_K = list(report.weights.values())
    expected = slow_mean(federation.models, p_K, "conv.weight")
    np.testing.assert_array_equal(model["conv.weight"], expected)


def test_local_pools_over_the_silos_that_sent_their_batch_norm(tmp_path: Path) -> None:
    models = [random_model(0), without_batch_norm(random_model(1)), random_model(2)]
    _, local = Federation(tmp_path, models).aggregate("local")
    (tmp_path / "two").mkdir()
    two = Federation(tmp_path / "two", [random_model(0), random_model(2)])
    two.contributions[1] = Contribution(
        silo="silo-2",
        path=two.contributions[1].path,
        num_images=30,
        num_steps=3,
        cosine_distance=0.1,
    )
    _, expected = two.aggregate("pooled")
    for name in ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"):
        np.testing.assert_allclose(local[name], expected[name], rtol=1e-6)


def test_local_ignores_a_mean_that_comes_without_its_variance(tmp_path: Path) -> None:
    models = [without_batch_norm(random_model(k)) for k in range(2)]
    models[0]["bn.running_mean"] = np.ones(4, np.float32)
    federation = Federation(tmp_path, models)
    _, model = federation.aggregate("local")
    np.testing.assert_array_equal(model["bn.running_mean"], federation.base["bn.running_mean"])


@pytest.mark.parametrize("bn", ["pooled", "recalibrated", "reference"])
def test_missing_batch_norm_is_refused_under_other_policies(
    tmp_path: Path, bn: BatchNormPolicy
) -> None:
    models = [random_model(0), without_batch_norm(random_model(1))]
    with pytest.raises(UpdateRefused, match=r"silo-1.*'bn\.bias'"):
        Federation(tmp_path, models).aggregate(bn)
    assert not (tmp_path / "out").exists()


def test_a_missing_or_extra_or_misshapen_tensor_is_refused(tmp_path: Path) -> None:
    missing, extra, misshapen = random_model(1), random_model(1), random_model(1)
    del missing["neck.weight"]
    extra["odd"] = misshapen["scale"] = np.ones(2, np.float32)
    for index, odd in enumerate((missing, extra, misshapen)):
        folder = tmp_path / str(index)
        folder.mkdir()
        models = [random_model(0), odd]
        with pytest.raises(UpdateRefused, match="does not fit the base"):
            Federation(folder, models).aggregate("local")


def test_the_order_of_arrival_does_not_change_a_byte(three: Federation) -> None:
    digests = set()
    for order in itertools.permutations(range(3)):
        three.aggregate(order=list(order))
        digests.add(digest_of(three.folder / "out"))
    assert len(digests) == 1


def test_the_sum_is_taken_in_float64(tmp_path: Path) -> None:
    models = [random_model(k) for k in range(3)]
    for model, value in zip(models, (6e8, 1.0, -2e8), strict=True):
        model["neck.weight"] = np.full((5, 4), value, np.float32)
    federation = Federation(tmp_path, models)
    report, model = federation.aggregate()
    p_K = list(report.weights.values())
    single = sum(np.float32(p) * m["neck.weight"] for p, m in zip(p_K, models, strict=True))
    exact = sum(p * float(m["neck.weight"][0, 0]) for p, m in zip(p_K, models, strict=True))
    assert model["neck.weight"][0, 0] == np.float32(exact)
    assert np.asarray(single)[0, 0] != np.float32(exact)


def test_update_norm_counts_learned_tensors_only(three: Federation) -> None:
    report, model = three.aggregate()
    squared = 0.0
    for name in SHAPES:
        if "running" not in name:
            change = model[name].astype(np.float64) - three.base[name].astype(np.float64)
            squared += float((change**2).sum())
    assert report.update_norm == pytest.approx(squared**0.5, rel=1e-6)


def test_blocks_of_any_size_give_the_same_bytes(
    three: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    three.aggregate(out="whole")
    monkeypatch.setattr(side_by_side, "_BLOCK_VALUES", 7)
    three.aggregate(out="blocks")
    assert digest_of(three.folder / "whole") == digest_of(three.folder / "blocks")


def test_memory_does_not_grow_with_silos_or_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(side_by_side, "_BLOCK_VALUES", 16 * 1024)
    values = 1024 * 1024
    wide: Model = {"wide.weight": np.ones((values,), np.float32)}
    federation = Federation(tmp_path, [wide] * 8, base=wide)
    peaks = {}
    for silos in (2, 8):
        tracemalloc.start()
        job = AggregateJob(
            base=str(federation.base_path),
            contributions=tuple(federation.contributions[:silos]),
            aggregation=AggregationPlan(),
            out=str(tmp_path / "out"),
        )
        aggregate(job, federation.steps.append)
        peaks[silos] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[8] < peaks[2] + 100_000
    assert peaks[8] < values * 4 / 2  # less than half of one model
