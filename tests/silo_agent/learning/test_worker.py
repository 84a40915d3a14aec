import asyncio
from pathlib import Path

import pytest

from fedreid.errors import DatasetError
from fedreid.jobs import Progress, Worker
from silo_agent.learning.jobs import TrainReport
from tests.silo_agent.learning.sites import draw_silo, first_model, train_job


def test_a_child_process_trains_and_tells_its_progress(tmp_path: Path) -> None:
    job = train_job(
        draw_silo(tmp_path / "images"),
        first_model(tmp_path / "w0.safetensors"),
        tmp_path / "out",
        evaluate=("global",),
    )
    heard: list[Progress] = []

    async def rounds() -> TrainReport:
        worker = Worker("silo_agent.learning.worker")
        try:
            report = await worker.run(job, TrainReport, heard.append)
            (tmp_path / "images").rename(tmp_path / "gone")
            with pytest.raises(DatasetError, match="is not there"):
                await worker.run(job, TrainReport, heard.append)
            return report
        finally:
            await worker.close()

    report = asyncio.run(rounds())
    assert report.num_images == 12
    training = [line for line in heard if line.phase == "training"]
    assert training[-1].done == training[-1].total == 3
    assert (tmp_path / "out/update.safetensors").is_file()
