"""Somebody else's cluster, known by its kubeconfig alone: one made by kind, one in a cloud. Nodes and control plane are left alone."""

import http.client
import json
import shlex
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.e2e.cluster import binaries, images
from tests.e2e.cluster.cluster import Cluster, Named
from tests.e2e.cluster.control_plane import run_kubectl
from tests.e2e.cluster.errors import ClusterError, Unavailable
from tests.e2e.cluster.images import Image
from tests.e2e.cluster.probes import wait_until
from tests.e2e.cluster.processes import ProcessTable

KUBECONFIG = "SAIR_E2E_KUBECONFIG"
"""Names the kubeconfig; `1`: the file that KUBECONFIG names. KUBECONFIG alone is never enough: it may point at what people work with."""
LOAD = "SAIR_E2E_LOAD"
"""Command that brings an image archive onto the nodes, `{}` standing for its path; unset: the images are there or can be pulled."""
_WORKERS = 2


@dataclass(frozen=True, slots=True)
class _ForeignNode:
    name: str


class _Through(http.client.HTTPConnection):
    """A connection to a server that listens on a Unix socket, where nobody but its owner finds it."""

    def __init__(self, path: Path, timeout_s: float | None) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class ForeignCluster(Cluster):
    """A cluster that was there before and stays.

    Args:
        kubeconfig: its current context is the cluster.
        load: command line that imports an image archive, with `{}` for its path; empty: images need no import.
    """

    def __init__(self, kubeconfig: Path, load: str = "") -> None:
        self.kubeconfig = kubeconfig
        self._load = shlex.split(load)
        self.directory = Path(tempfile.mkdtemp(prefix="sair-foreign-"))
        view = ["config", "view", "--raw", "--flatten", "--minify", "--output=json"]
        config = json.loads(run_kubectl(self.kubectl_path, kubeconfig, *view))
        self.url = config["clusters"][0]["cluster"]["server"]
        self.address = urlsplit(self.url).hostname or ""
        self._processes = ProcessTable(self.directory, bound_to_this_process=True)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "ForeignCluster | None":
        """The cluster that the environment names; None if it names none.

        Raises:
            ClusterError: there is no such kubeconfig.
        """
        named = environment.get(KUBECONFIG, "")
        if not named:
            return None
        path = Path(environment.get("KUBECONFIG", "") if named == "1" else named)
        if not path.is_file():
            raise ClusterError(f"{KUBECONFIG}={named}: no kubeconfig {str(path)!r}")
        return cls(path.absolute(), environment.get(LOAD, ""))

    def require_fit(self) -> None:
        """Check that the tests can be run there without harm.

        Raises:
            Unavailable: they cannot; the message says why.
        """
        if len(self.nodes) != _WORKERS:
            names = ", ".join(node.name for node in self.nodes)
            raise Unavailable(f"the tests count on two nodes that take pods; {self.url} has {names or 'none'}")
        if self.kubectl("get", "namespaces", "sair-system", "--ignore-not-found", "--output=name"):
            raise Unavailable(f"SAIR is installed on {self.url} already; the tests install and delete it themselves")
        for node in self._listed():
            if int(node["status"]["allocatable"].get("nvidia.com/gpu", "0")):
                raise Unavailable(
                    f"{node['metadata']['name']} has GPUs; the tests announce some that are on paper only"
                )

    @property
    def nodes(self) -> Sequence[Named]:
        """Nodes that take ordinary pods, by name."""
        taken = {"NoSchedule", "NoExecute"}
        return [
            _ForeignNode(node["metadata"]["name"])
            for node in self._listed()
            if not any(taint["effect"] in taken for taint in node["spec"].get("taints", ()))
        ]

    @property
    def running(self) -> bool:
        """Whether its API server is ready."""
        try:
            return self.kubectl("get", "--raw=/readyz", timeout_s=10) == "ok"
        except ClusterError:
            return False

    @property
    def kubectl_path(self) -> Path:
        """A kubectl of the tests' own version, else whichever is on the PATH."""
        found = binaries.find("kubectl") or shutil.which("kubectl")
        if found is None:
            raise Unavailable("no kubectl")
        return Path(found)

    @property
    def takes_images(self) -> bool:
        """Whether images are brought onto the nodes; otherwise they are there or can be pulled."""
        return bool(self._load)

    def connection(self, *, timeout_s: float | None = 15.0) -> http.client.HTTPConnection:
        """A connection through kubectl, which knows every way to log in that a kubeconfig may name: certificate, token, program."""
        path = self.directory / "proxy.sock"
        if not self._processes.alive("proxy"):
            path.unlink(missing_ok=True)
            proxy: list[str | Path] = [
                self.kubectl_path,
                f"--kubeconfig={self.kubeconfig}",
                "proxy",
                f"--unix-socket={path}",
            ]
            self._processes.start("proxy", proxy)
            wait_until(path.exists, 20.0, lambda: self._processes.tail("proxy"))
        return _Through(path, timeout_s)

    def up(self, **_: object) -> float:
        """It is up."""
        return 0.0

    def down(self) -> None:
        """It stays; the way to it that was opened here is closed."""
        self._processes.stop_all()
        shutil.rmtree(self.directory, ignore_errors=True)

    def load(self, image: Image) -> None:
        """Build an image and bring it onto the nodes, if there is a command for that."""
        if self.takes_images:
            self.import_archive(images.archive(image))

    def import_archive(self, archive: Path) -> None:
        """Bring an image archive onto the nodes, if there is a command for that.

        Raises:
            ClusterError: the command failed.
        """
        if not self.takes_images:
            return
        command = [part.replace("{}", str(archive)) for part in self._load]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"{shlex.join(command)} failed:\n{(done.stdout + done.stderr)[-2000:]}")

    def install_metrics_server(self, *, wait: bool = True) -> None:
        """It has to have one.

        Raises:
            Unavailable: it has none.
        """
        service = "v1beta1.metrics.k8s.io"
        if not self.kubectl("get", "apiservices", service, "--ignore-not-found", "--output=name"):
            raise Unavailable(f"no metrics-server on {self.url}")

    def wait_for_nodes(self, timeout_s: float = 60.0) -> None:
        """Return once every node is Ready."""
        wait = ["wait", "nodes", "--all", "--for=condition=Ready", f"--timeout={timeout_s:g}s"]
        self.kubectl(*wait, timeout_s=timeout_s + 10)

    def stop(self, component: str) -> None:
        """Not here."""
        raise Unavailable(f"{component} of somebody else's cluster is not stopped")

    def start(self, component: str) -> None:
        """Not here."""
        raise Unavailable(f"{component} of somebody else's cluster is not started")

    def crash(self, pod: str) -> None:
        """Its processes are out of reach; to delete the pod has to do."""

    def kill_node(self, number: int) -> None:
        """Not here."""
        raise Unavailable(f"node {number} of somebody else's cluster is not killed")

    def start_node(self, number: int) -> None:
        """Not here."""
        raise Unavailable(f"node {number} of somebody else's cluster is not started")

    def leftovers(self) -> list[str]:
        """Nothing of it is on this machine."""
        return []

    def _listed(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = json.loads(self.kubectl("get", "nodes", "--output=json"))["items"]
        return listed
