"""Do neighbouring versions talk, and are others told which of them to upgrade?"""

import pytest

from fedreid.errors import VersionsApart
from fedreid.versions import check_versions


@pytest.mark.parametrize(
    ("agent", "coordinator"),
    [("0.1.0", "0.1.9"), ("0.1.0", "0.2.0"), ("1.4.2", "1.3.0"), ("0.1.0rc1", "0.2.dev3")],
)
def test_neighbouring_versions_talk(agent: str, coordinator: str) -> None:
    check_versions(agent=agent, coordinator=coordinator)


@pytest.mark.parametrize(
    ("agent", "coordinator", "older"),
    [
        ("0.1.0", "0.3.0", "silo agent"),
        ("0.3.0", "0.1.0", "coordinator"),
        ("0.9.0", "1.0.0", "silo agent"),
        ("1.12.0", "1.2.0", "coordinator"),
    ],
)
def test_the_older_of_two_far_versions_is_to_be_upgraded(
    agent: str, coordinator: str, older: str
) -> None:
    with pytest.raises(VersionsApart, match=f"{agent}.*{coordinator}.*Upgrade the {older};"):
        check_versions(agent=agent, coordinator=coordinator)


@pytest.mark.parametrize("version", ["", "rogue", "1", "1.", "-1.2", "9" * 60 + ".1"])
def test_what_is_no_version_says_nothing(version: str) -> None:
    check_versions(agent=version, coordinator="0.1.0")
