"""Do two processes that torchrun starts train one job together, and does a death end it clearly?"""

import asyncio
import json
import os
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
from msgspec.structs import replace
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from fedreid.errors import JobFailed, UsageError
from fedreid.jobs import Progress
from silo_agent.learning.group import ALONE, Group, joined, last_words
from silo_agent.learning.jobs import TrainReport
from silo_agent.service import TRAINER, training_worker
from tests.silo_agent.learning.sites import TRAINING, draw_silo, first_model, read, train_job


@pytest.mark.parametrize(
    ("images", "shares"),
    [(8, [4, 4]), (7, [4, 3]), (5, [3, 2]), (3, [3, 0]), (2, [2, 0]), (1, [1, 0])],
)
def test_shares_cover_a_batch_and_none_is_a_single_image_beside_others(
    images: int, shares: list[int]
) -> None:
    batch_N = np.arange(images)
    parts = [Group(rank=rank, size=2).share(batch_N) for rank in range(2)]
    assert [len(part) for part in parts] == shares
    assert np.concatenate(parts).tolist() == batch_N.tolist()
    assert ALONE.share(batch_N).tolist() == batch_N.tolist()


def test_an_average_weighs_each_process_by_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process holds 3 images of 4, with gradients of 2 everywhere."""
    monkeypatch.setattr(dist, "all_reduce", lambda flat: flat.add_(0.75 * 2.0))
    values = [torch.ones(2, 2), torch.tensor(6.0)]
    Group(rank=0, size=2).average(values, 0.25)
    assert values[0].tolist() == [[1.75, 1.75], [1.75, 1.75]]
    assert float(values[1]) == 3.0


def test_processes_whose_weights_differ_are_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    module = torch.nn.Linear(2, 1)

    def gather(sums: list[object], own: list[float]) -> None:
        sums[:] = [own, [own[0] + 1e-9, own[1]]]

    monkeypatch.setattr(dist, "all_gather_object", gather)
    with pytest.raises(JobFailed, match="come apart"):
        Group(rank=0, size=2).settle(module)


def test_every_process_but_the_first_draws_its_own_random_numbers() -> None:
    draws = [
        float(Group(rank=rank, size=3).own_random(np.random.default_rng(5), 5).random())
        for rank in range(3)
    ]
    assert draws[0] == float(np.random.default_rng(5).random())
    assert len(set(draws)) == 3


def test_the_last_words_are_those_of_the_process_that_failed_by_itself(tmp_path: Path) -> None:
    """One raised and left its error as ``record`` does; one ended because the other was gone."""
    left = tmp_path / "error.json"
    words = {"message": "DatasetError: gone", "extraInfo": {"timestamp": "9999999999"}}
    left.write_text(json.dumps({"message": words}))
    followed = ProcessFailure(local_rank=0, pid=1, exitcode=1, error_file="")
    raised = ProcessFailure(local_rank=1, pid=2, exitcode=1, error_file=str(left))
    killed = ProcessFailure(local_rank=2, pid=3, exitcode=-9, error_file="")
    failures = {0: followed, 1: raised}
    told = last_words(ChildFailedError("module", failures), 3)
    assert told == "training process 2 of 3 ended: DatasetError: gone"
    told = last_words(ChildFailedError("module", {**failures, 2: killed}), 3)
    assert told == "training process 3 of 3 ended: signal SIGKILL"


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match="processes = 2"), joined():
        pass


def ranks(pid: int) -> dict[str, psutil.Process]:
    children = psutil.Process(pid).children(recursive=True)
    return {child.environ()["RANK"]: child for child in children if "RANK" in child.environ()}


def test_two_processes_train_a_job_and_the_death_of_one_ends_both(tmp_path: Path) -> None:
    """``settle`` raises if the two end with different weights, so a report says that they agree."""
    silo, base = draw_silo(tmp_path / "images"), first_model(tmp_path / "w0.safetensors")
    plan = replace(
        TRAINING, epochs=20, batch_size=12, dropout=0.0, padding_px=0,
        learning_rate=0.005, backbone_learning_rate=0.005,
    )  # fmt: skip
    job = train_job(silo, base, tmp_path / "out", training=plan, evaluate=("local",))
    endless = train_job(silo, base, tmp_path / "endless", training=replace(plan, epochs=100))
    family: list[psutil.Process] = []
    heard: list[Progress] = []

    async def story() -> TrainReport:
        worker = training_worker(TRAINER, 2)

        def kill(progress: Progress) -> None:
            os.kill(ranks(worker.pid or 0)["1"].pid, signal.SIGKILL)

        try:
            report = await worker.run(job, TrainReport, heard.append)
            family.extend(psutil.Process(worker.pid).children(recursive=True))
            with pytest.raises(JobFailed) as failed:
                await worker.run(endless, TrainReport, kill)
            assert failed.value.why == "training process 2 of 2 ended: signal SIGKILL"
            return report
        finally:
            await worker.close()

    report = asyncio.run(story())
    assert report.num_steps == 20
    assert [result.model for result in report.evaluations] == ["local"]
    means = [line.loss for line in heard if line.phase == "training" and line.loss is not None]
    assert means[-1] < 0.8 * means[0], means  # of all steps, and of the first
    assert read(tmp_path / "out/update.safetensors").keys() == read(base).keys()
    assert len(family) >= 2
    assert not [process for process in family if process.is_running()]
