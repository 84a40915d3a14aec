"""Why do the charts ask for OnRootMismatch? Because a kubelet would open the private keys."""

import time
from pathlib import Path

import pytest

from fedreid.errors import IdentityBroken
from fedreid.names import Role
from fedreid.pki.identity import IdentityStore
from tests.deploy.cluster import set_group
from tests.parties import Federation


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A volume on which a program has kept an identity, mounted once before."""
    volume = tmp_path / "volume"
    volume.mkdir()
    set_group(volume, on_root_mismatch=True)
    leaf = Federation.founded(now_s=time.time()).leaf(Role.SILO, "north")
    IdentityStore(volume / "silo-agent/identity").save(leaf)
    return volume


def test_an_identity_outlives_the_next_mount(volume: Path) -> None:
    set_group(volume, on_root_mismatch=True)
    IdentityStore(volume / "silo-agent/identity").load()


def test_a_mount_that_walks_the_volume_makes_the_identity_unusable(volume: Path) -> None:
    set_group(volume, on_root_mismatch=False)
    with pytest.raises(IdentityBroken, match="can be read by other users"):
        IdentityStore(volume / "silo-agent/identity").load()
