"""What does a node leave on its machine? All of it is taken back, also after a failure.

A kubelet is not made to be removed: it leaves chains of iptables, control groups, mounts, settings
of the kernel and folders with fixed names. A machine that has some of them is a node already, and
is left alone.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.kubernetes.needs import CACHE
from tests.kubernetes.processes import done

_FOLDERS = tuple(
    Path(place)
    for place in ("/var/lib/kubelet", "/var/lib/cni", "/var/log/pods", "/var/log/containers")
)
_NAMESPACES = Path("/run/netns")
_SETTINGS = tuple(
    Path("/proc/sys") / name
    for name in (
        "kernel/keys/root_maxbytes", "kernel/keys/root_maxkeys", "kernel/panic",
        "kernel/panic_on_oops", "net/ipv4/conf/all/route_localnet", "net/ipv4/ip_forward",
        "vm/overcommit_memory", "vm/panic_on_oom",
    )
)  # fmt: skip
_CHAINS = "KUBE-"


@contextmanager
def removed_afterwards(state: Path) -> Iterator[None]:
    """Around the life of a node that keeps its own files in ``state``."""
    found = [*_chained(), *_groups(), *filter(Path.exists, _FOLDERS)]
    if found:
        pytest.fail(f"this machine is, or was, a Kubernetes node: it has {found[0]}")
    settings = {path: path.read_text() for path in _SETTINGS}
    namespaces = set(_network_namespaces())
    with ExitStack() as undo:  # each step is taken even where another fails
        for folder in (state, *_FOLDERS):
            undo.callback(_remove, folder)
        undo.callback(_remove_groups)
        undo.callback(_remove_chains)
        undo.callback(_restore, settings)
        undo.callback(_unmount, state)
        undo.callback(_remove_namespaces, namespaces)
        yield


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _chained() -> list[str]:
    """The tools whose tables hold chains of a kubelet or of kube-proxy."""
    return [tool for tool in ("iptables", "ip6tables") if _CHAINS in done([f"{tool}-save"])]


def _remove_chains() -> None:
    for tool in _chained():
        lines = done([f"{tool}-save", "--counters"]).splitlines()
        kept = [line for line in lines if _CHAINS not in line]
        done([f"{tool}-restore", "--counters"], given="\n".join([*kept, ""]))


def _groups() -> list[Path]:
    root = Path("/sys/fs/cgroup")
    return [path for pattern in ("kubepods*", "*/kubepods*") for path in root.glob(pattern)]


def _remove_groups() -> None:
    for group in _groups():
        for inner, _, _ in os.walk(group, topdown=False):
            Path(inner).rmdir()


def _restore(settings: dict[Path, str]) -> None:
    for path, value in settings.items():
        if path.read_text() != value:
            path.write_text(value)


def _unmount(state: Path) -> None:
    # buildah leaves its own folder in the cache mounted on itself.
    below = tuple(f"{place}/" for place in (state, CACHE, *_FOLDERS))
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for mount in sorted(filter(lambda place: place.startswith(below), mounts), reverse=True):
        subprocess.run(["umount", "--lazy", mount], check=True)


def _network_namespaces() -> list[Path]:
    return sorted(_NAMESPACES.glob("cni-*"))


def _remove_namespaces(before: set[Path]) -> None:
    for namespace in set(_network_namespaces()) - before:
        done(["ip", "netns", "delete", namespace.name])
