"""A Kubernetes cluster whose nodes are trees of namespaces on this machine.

Everything it starts, mounts and connects is found again without any memory of having made it: processes by the process
table and by their network namespaces, mounts because they live in the nodes' own mount namespaces, cgroups and interfaces
by name. `Cluster.down` therefore clears away what a killed harness left behind just as well as a cluster that runs.
"""

import fcntl
import http.client
import os
import shutil
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from tests.e2e.cluster import addons, binaries, cgroups, components, dependencies, images
from tests.e2e.cluster.api import Api, complete
from tests.e2e.cluster.components import PORT
from tests.e2e.cluster.control_plane import run_kubectl
from tests.e2e.cluster.errors import ClusterError
from tests.e2e.cluster.images import Image
from tests.e2e.cluster.mounts import mounts_below, unmount
from tests.e2e.cluster.network import INSTANCES, Fabric
from tests.e2e.cluster.node import Node
from tests.e2e.cluster.ownership import Ownership
from tests.e2e.cluster.probes import answers_200, wait_until
from tests.e2e.cluster.processes import Identity, ProcessTable

NODES = 2
BINARIES = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
    "coredns",
)


class Named(Protocol):
    """A node, as tests know it."""

    @property
    def name(self) -> str:
        """Its name in Kubernetes."""
        ...


class Cluster:
    """One of the few clusters that fit on this machine; each instance has names and addresses of its own."""

    def __init__(self, instance: int | None = None) -> None:
        """Name the cluster; `up` brings it up.

        Its files lie in `SAIR_CLUSTER_DIR`, default below the cache, on a file system that can be an overlay's upper layer.

        Args:
            instance: 0 to 9; default: `SAIR_CLUSTER_INSTANCE`, else 0.
        """
        instance = int(os.environ.get("SAIR_CLUSTER_INSTANCE", "0")) if instance is None else instance
        if instance not in INSTANCES:
            raise ValueError(f"cluster instance {instance} is not between {INSTANCES.start} and {INSTANCES.stop - 1}")
        self.instance = instance
        self._fabric = Fabric(instance)
        self._importing = threading.Lock()
        parent = os.environ.get("SAIR_CLUSTER_DIR")
        self.directory = (Path(parent) if parent else binaries.cache_root()) / f"cluster-{instance}"
        self.kubeconfig = self.directory / "kubeconfig"
        """A cluster administrator's kubeconfig, self-contained."""
        self.address = self._fabric.address(0)
        """Address of the API server, from the host and from every node."""
        self.url = components.server_url(self.address)
        # Not among its files: names and addresses are the machine's, wherever those lie.
        self.ownership = Ownership(Path("/run") / f"sair-cluster-{instance}.owner")
        """Held by the process that brought it up or uses it, for as long as that lives."""

    @property
    def nodes(self) -> Sequence[Named]:
        """Its nodes."""
        return self._nodes

    @property
    def takes_images(self) -> bool:
        """Whether images are built here and imported into its nodes."""
        return True

    @property
    def _nodes(self) -> list[Node]:
        table = self._table()
        return [Node(number, self.directory / f"node{number}", self._fabric, table) for number in range(NODES)]

    def up(self, *, extra_images: Sequence[Image] = (), report: Callable[[str], None] = print) -> float:
        """Bring the cluster up from nothing and return when its nodes and its DNS are Ready.

        Args:
            extra_images: imported into every node besides the cluster's own.
            report: told of each step with the seconds since the beginning.

        Returns:
            The seconds it took, images already built.

        Raises:
            Unavailable: the machine lacks something.
            ClusterError: a process that is alive owns it, or something did not start; then nothing is left of it.
        """
        dependencies.require()
        self.ownership.take()
        programs = binaries.require(BINARIES)
        archives = [images.archive(image) for image in (images.pause(), images.coredns(), *extra_images)]
        with self._locked():
            self._down()
            try:
                return self._up(programs, archives, _Stopwatch(report))
            except BaseException as error:
                if not isinstance(error, KeyboardInterrupt):
                    error.add_note(self._last_words())
                self._down()
                raise

    def down(self) -> None:
        """Remove every trace of the cluster, also of one whose harness was killed; nothing there is fine."""
        with self._locked():
            self._down()
        self.ownership.release()

    @property
    def running(self) -> bool:
        """Whether it is up: its API server answers."""
        admin = components.key_pair(self._pki, "admin")
        authority = components.key_pair(self._pki, "ca").certificate
        return authority.exists() and answers_200(self.address, PORT, "/readyz", authority, admin)

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout_s: float = 60.0) -> str:
        """Run kubectl against this cluster; returns its standard output.

        Raises:
            ClusterError: it failed or took too long.
        """
        return run_kubectl(self.kubectl_path, self.kubeconfig, *arguments, stdin=stdin, timeout_s=timeout_s)

    @property
    def kubectl_path(self) -> Path:
        """The kubectl that matches the server."""
        return binaries.require(["kubectl"])["kubectl"]

    def connection(self, *, timeout_s: float | None = 15.0) -> http.client.HTTPConnection:
        """A connection to the API server, not open yet, with an administrator's rights.

        Args:
            timeout_s: of each read and write; None: no limit.
        """
        admin = components.key_pair(self._pki, "admin")
        context = ssl.create_default_context(cafile=components.key_pair(self._pki, "ca").certificate)
        context.load_cert_chain(admin.certificate, admin.key)
        return http.client.HTTPSConnection(self.address, PORT, context=context, timeout=timeout_s)

    def api(self) -> Api:
        """The API server, asked by an administrator."""
        return Api(self.connection)

    def apply(self, manifests: Sequence[Mapping[str, object]]) -> None:
        """Apply manifests, server-side.

        Raises:
            ClusterError: the API server is away, or refuses one.
        """
        with self.api() as api:
            for manifest in manifests:
                api.apply(manifest)

    def wait_for(self, kind: str, namespace: str, name: str, timeout_s: float = 60.0) -> None:
        """Return once a Deployment, StatefulSet or DaemonSet is complete.

        Raises:
            ClusterError: it is not in time; the notes say what the namespace looks like.
        """
        path = f"/apis/apps/v1/namespaces/{namespace}/{kind.lower()}s/{name}"

        def is_complete() -> bool:
            # Right after an outage, the API server may not answer yet.
            with suppress(ClusterError):
                return complete(api.get(path))
            return False

        with self.api() as api:
            try:
                wait_until(is_complete, timeout_s, lambda: f"{kind} {namespace}/{name}")
            except ClusterError as error:
                error.add_note(self.kubectl("get", "pods,events", f"--namespace={namespace}", "--output=wide"))
                raise

    def load(self, image: Image) -> None:
        """Build an image when it is not in the cache, and import it into every node."""
        self.import_archive(images.archive(image))

    def import_archive(self, archive: Path) -> None:
        """Import an image archive into every node."""
        self._import([archive])

    def install_metrics_server(self, *, wait: bool = True) -> None:
        """Bring metrics-server up beside the cluster's own add-ons; without `wait` return before it is ready."""
        binaries.require(["metrics-server"])
        image = images.metrics_server()
        self.load(image)
        self.apply(addons.metrics(image.tag))
        if wait:
            self.wait_for("Deployment", "kube-system", "metrics-server")

    def stop(self, component: str) -> None:
        """Kill `etcd`, `kube-apiserver`, `kube-controller-manager` or `kube-scheduler`, until `start` brings it back."""
        self._table().stop(component)

    def start(self, component: str) -> None:
        """Start a component that `stop` killed, and wait until the API server is ready."""
        self._table().start(component, self._command(component, binaries.require(BINARIES)))
        wait_until(lambda: self.running, 60.0, lambda: self._table().tail(component))

    def crash(self, pod: str) -> None:
        """Kill every process of the pod of that uid, without a warning to it or to Kubernetes."""
        cgroups.kill(self._fabric.prefix, pod)

    def kill_node(self, number: int) -> None:
        """Take a node away as a power cut does."""
        self._nodes[number].kill()

    def start_node(self, number: int) -> None:
        """Bring a killed node back, with its images."""
        programs = binaries.require(BINARIES)
        self._nodes[number].start(programs["kubelet"], programs["kube-proxy"])

    def wait_for_nodes(self, timeout_s: float = 60.0) -> None:
        """Return once every node is Ready.

        Raises:
            ClusterError: one is not in time; the message ends with its kubelet's last words.
        """

        def ready() -> bool:
            conditions = [each["status"].get("conditions", ()) for each in api.get("/api/v1/nodes")["items"]]
            states = [each["status"] for found in conditions for each in found if each["type"] == "Ready"]
            return states == ["True"] * NODES

        with self.api() as api:
            wait_until(
                ready, timeout_s, lambda: "\n".join(f"{node.name}: {node.tail('kubelet')}" for node in self._nodes)
            )

    def leftovers(self) -> list[str]:
        """Every trace of a cluster on this machine, in words: processes, namespaces, interfaces, cgroups, mounts, files."""
        mounts = [f"mount {point}" for point in mounts_below(self.directory)]
        processes = [f"process {process.name} ({process.pid})" for process in self._recorded()]
        processes += [f"process {pid}" for pid in self._fabric.processes()]
        files = [f"directory {self.directory}"] if self.directory.exists() else []
        return [*processes, *self._fabric.leftovers(), *cgroups.leftovers(self._fabric.prefix), *mounts, *files]

    def log(self, component: str) -> Path:
        """Output of one component of the control plane."""
        return self._table().log(component)

    def _up(self, programs: Mapping[str, Path], archives: Sequence[Path], watch: "_Stopwatch") -> float:
        self.directory.mkdir(parents=True, mode=0o700)
        self._fabric.create(NODES)
        authority = components.issue_credentials(self._pki, self.address, self.kubeconfig)
        table = self._table()
        table.start("etcd", self._command("etcd", programs))
        table.start("kube-apiserver", self._command("kube-apiserver", programs))
        for node in self._nodes:
            node.prepare(authority, self.url)
            node.start(programs["kubelet"], programs["kube-proxy"])
        watch("processes started")
        self._import(archives)
        watch("images imported")
        wait_until(lambda: self.running, 60.0, lambda: table.tail("kube-apiserver"))
        watch("API server ready")
        # Before RBAC is there, controller manager and scheduler would give up.
        for component in ("kube-controller-manager", "kube-scheduler"):
            table.start(component, self._command(component, programs))
        # Its own namespaces it makes once it is ready.
        wait_until(lambda: self._has("/api/v1/namespaces/kube-system"), 20.0, lambda: table.tail("kube-apiserver"))
        self.apply(addons.dns(images.coredns().tag))
        self.wait_for_nodes()
        watch("nodes Ready")
        self.wait_for("Deployment", "kube-system", "coredns")
        return watch("DNS ready")

    def _has(self, path: str) -> bool:
        with suppress(ClusterError), self.api() as api:
            api.get(path)
            return True
        return False

    def _import(self, archives: Sequence[Path]) -> None:
        def into(node: Node) -> None:
            node.wait_for_containerd()
            for archive in archives:
                node.import_image(archive)
            node.images_imported()

        with self._importing, ThreadPoolExecutor(max_workers=NODES) as pool:
            list(pool.map(into, self._nodes))

    def _down(self) -> None:
        # All at once: the kernel takes seconds to end a node's containers and undo their mounts.
        with ThreadPoolExecutor() as pool:
            list(pool.map(Identity.kill, self._recorded()))
        # What was started but not yet written down when the harness was killed. Killing a node's root ends its tree.
        deadline = time.monotonic() + 10
        while pids := self._fabric.processes():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise ClusterError(f"processes {pids} outlive SIGKILL")
            time.sleep(0.01)
        for number in range(NODES):
            cgroups.remove(f"{self._fabric.prefix}node{number}")
        self._fabric.remove()
        unmount(mounts_below(self.directory))
        self._remove_files()

    def _remove_files(self) -> None:
        """Remove the directory; the nodes' images are tens of thousands of files, so all nodes' at the same time."""
        if not self.directory.exists():
            return
        removals = [subprocess.Popen(["rm", "-rf", "--one-file-system", path]) for path in self.directory.glob("node*")]
        for removal in removals:
            removal.wait()
        shutil.rmtree(self.directory)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        with self.directory.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _recorded(self) -> list[Identity]:
        return self._table().running() if (self.directory / "processes.json").exists() else []

    @property
    def _pki(self) -> Path:
        return self.directory / "pki"

    def _command(self, component: str, programs: Mapping[str, Path]) -> list[str | Path]:
        return [*self._fabric.enter(0), programs[component], *components.flags(component, self.directory, self.address)]

    def _table(self) -> ProcessTable:
        return ProcessTable(self.directory, bound_to_this_process=False)

    def _last_words(self) -> str:
        said = [f"{name}:\n{self._table().tail(name, 8)}" for name in ("etcd", "kube-apiserver", "node0", "node1")]
        said += [
            f"{node.name} {daemon}:\n{node.tail(daemon, 8)}"
            for node in self._nodes
            for daemon in ("containerd", "kubelet")
        ]
        return "\n\n".join(said)


def sweep(report: Callable[[str], None] = print) -> None:
    """Remove every trace of every cluster on this machine that no live process owns, one that was kept included, and of killed builds.

    Args:
        report: told of each cluster that is removed or left.
    """
    for cluster in map(Cluster, INSTANCES):
        if not cluster.leftovers():
            continue
        try:
            cluster.ownership.take()
        except ClusterError as reason:
            report(f"{reason}; left alone")
            continue
        cluster.down()
        report(f"{cluster.directory.name} removed")
    images.sweep()
    binaries.sweep()


class _Stopwatch:
    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report
        self._begin = time.monotonic()

    def __call__(self, step: str) -> float:
        passed_s = time.monotonic() - self._begin
        self._report(f"{passed_s:6.1f} s  {step}")
        return passed_s
