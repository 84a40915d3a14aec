"""Do the charts carry a federation on a real cluster, from installing it to its end?"""

from collections.abc import Iterator

import pytest

from tests.kubernetes.federation import Installed
from tests.kubernetes.places import Place
from tests.kubernetes.silos import SILOS
from tests.kubernetes.steps import Steps

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(7200)]


@pytest.fixture
def federation(somewhere: Place) -> Iterator[Installed]:
    """A namespace of its own, which ends with the test."""
    installed = Installed(somewhere)
    try:
        yield installed
    finally:
        installed.remove()


def test_a_federation_is_installed_upgraded_disturbed_and_removed(
    federation: Installed, steps: Steps
) -> None:
    with steps.step("two silos and a start model are generated"):
        federation.generate_silos()
    with steps.step("the coordinator is installed, and its run started"):
        federation.install_coordinator()
    keys = federation.secrets()
    for silo in SILOS:
        with steps.step(f"{silo} is invited and joins"):
            federation.invite(silo)
            federation.install_agent(silo)
            federation.forget_token(silo)
    with steps.step("a round is published"):
        federation.wait_until_published(1)
    for release in ("federation", *SILOS):
        with steps.step(f"helm test {release}"):
            federation.test(release)

    with steps.step("the coordinator is upgraded"):
        federation.install_coordinator("--set=federation.leafLifeSeconds=86400")
    for silo in SILOS:
        with steps.step(f"{silo} is upgraded, without its token"):
            federation.install_agent(silo, "--set=policy=minimum_images = 3")
    with steps.step("the next round is published"):
        federation.wait_until_published(federation.published() + 1)
    assert {name: each["data"] for name, each in federation.secrets().items()} == {
        name: each["data"] for name, each in keys.items()
    }

    number = federation.wait_until_under_way()
    with steps.step("the coordinator's pod is deleted within a round, and another answers"):
        federation.delete_coordinator()
    assert federation.published() < number, "the round had ended before its coordinator did"
    with steps.step("that round is published"):
        federation.wait_until_published(number)
    ended = federation.round(number)
    assert ended["phase"] == "published"
    assert {each["silo"] for each in ended["participants"]} == set(SILOS)

    with steps.step("all three are uninstalled"):
        federation.uninstall()
    assert federation.secrets().keys() == keys.keys()
