"""One node: kubelet, containerd and kube-proxy in a tree of namespaces whose root is one process."""

import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.cluster import cgroups
from tests.e2e.cluster.certificates import Authority, write_kubeconfig
from tests.e2e.cluster.errors import ClusterError
from tests.e2e.cluster.network import Fabric
from tests.e2e.cluster.processes import ProcessTable, bound

CLUSTER_DNS = "10.96.0.10"
PAUSE_IMAGE = "sair.test/pause:1"
_SCRIPT = Path(__file__).with_name("node.sh")
# Debian's containernetworking-plugins.
_CNI_PLUGINS = "/usr/lib/cni"


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is or can be started.

    Attributes:
        number: its place in the cluster; node 0's network namespace also holds the control plane.
        directory: its files, removed with the cluster's.
        fabric: the network it is connected to.
        table: the cluster's processes.
    """

    number: int
    directory: Path
    fabric: Fabric
    table: ProcessTable

    @property
    def name(self) -> str:
        """Its name in Kubernetes."""
        return f"node{self.number}"

    @property
    def address(self) -> str:
        """Its address on the fabric."""
        return self.fabric.address(self.number)

    @property
    def cgroup(self) -> str:
        """Its cgroup, the same path under every hierarchy."""
        return f"{self.fabric.prefix}{self.name}"

    @property
    def socket(self) -> Path:
        """containerd's socket."""
        return self.directory / "containerd.sock"

    @property
    def alive(self) -> bool:
        """Whether its process tree runs."""
        return self.table.alive(self.name)

    def prepare(self, authority: Authority, server: str) -> None:
        """Write its certificates and the configuration of its daemons."""
        self.directory.mkdir(parents=True, exist_ok=True)
        kubelet = authority.issue(
            f"kubelet-{self.name}",
            f"system:node:{self.name}",
            organizations=["system:nodes"],
            hosts=[self.name, self.address],
        )
        proxy = authority.issue(f"kube-proxy-{self.name}", "system:kube-proxy")
        for daemon, client in (("kubelet", kubelet), ("kube-proxy", proxy)):
            path = self.directory / f"{daemon}.kubeconfig"
            write_kubeconfig(path, server=server, authority=authority.certificate, client=client)
        configurations = {
            "kubelet.json": self._kubelet(authority.certificate, kubelet.certificate, kubelet.key),
            "kube-proxy.json": self._kube_proxy(),
            "cni/10-sair.conflist": self._cni(),
        }
        for name, configuration in configurations.items():
            path = self.directory / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(json.dumps(configuration, indent=1))
        (self.directory / "containerd.toml").write_text(self._containerd())

    def start(self, kubelet: Path, kube_proxy: Path) -> None:
        """Start containerd; kubelet and kube-proxy follow once `images_imported` was called.

        After `kill` it comes back as the same node, its containers gone and its images still there.
        """
        cgroups.create(self.cgroup)
        self.socket.unlink(missing_ok=True)
        namespaces = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--mount-proc", "--kill-child=SIGKILL"]
        script: list[str | Path] = ["/bin/sh", _SCRIPT, self.name, self.directory, kubelet, kube_proxy, self.address]
        self.table.start(self.name, [*self.fabric.enter(self.number), *namespaces, *script])

    def import_image(self, archive: Path) -> None:
        """Load an image archive into its containerd, unless that was done before.

        Raises:
            ClusterError: containerd refused it.
        """
        state = archive.stat()
        # An archive that was built anew has another time, and its tag may have moved on in between.
        done_before = self.directory / "imported" / f"{archive.name}-{state.st_size}-{state.st_mtime_ns}"
        if done_before.exists():
            return
        command = bound(["ctr", f"--address={self.socket}", "--namespace=k8s.io", "images", "import", archive])
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"{self.name}: importing {archive.name}: {done.stderr.strip()}")
        done_before.parent.mkdir(exist_ok=True)
        done_before.touch()

    def wait_for_containerd(self, timeout_s: float = 20.0) -> None:
        """Return once containerd answers.

        Raises:
            ClusterError: it does not in time; the message ends with its last words.
        """
        command = bound(["ctr", f"--address={self.socket}", "--connect-timeout=1s", "version"])
        deadline = time.monotonic() + timeout_s
        while subprocess.run(command, capture_output=True, check=False).returncode:
            if time.monotonic() > deadline or not self.alive:
                raise ClusterError(f"{self.name}: containerd does not answer; {self.tail('containerd')}")
            time.sleep(0.05)

    def images_imported(self) -> None:
        """Let kubelet start."""
        (self.directory / "images-imported").touch()

    def kill(self) -> None:
        """End the node at once, as a power cut does: its daemons, its containers and their mounts."""
        self.table.stop(self.name)
        cgroups.remove(self.cgroup)

    def tail(self, daemon: str, lines: int = 15) -> str:
        """The last lines of what one of its daemons said."""
        log = self.directory / "logs" / f"{daemon}.log"
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else "(no output)"

    def _kubelet(self, authority: Path, certificate: Path, key: Path) -> dict[str, object]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(authority)},
            },
            "authorization": {"mode": "Webhook"},
            "tlsCertFile": str(certificate),
            "tlsPrivateKeyFile": str(key),
            "containerRuntimeEndpoint": f"unix://{self.socket}",
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.cgroup}",
            "enforceNodeAllocatable": ["pods"],
            # Test machines still mount cgroup version 1.
            "failCgroupV1": False,
            "failSwapOn": False,
            # Lowering it needs a capability that a root inside a container or a small virtual machine lacks.
            "oomScoreAdj": 0,
            # The disk is the developer's own; evicting pods because it is nearly full would only confuse.
            "evictionHard": {"memory.available": "2%", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            "resolvConf": "",
            "clusterDNS": [CLUSTER_DNS],
            "clusterDomain": "cluster.local",
            "maxPods": 200,
            "registryPullQPS": 0,
            "serializeImagePulls": False,
            # The loss of a node is noticed in seconds: see the controller manager's grace period.
            "nodeLeaseDurationSeconds": 4,
            "nodeStatusUpdateFrequency": "2s",
            "kubeAPIQPS": 100,
            "kubeAPIBurst": 200,
            "eventRecordQPS": 0,
        }

    def _kube_proxy(self) -> dict[str, object]:
        return {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": str(self.directory / "kube-proxy.kubeconfig")},
            "clusterCIDR": self.fabric.pod_network,
            "hostnameOverride": self.name,
            "mode": "iptables",
            # Connection tracking limits belong to the machine, not to a network namespace.
            "conntrack": {"maxPerCore": 0, "min": 0},
            "oomScoreAdj": 0,
            "iptables": {"minSyncPeriod": "100ms"},
        }

    def _cni(self) -> dict[str, object]:
        # ptp rather than bridge: every packet of a pod crosses the node's IP layer, so that Services work between pods
        # of one node without the machine's bridge netfilter module.
        pods: dict[str, object] = {
            "type": "ptp",
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": self.fabric.pod_subnet(self.number)}]],
                "routes": [{"dst": "0.0.0.0/0"}],
                # Leases of the pods of a killed node are void when it comes back.
                "dataDir": "/run/cni-addresses",
            },
        }
        ports = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
        return {"cniVersion": "0.4.0", "name": "sair", "plugins": [pods, ports]}

    def _containerd(self) -> str:
        cri = 'plugins."io.containerd.grpc.v1.cri"'
        return f"""version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.tracing.processor.v1.otlp"]

[grpc]
  address = "{self.socket}"

[{cri}]
  sandbox_image = "{PAUSE_IMAGE}"
  # Root without CAP_SYS_RESOURCE cannot lower a score; without this no sandbox starts.
  restrict_oom_score_adj = true

[{cri}.cni]
  bin_dir = "{_CNI_PLUGINS}"
  conf_dir = "{self.directory / "cni"}"

[{cri}.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

[{cri}.containerd.runtimes.runc.options]
  SystemdCgroup = false
"""
