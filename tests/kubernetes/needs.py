"""Is what a cluster is made with on this machine? A missing program fails the test by its name."""

import os
import shutil

import pytest

from tests.deploy.rendering import TOOLS

CACHE = TOOLS / "kubernetes"
"""What ``.ci/kubernetes`` builds, and images."""
NODE_PACKAGES = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "etcd": "etcd-server",
    "ip": "iproute2",
    "iptables-save": "iptables",
    "conntrack": "conntrack",
    "dnsmasq": "dnsmasq-base",
    "openssl": "openssl",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap",
}
"""Debian's package of each program that the node and its images need."""
NODE_PROGRAMS = (
    "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "pause",
)  # fmt: skip


def client(name: str) -> str:
    """The path of helm or kubectl."""
    path = TOOLS / name
    if not path.exists():
        pytest.fail(f"{name} is missing: run .ci/tools")
    return str(path)


def check_node_can_be_made() -> None:
    """Fail with what is to be installed, unless all of it is there."""
    if os.geteuid() != 0:
        pytest.fail("a node takes root; or give a cluster's KUBECONFIG")
    missing = sorted({package for name, package in NODE_PACKAGES.items() if not shutil.which(name)})
    if missing:
        pytest.fail(f"missing: apt-get install --no-install-recommends {' '.join(missing)}")
    if not all((CACHE / "bin" / name).exists() for name in NODE_PROGRAMS):
        pytest.fail("the node's programs are missing: run .ci/kubernetes")


def node_program(name: str) -> str:
    """The path of a program that ``.ci/kubernetes`` built."""
    return str(CACHE / "bin" / name)
