"""Does a site that nobody scrapes show its figures, and none of an agent that has stopped?"""

import asyncio
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.parser import text_string_to_metric_families

from fedreid.errors import ConfigRefused
from fedreid.exposition import Exposition
from silo_agent import textfile


def figures(values: list[float]) -> Exposition:
    """One gauge, which takes the next of some values at each reading."""
    registry = CollectorRegistry()
    gauge = Gauge("fedreid_example", "An example.", registry=registry)
    following = iter(values)
    return Exposition(registry, lambda: gauge.set(next(following)))


async def written(path: Path, wanted: str) -> str:
    """The file's text, once it holds something."""
    async with asyncio.timeout(20):
        while True:
            if path.exists() and wanted in (text := path.read_text()):
                return text
            await asyncio.sleep(0)


def test_the_file_holds_the_newest_figures_whole_and_is_taken_away_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(textfile, "TEXTFILE_S", 0.01)
    path = tmp_path / "fedreid.prom"
    said: list[str] = []

    async def story() -> None:
        values = [1.0] * 3 + [2.0] * 100_000
        task = asyncio.create_task(textfile.keep_textfile(path, figures(values), said.append))
        text = await written(path, "fedreid_example 2.0")
        (family,) = text_string_to_metric_families(text)
        assert family.name == "fedreid_example"
        assert path.stat().st_mode & 0o777 == 0o644  # node_exporter is another user
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(story())
    assert list(tmp_path.iterdir()) == [] and said == []


def test_a_disk_that_does_not_take_it_is_told_once_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(textfile, "TEXTFILE_S", 0.01)
    folder = tmp_path / "gone"
    said: list[str] = []

    async def story() -> None:
        path = folder / "fedreid.prom"
        read = []
        shown = Exposition(CollectorRegistry(), lambda: read.append(1))
        task = asyncio.create_task(textfile.keep_textfile(path, shown, said.append))
        while len(read) < 3:
            await asyncio.sleep(0)
        folder.mkdir()
        await written(path, "")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(story())
    assert len(said) == 1 and "fedreid.prom" in said[0]


@pytest.mark.parametrize("name", ["fedreid.txt", "missing/fedreid.prom"])
def test_a_file_that_node_exporter_would_not_find_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigRefused, match=r"\.prom"):
        textfile.check_textfile(tmp_path / name)
