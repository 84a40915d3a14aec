"""Does today's code go on where each version before it was killed?

``tests/golden/making.py`` says what the data folders hold and how they were made.
"""

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from benchmark.federation import LocalFederation
from coordinator.client import every_round
from coordinator.folders import Folders
from coordinator.rounds.formats import FORMAT
from coordinator.rounds.journal import Journal
from silo_agent.config import Folders as AgentFolders
from silo_agent.config import load_config, load_membership
from silo_agent.outbox import Outbox
from tests.coordinator.rounds.test_formats import number_in
from tests.golden.making import COUNTED, HERE, TRAINED
from tests.history import check, read_history

VERSIONS = sorted(path.name.removesuffix(".tar.xz") for path in HERE.glob("*.tar.xz"))
_WAIT_S = 120.0


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    """Each version that left its data folders."""
    return str(request.param)


@pytest.fixture
def digests(version: str) -> dict[int, str]:
    """What the golden run published by round, where nobody was killed."""
    told = json.loads((HERE / f"{version}.json").read_text())
    return {int(number): digest for number, digest in told.items()}


@pytest.fixture
def root(version: str, tmp_path: Path) -> Path:
    """The data folders, as they were left."""
    with tarfile.open(HERE / f"{version}.tar.xz") as archive:
        archive.extractall(tmp_path / "golden", filter="data")
    return tmp_path / "golden"


def test_there_are_data_folders_of_a_version() -> None:
    assert VERSIONS


def test_a_golden_journal_tells_what_was_in_it(root: Path, digests: dict[int, str]) -> None:
    path = Folders(root / "coordinator").journal
    journal = Journal(path)
    run, first, second = journal.newest_run(), *journal.rounds("golden")
    assert run is not None and (run.name, run.state) == ("golden", "running")
    assert [silo.name for silo in journal.silos()] == [COUNTED, TRAINED]
    assert (first.phase, first.model_digest) == ("published", digests[1])
    assert (second.phase, second.base_digest) == ("collecting", digests[1])
    assert [update.silo for update in second.updates] == [COUNTED]
    assert [(model.version, model.round) for model in journal.models()] == [(2, 1), (1, 0)]
    journal.close()
    assert number_in(path) == FORMAT


def test_a_golden_agent_knows_what_it_has_trained(root: Path, digests: dict[int, str]) -> None:
    folders = AgentFolders(root / TRAINED)
    assert load_membership(folders).silo == TRAINED
    assert load_config(folders).coordinator.startswith("localhost:")
    finished = Outbox(folders).find("golden", 2, digests[1])
    assert finished is not None and finished.report.num_images == 100


@pytest.mark.timeout(300)
def test_a_golden_federation_goes_on_to_the_models_that_it_was_on_its_way_to(
    root: Path, digests: dict[int, str], silo_folders: dict[str, Path]
) -> None:
    images = next(iter(silo_folders.values()))
    silos = dict.fromkeys((COUNTED, TRAINED), images)
    with LocalFederation(root, federation="harbour", silos=silos) as local:
        (root / "coordinator" / "endpoint").unlink()  # another machine, another port
        local.restart_coordinator()
        for silo in silos:
            # Its certificate has expired long since: that costs a new token, and nothing else.
            shutil.rmtree(root / silo / "identity")
            local.command(*local.join_arguments(silo), "--rejoin", "--enrol-only")
            local.start_null_agent(silo)
        local.wait_until(lambda run: run.state == "finished", timeout_s=_WAIT_S)
        with local.admin() as admin:
            rounds = every_round(admin)
        logs = {silo: agent.log for silo, agent in local.agents.items()}
    assert {state.number: state.model_digest for state in rounds} == digests
    assert not [silo for silo, log in logs.items() if "round 2: training" in log]
    assert all("round 3: training" in log for log in logs.values())
    check(
        read_history(local.data, [local.agent_data(silo) for silo in silos]),
        uninterrupted={("golden", number): digest for number, digest in digests.items()},
    )
