"""What is the smallest real Kubernetes? One machine's control plane, kubelet, Services and names.

All of it speaks on an address of the loopback. Pods have a link each to the machine (the plugin
``ptp``) and reach one another, Services and the API through its routes; the world outside they do
not reach. dnsmasq answers for the names of Services. Network policies are stored, not enforced.
"""

import json
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.kubernetes.cluster import Cluster
from tests.kubernetes.images import build_pause, give
from tests.kubernetes.needs import CACHE, check_node_can_be_made, node_program
from tests.kubernetes.processes import done, running, wait_until
from tests.kubernetes.traces import removed_afterwards

NAME = "fedreid-node"
_ADDRESS = "10.213.0.1"
_PODS = "10.213.1.0/24"
_SERVICES = "10.213.2.0/24"
_API = f"https://{_ADDRESS}:16443"
_STORE = "http://127.0.0.1:12379"
_TOKEN = "of-a-node-that-lives-for-one-test"
_START_S = 180.0
_NAMES_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node that is ready."""

    cluster: Cluster
    state: Path
    """Folder of what the node keeps; it ends with the node."""

    def take_image(self, name: str) -> None:
        """Give it an image that was built here; those of earlier nodes are still there."""
        listed = done([*_ctr(self.state), "images", "list", "--quiet"]).split()
        if name not in listed:
            for other in listed:
                if other.rpartition(":")[0] == name.rpartition(":")[0]:
                    done([*_ctr(self.state), "images", "delete", "--sync", other])
            give(name, [*_ctr(self.state), "images", "import", "-"])

    def versions(self) -> dict[str, str]:
        """What runs here, by name."""
        return {
            "Kubernetes": done([node_program("kubelet"), "--version"]).split()[-1],
            "containerd": done(["containerd", "--version"]).split()[2],
            "runc": done(["runc", "--version"]).splitlines()[0].split()[-1],
            "etcd": done(["etcd", "--version"]).splitlines()[0].split()[-1],
        }


@contextmanager
def one_machine_node(state: Path) -> Iterator[Node]:
    """A node whose files lie in ``state``, which must be on a real disk."""
    check_node_can_be_made()
    pause = build_pause()
    with ExitStack() as stack:
        stack.enter_context(removed_afterwards(state))
        state.mkdir(parents=True)
        done(["ip", "address", "add", f"{_ADDRESS}/32", "dev", "lo"])
        stack.callback(done, ["ip", "address", "delete", f"{_ADDRESS}/32", "dev", "lo"])
        _write_settings(state)
        _start_containerd(stack, state, pause)
        node = Node(cluster=Cluster(state / "kubeconfig"), state=state)
        node.take_image(pause)
        _start_control_plane(stack, state, node.cluster)
        _start_node(stack, node)
        yield node


def _ctr(state: Path) -> list[str]:
    return ["ctr", "--address", str(_socket(state)), "--namespace", "k8s.io"]


def _socket(state: Path) -> Path:
    return state / "containerd.sock"


def _write_settings(state: Path) -> None:
    done(["openssl", "genrsa", "-out", str(state / "accounts.key"), "2048"])
    (state / "tokens.csv").write_text(f"{_TOKEN},test,test,system:masters\n")
    (state / "tokens.csv").chmod(0o600)
    (state / "names").mkdir()
    user = {"name": "test", "user": {"token": _TOKEN}}
    # The API makes its certificate when it starts first; the folder is ours, so it is trusted.
    at = {"server": _API, "certificate-authority": str(state / "certificates/apiserver.crt")}
    context = {"name": "node", "context": {"cluster": "node", "user": "test"}}
    _write(
        state / "kubeconfig",
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "node", "cluster": at}],
            "users": [user],
            "contexts": [context],
            "current-context": "node",
        },
    )
    addresses = {"type": "host-local", "subnet": _PODS, "dataDir": str(state / "addresses")}
    addresses["routes"] = [{"dst": "0.0.0.0/0"}]  # type: ignore[assignment]  # JSON of mixed types
    plugins = [{"type": "ptp", "ipMasq": False, "ipam": addresses}]
    _write(
        state / "network/10-fedreid.conflist",
        {"cniVersion": "0.4.0", "name": "fedreid", "plugins": plugins},
    )
    _write(
        state / "kubelet.yaml",
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "cgroupDriver": "cgroupfs",
            "enforceNodeAllocatable": [],
            "failSwapOn": False,
            "address": _ADDRESS,
            "healthzBindAddress": "127.0.0.1",
            # Who reaches the loopback here is root already.
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "clusterDNS": [_ADDRESS],
            "clusterDomain": "cluster.local",
            # A disk that is full for others is no reason to evict.
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
        },
    )


def _write(path: Path, content: object) -> None:
    """Write JSON, which is YAML too."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1))


def _start(stack: ExitStack, state: Path, command: Sequence[str]) -> subprocess.Popen[bytes]:
    name = Path(command[0]).name
    return stack.enter_context(running(command, state / f"{name}.log"))


def _start_containerd(stack: ExitStack, state: Path, pause: str) -> None:
    (state / "containerd.toml").write_text(f"""\
version = 2
root = "{CACHE}/containerd"
state = "{state}/containerd-state"
[grpc]
  address = "{_socket(state)}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{state}/network"
""")
    _start(stack, state, ["containerd", "--config", str(state / "containerd.toml")])
    # Containers outlive containerd, so those that are left are ended while it still answers.
    stack.callback(_end_containers, state)
    wait_until("containerd answers", lambda: _succeeds([*_ctr(state), "version"]), 60)


def _end_containers(state: Path) -> None:
    for kind in ("tasks", "containers"):
        for name in done([*_ctr(state), kind, "list", "--quiet"]).split():
            done([*_ctr(state), kind, "delete", *(["--force"] if kind == "tasks" else []), name])


def _succeeds(command: Sequence[str]) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


def _start_control_plane(stack: ExitStack, state: Path, cluster: Cluster) -> None:
    _start(stack, state, [
        "etcd", "--data-dir", str(state / "etcd"), "--listen-client-urls", _STORE,
        "--advertise-client-urls", _STORE, "--listen-peer-urls", "http://127.0.0.1:12380",
    ])  # fmt: skip
    _start(stack, state, [
        node_program("kube-apiserver"), f"--etcd-servers={_STORE}", f"--bind-address={_ADDRESS}",
        f"--advertise-address={_ADDRESS}", "--secure-port=16443",
        f"--cert-dir={state}/certificates", f"--service-cluster-ip-range={_SERVICES}",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={state}/accounts.key",
        f"--service-account-signing-key-file={state}/accounts.key",
        f"--token-auth-file={state}/tokens.csv", "--authorization-mode=Node,RBAC",
        "--kubelet-preferred-address-types=InternalIP",
    ])  # fmt: skip
    wait_until("the API is ready", lambda: cluster.answers("get", "--raw", "/readyz"), _START_S)
    common = [f"--kubeconfig={state}/kubeconfig", "--leader-elect=false", "--port=0",
              f"--bind-address={_ADDRESS}"]  # fmt: skip
    _start(stack, state, [
        node_program("kube-controller-manager"), *common, "--secure-port=16257",
        f"--cert-dir={state}/certificates-of-controllers", "--use-service-account-credentials",
        f"--service-account-private-key-file={state}/accounts.key",
        f"--root-ca-file={state}/certificates/apiserver.crt",
    ])  # fmt: skip
    _start(stack, state, [
        node_program("kube-scheduler"), *common, "--secure-port=16259",
        f"--cert-dir={state}/certificates-of-scheduler",
    ])  # fmt: skip


def _start_node(stack: ExitStack, node: Node) -> None:
    state = node.state
    kubeconfig = f"--kubeconfig={state}/kubeconfig"
    _start(stack, state, [
        node_program("kube-proxy"), kubeconfig, f"--hostname-override={NAME}",
        f"--cluster-cidr={_PODS}", "--proxy-mode=iptables", f"--bind-address={_ADDRESS}",
        "--healthz-bind-address=127.0.0.1:10256", "--nodeport-addresses=127.0.0.0/8",
        # The kernel's table of connections stays as the machine has it.
        "--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0s",
        "--conntrack-tcp-timeout-close-wait=0s",
    ])  # fmt: skip
    _start(stack, state, [
        "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-hosts", "--no-resolv",
        "--user=root", "--pid-file=", "--log-facility=-", f"--listen-address={_ADDRESS}",
        "--bind-interfaces", "--local=/cluster.local/", f"--hostsdir={state}/names",
    ])  # fmt: skip
    stack.enter_context(_names_kept(node))
    _start(stack, state, [
        node_program("kubelet"), kubeconfig, f"--config={state}/kubelet.yaml",
        f"--root-dir={state}/kubelet", f"--hostname-override={NAME}", f"--node-ip={_ADDRESS}",
        "--container-runtime=remote", f"--container-runtime-endpoint=unix://{_socket(state)}",
    ])  # fmt: skip
    # While the kubelet runs, pods that are deleted take their mounts and links with them.
    stack.callback(node.cluster.delete_all_pods)
    wait_until("the node is ready", lambda: _is_ready(node.cluster), _START_S)


def _is_ready(cluster: Cluster) -> bool:
    nodes = cluster.items("nodes")
    return any(
        condition["type"] == "Ready" and condition["status"] == "True"
        for node in nodes
        for condition in node["status"].get("conditions", [])
    ) and cluster.answers("--namespace=default", "get", "serviceaccount", "default")


@contextmanager
def _names_kept(node: Node) -> Iterator[None]:
    """Tell dnsmasq of each Service while the block runs, as a cluster's DNS would find it out."""
    ended = threading.Event()
    thread = threading.Thread(target=_keep_names, args=(node, ended))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _keep_names(node: Node, ended: threading.Event) -> None:
    known = ""
    while not ended.wait(_NAMES_S):
        lines = [
            f"{each['spec']['clusterIP']} {each['metadata']['name']}."
            f"{each['metadata']['namespace']}.svc.cluster.local\n"
            for each in node.cluster.items("services", "--all-namespaces")
            if each["spec"]["clusterIP"] != "None"
        ]
        if (text := "".join(sorted(lines))) != known:
            (node.state / "names/services").write_text(text)
            known = text
