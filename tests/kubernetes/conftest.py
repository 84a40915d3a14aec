"""Which cluster do these tests share?"""

import os
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from benchmark.federation import terminable
from tests.deploy.rendering import ROOT
from tests.kubernetes.places import Place, place
from tests.kubernetes.steps import Steps


@pytest.fixture(scope="session")
def steps() -> Iterator[Steps]:
    """What was done; the table lies in ``runs/kubernetes.md`` afterwards."""
    made = Steps()
    made.note("begun", datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"))
    made.note("processors", str(os.cpu_count()))
    yield made
    table = ROOT / "runs/kubernetes.md"
    table.parent.mkdir(exist_ok=True)
    table.write_text(made.table() + "\n")
    print(f"\n{made.table()}")


@pytest.fixture(scope="session")
def somewhere(steps: Steps) -> Iterator[Place]:
    """A cluster, also taken down when the test is told to end."""
    with terminable(), place(steps) as found:
        yield found
