"""etcd and kube-apiserver on loopback: a real Kubernetes API in a few seconds, without root and without nodes."""

import json
import os
import random
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.e2e.cluster import binaries
from tests.e2e.cluster.certificates import Authority, KeyPair, write_kubeconfig, write_signing_key
from tests.e2e.cluster.errors import ClusterError, Unavailable
from tests.e2e.cluster.network import SERVICE_ADDRESS, SERVICE_NETWORK
from tests.e2e.cluster.probes import answers_200, wait_until
from tests.e2e.cluster.processes import Identity, ProcessTable, bound

_LOOPBACK = "127.0.0.1"
# Below the range that Linux takes for outgoing connections, so that a stopped server finds its port free again.
_PORTS = range(20_000, 32_000)
_PREFIX = "sair-control-plane-"
_OWNED = ("pki", "etcd", "logs", "run", "processes.json", "owner.json", "kubeconfig")


class ControlPlane:
    """One API server with an etcd of its own.

    Nothing is scheduled and no pod runs: tests create Node objects and bind or patch pods themselves. The ServiceAccount
    admission plugin is off, because the controller that makes the default account may not run.
    """

    def __init__(self, directory: Path, *, bound_to_this_process: bool = True) -> None:
        """Prepare a control plane; `start` starts it.

        Args:
            directory: where its files lie. What a dead predecessor left there is stopped and removed.
            bound_to_this_process: it dies with this process, also at SIGKILL.

        Raises:
            ClusterError: another live process runs a control plane in that directory.
            Unavailable: a binary is missing.
        """
        self.directory = directory
        self._binaries = binaries.require(binaries.CONTROL_PLANE)
        _discard(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._table = ProcessTable(directory, bound_to_this_process=bound_to_this_process)
        if bound_to_this_process:
            _write_identity(directory / "owner.json", Identity.of("owner", os.getpid()))
        self._etcd_port, self._port, self._controllers_port, self._scheduler_port = _free_ports(4)
        self.url = f"https://{_LOOPBACK}:{self._port}"
        """Address of the API server; the same one over every stop and start."""
        self._issue_certificates()
        self.kubeconfig = self._write_kubeconfig("kubeconfig", self._admin)
        """A cluster administrator's kubeconfig, self-contained."""

    def start(self, *, timeout_s: float = 60.0) -> None:
        """Start what does not run yet and wait until the API server is ready.

        Raises:
            ClusterError: it is not ready in time; the message ends with its last words.
        """
        if not self._table.alive("etcd"):
            self._table.start("etcd", self._etcd_command())
            wait_until(self._etcd_answers, timeout_s, lambda: f"etcd: {self._table.tail('etcd')}")
        if not self._table.alive("kube-apiserver"):
            self._table.start("kube-apiserver", self._apiserver_command())
        wait_until(self.ready, timeout_s, lambda: f"kube-apiserver: {self._table.tail('kube-apiserver')}")

    def stop(self) -> None:
        """Kill the API server and nothing else: to its clients, an outage. `start` ends it; all objects are still there."""
        self._table.stop("kube-apiserver")

    def start_controllers(self, controllers: Iterable[str] = ("*",)) -> None:
        """Start kube-controller-manager, so that Deployments make pods and owners' deletions cascade.

        Args:
            controllers: names of the controllers to run, as its `--controllers` flag takes them.
        """
        program = binaries.require(["kube-controller-manager"])["kube-controller-manager"]
        config = self.component_kubeconfig("kube-controller-manager")
        command: list[str | Path] = [program, f"--kubeconfig={config}", f"--controllers={','.join(controllers)}"]
        command += [f"--service-account-private-key-file={self._signing.key}", f"--root-ca-file={self.authority}"]
        command += ["--use-service-account-credentials=true", "--leader-elect=false", f"--bind-address={_LOOPBACK}"]
        command += [f"--secure-port={self._controllers_port}", "--kube-api-qps=200", "--kube-api-burst=400"]
        self._table.start("kube-controller-manager", command)

    def start_scheduler(self, *, config: Path | None = None, name: str = "kube-scheduler") -> Identity:
        """Start a kube-scheduler.

        Args:
            config: a KubeSchedulerConfiguration; None: the default profile, without leader election.
            name: name in the process table, for a second scheduler beside the first.
        """
        program = binaries.require(["kube-scheduler"])["kube-scheduler"]
        command: list[str | Path] = [program, f"--bind-address={_LOOPBACK}"]
        if config is not None:
            command += [f"--config={config}", "--secure-port=0"]
        else:
            command += [f"--kubeconfig={self.component_kubeconfig('kube-scheduler')}", "--leader-elect=false"]
            command += [f"--secure-port={self._scheduler_port}"]
        return self._table.start(name, command)

    def stop_process(self, name: str) -> None:
        """Kill one process of the control plane by name, as `logs/<name>.log` has it."""
        self._table.stop(name)

    def close(self) -> None:
        """Kill everything and remove every file."""
        self._table.stop_all()
        _remove(self.directory)

    def ready(self) -> bool:
        """Whether the API server serves, all of its start-up hooks done."""
        return answers_200(_LOOPBACK, self._port, "/readyz", self.authority, self._admin)

    @property
    def authority(self) -> Path:
        """PEM file of the cluster's certificate authority."""
        return self._trust.certificate

    @property
    def kubectl(self) -> Path:
        """The kubectl that matches the server."""
        return self._binaries["kubectl"]

    def run_kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl against this cluster; returns its standard output.

        Raises:
            ClusterError: it failed; the message is its standard error.
        """
        return run_kubectl(self.kubectl, self.kubeconfig, *arguments, stdin=stdin)

    def client_kubeconfig(self, user: str, *groups: str) -> Path:
        """A kubeconfig for a user of that name in those groups, who has only the rights that RBAC gives."""
        stem = f"user-{user.replace(':', '-')}"
        return self._write_kubeconfig(f"run/{stem}", self._authority.issue(stem, user, organizations=groups))

    def component_kubeconfig(self, component: str) -> Path:
        """A kubeconfig for a component of the control plane, with the rights that RBAC's bootstrap policy gives it."""
        return self.client_kubeconfig(f"system:{component}")

    def log(self, name: str) -> Path:
        """Output of one of the processes: `etcd`, `kube-apiserver`, …"""
        return self._table.log(name)

    def __enter__(self) -> Self:
        """Start it."""
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it."""
        self.close()

    def _issue_certificates(self) -> None:
        pki = self.directory / "pki"
        self._authority = Authority(pki, "ca")
        self._trust = self._authority.files
        front_proxy = Authority(pki, "front-proxy-ca")
        self._front_proxy = (front_proxy.certificate, front_proxy.issue("front-proxy-client", "front-proxy-client"))
        etcd = Authority(pki, "etcd-ca")
        self._etcd_trust = etcd.files
        self._etcd = etcd.issue("etcd", "etcd", hosts=[_LOOPBACK, "localhost"])
        names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost", _LOOPBACK, SERVICE_ADDRESS]
        self._serving = self._authority.issue("kube-apiserver", "kube-apiserver", hosts=names)
        self._admin = self._authority.issue("admin", "admin", organizations=["system:masters"])
        self._signing = write_signing_key(pki, "service-accounts")

    def _write_kubeconfig(self, name: str, client: KeyPair) -> Path:
        path = self.directory / name
        path.parent.mkdir(exist_ok=True, mode=0o700)
        return write_kubeconfig(path, server=self.url, authority=self.authority, client=client)

    def _etcd_command(self) -> list[str | Path]:
        url = f"https://{_LOOPBACK}:{self._etcd_port}"
        return [
            self._binaries["etcd"],
            f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            f"--listen-peer-urls=http://{_LOOPBACK}:0",
            f"--cert-file={self._etcd.certificate}",
            f"--key-file={self._etcd.key}",
            f"--trusted-ca-file={self._etcd_trust.certificate}",
            "--client-cert-auth=true",
            "--unsafe-no-fsync",
            "--log-level=warn",
        ]

    def _apiserver_command(self) -> list[str | Path]:
        proxy_authority, proxy_client = self._front_proxy
        return [
            self._binaries["kube-apiserver"],
            f"--bind-address={_LOOPBACK}",
            f"--advertise-address={_LOOPBACK}",
            f"--secure-port={self._port}",
            # A loopback address can be no Service's endpoint.
            "--endpoint-reconciler-type=none",
            "--disable-admission-plugins=ServiceAccount",
            *apiserver_flags(
                etcd_url=f"https://{_LOOPBACK}:{self._etcd_port}",
                etcd_authority=self._etcd_trust.certificate,
                etcd_client=self._etcd,
                serving=self._serving,
                client_authority=self.authority,
                signing=self._signing,
                proxy_authority=proxy_authority,
                proxy_client=proxy_client,
            ),
        ]

    def _etcd_answers(self) -> bool:
        return answers_200(_LOOPBACK, self._etcd_port, "/health", self._etcd_trust.certificate, self._etcd)


def apiserver_flags(
    *,
    etcd_url: str,
    etcd_authority: Path,
    etcd_client: KeyPair,
    serving: KeyPair,
    client_authority: Path,
    signing: KeyPair,
    proxy_authority: Path,
    proxy_client: KeyPair,
) -> list[str]:
    """The kube-apiserver flags that do not depend on where it listens."""
    return [
        f"--etcd-servers={etcd_url}",
        f"--etcd-cafile={etcd_authority}",
        f"--etcd-certfile={etcd_client.certificate}",
        f"--etcd-keyfile={etcd_client.key}",
        f"--tls-cert-file={serving.certificate}",
        f"--tls-private-key-file={serving.key}",
        f"--client-ca-file={client_authority}",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-account-key-file={signing.certificate}",
        f"--service-account-signing-key-file={signing.key}",
        f"--service-cluster-ip-range={SERVICE_NETWORK}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--requestheader-client-ca-file={proxy_authority}",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-username-headers=X-Remote-User",
        f"--proxy-client-cert-file={proxy_client.certificate}",
        f"--proxy-client-key-file={proxy_client.key}",
        # Reaches webhooks and aggregated APIs by pod address, without kube-proxy.
        "--enable-aggregator-routing=true",
        "--profiling=false",
    ]


def run_kubectl(
    kubectl: Path, kubeconfig: Path, *arguments: str, stdin: str | None = None, timeout_s: float = 60.0
) -> str:
    """Run kubectl; returns its standard output.

    Raises:
        ClusterError: it failed, or took longer than `timeout_s`; the message is its standard error.
    """
    try:
        done = subprocess.run(
            bound([kubectl, f"--kubeconfig={kubeconfig}", *arguments]),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(f"kubectl {' '.join(arguments)} took longer than {timeout_s:g} s") from error
    if done.returncode:
        raise ClusterError(f"kubectl {' '.join(arguments)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def temporary_control_plane() -> ControlPlane:
    """A control plane in a temporary directory; those of dead processes are removed first.

    Raises:
        Unavailable: a binary is missing.
    """
    for left_over in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # One of this very process is in use as well: the session's, beside which a test starts another.
        if left_over.stat().st_uid == os.getuid() and not _owner_alive(left_over, or_self=True):
            _discard(left_over)
    return ControlPlane(Path(tempfile.mkdtemp(prefix=_PREFIX)))


def discard(directory: Path) -> None:
    """Stop the control plane of that directory, whoever started it, and remove its files."""
    ProcessTable(directory, bound_to_this_process=False).stop_all()
    _remove(directory)


def _discard(directory: Path) -> None:
    if not directory.exists():
        return
    if _owner_alive(directory):
        raise ClusterError(f"{directory} belongs to a control plane that runs")
    discard(directory)


def _owner_alive(directory: Path, *, or_self: bool = False) -> bool:
    try:
        owner = Identity(**json.loads((directory / "owner.json").read_text()))
    except FileNotFoundError:
        return False
    return owner.alive and (or_self or owner.pid != os.getpid())


def _write_identity(path: Path, identity: Identity) -> None:
    path.write_text(json.dumps({"name": identity.name, "pid": identity.pid, "started": identity.started}))


def _remove(directory: Path) -> None:
    # Only what a control plane made: the directory may be somebody's own.
    for name in _OWNED:
        path = directory / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    if directory.exists() and not any(directory.iterdir()):
        directory.rmdir()


def _free_ports(count: int) -> list[int]:
    free: list[int] = []
    for port in random.sample(_PORTS, 500):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((_LOOPBACK, port))
            except OSError:
                continue
        free.append(port)
        if len(free) == count:
            return free
    raise Unavailable(f"no {count} free ports between {_PORTS.start} and {_PORTS.stop}")
