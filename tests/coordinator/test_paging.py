"""Are all rounds and figures of a long run told, in answers that gRPC carries?"""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from coordinator import admin
from coordinator.admin import evaluations_page, rounds_page
from coordinator.client import every_evaluation, every_round
from coordinator.rounds.journal import Journal
from fedreid.limits import MESSAGE_BYTES, PAGE_ROUNDS
from fedreid.v1 import admin_pb2
from fedreid.v1.admin_pb2_grpc import AdminStub
from tests.coordinator.rounds import long_run
from tests.coordinator.rounds.states import opened


class Pages:
    """The two calls, without a port; the size of each answer is noted."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.sizes: list[int] = []

    def ListRounds(  # noqa: N802 - the name of the call
        self, request: admin_pb2.ListRoundsRequest
    ) -> admin_pb2.ListRoundsResponse:
        page = rounds_page(self._journal, request.run, request.first)
        self.sizes.append(page.ByteSize())
        return page

    def ListEvaluations(  # noqa: N802
        self, request: admin_pb2.ListEvaluationsRequest
    ) -> admin_pb2.ListEvaluationsResponse:
        page = evaluations_page(self._journal, request.run, request.first)
        self.sizes.append(page.ByteSize())
        return page


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    """An empty journal."""
    made = Journal(tmp_path / "journal.sqlite")
    yield made
    made.close()


@pytest.mark.parametrize(
    ("rounds", "silos"), [(0, 1), (3, 2), (PAGE_ROUNDS, 1), (2 * PAGE_ROUNDS + 1, 1), (30, 400)]
)
def test_every_round_is_told_once_and_in_order(journal: Journal, rounds: int, silos: int) -> None:
    for number in range(1, rounds + 1):
        names = long_run.names(silos)
        journal.save_round(long_run.finished_round(opened(), number, names))
    pages = Pages(journal)
    told = every_round(cast("AdminStub", pages), "spring")
    assert [state.number for state in told] == list(range(1, rounds + 1))
    assert [len(state.participants) for state in told] == [silos] * rounds
    assert max(pages.sizes) < MESSAGE_BYTES
    assert len(pages.sizes) > 1 or rounds < PAGE_ROUNDS


def test_every_figure_is_told_once_and_in_order(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admin, "PAGE_BYTES", 5000)
    long_run.write_rounds(journal, opened(), range(1, 13), long_run.names(20))
    pages = Pages(journal)
    told = every_evaluation(cast("AdminStub", pages), "spring")
    assert [(x.round, x.silo) for x in told] == [
        (row.round, row.silo) for row in journal.evaluations("spring")
    ]
    assert len(told) == 12 * 20 * 3
    assert len(pages.sizes) > 3
    assert max(pages.sizes) < 2 * 5000


def test_one_round_can_be_asked_for(journal: Journal) -> None:
    long_run.write_rounds(journal, opened(), range(1, 10), long_run.names(2))
    assert rounds_page(journal, "spring", 7).rounds[0].number == 7
    assert [x.round for x in evaluations_page(journal, "spring", 9).evaluations] == [9] * 6
    assert not rounds_page(journal, "autumn", 0).rounds
