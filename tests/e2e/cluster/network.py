"""A cluster's network: a bridge in a network namespace of its own, and one cable from it to every node and to the host.

Nothing of it is connected to the machine's own network: traffic stays inside these namespaces. The host's end of the
fabric lets tests reach the API server and the pods.
"""

import contextlib
import fcntl
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.cluster.errors import ClusterError

SERVICE_NETWORK = "10.96.0.0/16"
"""The addresses of all Services."""

SERVICE_ADDRESS = "10.96.0.1"
"""The API server's address as a Service."""

INSTANCES = range(10)
"""How many clusters fit on one machine side by side."""

_NAMESPACES = Path("/run/netns")
_MOUNTS = Path("/proc/self/mountinfo")
_BRIDGE = "bridge"


@dataclass(frozen=True, slots=True)
class Fabric:
    """The network of one cluster.

    Attributes:
        instance: which of the machine's clusters it belongs to; its names and its addresses follow from it.
    """

    instance: int

    @property
    def prefix(self) -> str:
        """What the name of everything that belongs to the cluster begins with."""
        return f"sair{self.instance}-"

    @property
    def pod_network(self) -> str:
        """The addresses of all pods."""
        return f"10.{240 + self.instance}.0.0/16"

    def pod_subnet(self, node: int) -> str:
        """The addresses of one node's pods."""
        return f"10.{240 + self.instance}.{node}.0/24"

    def address(self, node: int) -> str:
        """A node's address."""
        return f"10.77.{self.instance}.{10 + node}"

    def enter(self, node: int) -> Sequence[str]:
        """Command prefix that runs a program in a node's network namespace.

        Not `ip netns exec`, which remounts /sys and so hides the cgroups.
        """
        return ("nsenter", f"--net={_NAMESPACES / self._node(node)}")

    def create(self, nodes: int) -> None:
        """Lay the fabric and connect the host and `nodes` nodes to it.

        Raises:
            ClusterError: one of the commands failed, most likely because the machine already uses one of the addresses.
        """
        with _locked():
            _ip("netns", "add", self._fabric)
        _ip("link", "add", _BRIDGE, "type", "bridge", "stp_state", "0", namespace=self._fabric)
        _ip("link", "set", _BRIDGE, "up", namespace=self._fabric)
        _ip("link", "add", self._host_link, "type", "veth", "peer", "name", "host", "netns", self._fabric)
        self._plug("host")
        _ip("address", "add", f"{self._host_address}/24", "dev", self._host_link)
        _ip("link", "set", self._host_link, "up")
        for node in range(nodes):
            self._connect(node, nodes)
            _ip("route", "add", self.pod_subnet(node), "via", self.address(node))

    def remove(self) -> None:
        """Remove every namespace and interface, and with them the routes; what is not there is fine."""
        for namespace in self._existing():
            _ip("netns", "delete", namespace)
        # The peer dies with its namespace, but only some time later.
        with contextlib.suppress(ClusterError):
            _ip("link", "delete", self._host_link)
        _forget_directory()

    def processes(self) -> list[int]:
        """Pids of every process that lives in one of the network namespaces."""
        return [int(pid) for namespace in self._existing() for pid in _ip("netns", "pids", namespace).split()]

    def leftovers(self) -> list[str]:
        """Namespaces and interfaces that exist now, in words."""
        link = Path("/sys/class/net") / self._host_link
        return [f"network namespace {name}" for name in self._existing()] + [f"interface {link.name}"] * link.exists()

    @property
    def _fabric(self) -> str:
        return f"{self.prefix}fabric"

    @property
    def _host_link(self) -> str:
        return f"{self.prefix}host"

    @property
    def _host_address(self) -> str:
        return f"10.77.{self.instance}.1"

    def _node(self, node: int) -> str:
        return f"{self.prefix}node{node}"

    def _existing(self) -> list[str]:
        return sorted(path.name for path in _NAMESPACES.glob(f"{self.prefix}*"))

    def _connect(self, node: int, nodes: int) -> None:
        name = self._node(node)
        _ip("netns", "add", name)
        _ip("link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", name, "netns", self._fabric)
        self._plug(name)
        _ip("link", "set", "lo", "up", namespace=name)
        _ip("address", "add", f"{self.address(node)}/24", "dev", "eth0", namespace=name)
        _ip("link", "set", "eth0", "up", namespace=name)
        # What a process of the node itself sends to a Service is routed before kube-proxy's rules rewrite it, so there
        # must be some route. The host forwards nothing.
        _ip("route", "add", "default", "via", self._host_address, namespace=name)
        for other in range(nodes):
            if other != node:
                _ip("route", "add", self.pod_subnet(other), "via", self.address(other), namespace=name)
        _run(*self.enter(node), "sysctl", "--quiet", "--write", "net.ipv4.ip_forward=1")
        # Until kube-proxy has rewritten a Service's address, a connection to it fails at once and is tried again. Lost
        # on the way out, it would keep its place in connection tracking, unrewritten, until the client's timeout: 30 s.
        for chain in ("FORWARD", "OUTPUT"):
            _run(*self.enter(node), "iptables", "--append", chain, "--destination", SERVICE_NETWORK, "--jump", "REJECT")

    def _plug(self, link: str) -> None:
        _ip("link", "set", link, "master", _BRIDGE, "up", namespace=self._fabric)


def _forget_directory() -> None:
    """Undo what the first named namespace of the machine makes: a directory that is mounted on itself."""
    with _locked():
        if _NAMESPACES.is_dir() and not any(_NAMESPACES.iterdir()):
            # A directory mounted on itself does not look like a mount point to os.path.ismount.
            while any(line.split()[4] == str(_NAMESPACES) for line in _MOUNTS.read_text().splitlines()):
                _run("umount", str(_NAMESPACES))
            _NAMESPACES.rmdir()


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    # Between clusters of several instances and checkouts: the directory is made in two steps.
    descriptor = os.open(_NAMESPACES.parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _ip(*arguments: str, namespace: str | None = None) -> str:
    return _run("ip", *(("-n", namespace) if namespace else ()), *arguments)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
