"""The control plane of the cluster with nodes: its certificates and its command lines. It lives on node 0's network."""

from pathlib import Path

from tests.e2e.cluster.certificates import Authority, KeyPair, write_kubeconfig, write_signing_key
from tests.e2e.cluster.control_plane import apiserver_flags
from tests.e2e.cluster.network import SERVICE_ADDRESS, SERVICE_NETWORK

PORT = 6443
_ETCD_URL = "https://127.0.0.1:2379"
# The defaults, 20 and 50 requests a second, make a scale test measure the client's own brake.
_FAST_CLIENT = ("--kube-api-qps=500", "--kube-api-burst=1000")


def server_url(address: str) -> str:
    """URL of the API server at that address."""
    return f"https://{address}:{PORT}"


def issue_credentials(pki: Path, address: str, kubeconfig: Path) -> Authority:
    """Write every certificate, key and kubeconfig of the control plane.

    Args:
        pki: directory for them.
        address: what the API server listens on.
        kubeconfig: where the administrator's goes.

    Returns:
        The authority that also signs the nodes' certificates.
    """
    server = server_url(address)
    authority = Authority(pki, "ca")
    front_proxy = Authority(pki, "front-proxy-ca")
    etcd = Authority(pki, "etcd-ca")
    service = "kubernetes.default.svc"
    names = ["kubernetes", "kubernetes.default", service, f"{service}.cluster.local", "localhost", "127.0.0.1"]
    authority.issue("serving", "kube-apiserver", hosts=[*names, SERVICE_ADDRESS, address])
    authority.issue("kubelet-client", "kube-apiserver-kubelet-client", organizations=["system:masters"])
    etcd.issue("etcd", "etcd", hosts=["localhost", "127.0.0.1"])
    front_proxy.issue("front-proxy-client", "front-proxy-client")
    write_signing_key(pki, "service-accounts")
    admin = authority.issue("admin", "admin", organizations=["system:masters"])
    write_kubeconfig(kubeconfig, server=server, authority=authority.certificate, client=admin)
    for component in ("kube-controller-manager", "kube-scheduler"):
        client = authority.issue(component, f"system:{component}")
        path = pki / f"{component}.kubeconfig"
        write_kubeconfig(path, server=server, authority=authority.certificate, client=client)
    return authority


def key_pair(pki: Path, stem: str) -> KeyPair:
    """The files of one certificate that `issue_credentials` wrote."""
    return KeyPair(pki / f"{stem}.crt", pki / f"{stem}.key")


def flags(component: str, directory: Path, address: str) -> list[str]:
    """Command-line flags of a component.

    Args:
        component: `etcd`, `kube-apiserver`, `kube-controller-manager` or `kube-scheduler`.
        directory: the cluster's files.
        address: what the API server listens on.
    """
    pki = directory / "pki"
    match component:
        case "etcd":
            return _etcd(pki, directory / "etcd")
        case "kube-apiserver":
            return _apiserver(pki, address)
        case "kube-controller-manager":
            return _controller_manager(pki)
        case "kube-scheduler":
            return [f"--kubeconfig={pki}/kube-scheduler.kubeconfig", "--leader-elect=false", *_FAST_CLIENT]
        case _:
            raise ValueError(f"no component {component}")


def _etcd(pki: Path, data: Path) -> list[str]:
    etcd = key_pair(pki, "etcd")
    return [
        f"--data-dir={data}",
        f"--listen-client-urls={_ETCD_URL}",
        f"--advertise-client-urls={_ETCD_URL}",
        "--listen-peer-urls=http://127.0.0.1:0",
        f"--cert-file={etcd.certificate}",
        f"--key-file={etcd.key}",
        f"--trusted-ca-file={pki}/etcd-ca.crt",
        "--client-cert-auth=true",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def _apiserver(pki: Path, address: str) -> list[str]:
    kubelet_client = key_pair(pki, "kubelet-client")
    return [
        f"--bind-address={address}",
        f"--advertise-address={address}",
        f"--secure-port={PORT}",
        f"--kubelet-client-certificate={kubelet_client.certificate}",
        f"--kubelet-client-key={kubelet_client.key}",
        f"--kubelet-certificate-authority={pki}/ca.crt",
        "--kubelet-preferred-address-types=InternalIP",
        # Pods of a lost node are given up after seconds, not after five minutes.
        "--default-not-ready-toleration-seconds=5",
        "--default-unreachable-toleration-seconds=5",
        *apiserver_flags(
            etcd_url=_ETCD_URL,
            etcd_authority=pki / "etcd-ca.crt",
            etcd_client=key_pair(pki, "etcd"),
            serving=key_pair(pki, "serving"),
            client_authority=pki / "ca.crt",
            signing=KeyPair(pki / "service-accounts.pub", pki / "service-accounts.key"),
            proxy_authority=pki / "front-proxy-ca.crt",
            proxy_client=key_pair(pki, "front-proxy-client"),
        ),
    ]


def _controller_manager(pki: Path) -> list[str]:
    return [
        f"--kubeconfig={pki}/kube-controller-manager.kubeconfig",
        f"--authentication-kubeconfig={pki}/kube-controller-manager.kubeconfig",
        f"--authorization-kubeconfig={pki}/kube-controller-manager.kubeconfig",
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={pki}/service-accounts.key",
        f"--root-ca-file={pki}/ca.crt",
        f"--cluster-signing-cert-file={pki}/ca.crt",
        f"--cluster-signing-key-file={pki}/ca.key",
        f"--service-cluster-ip-range={SERVICE_NETWORK}",
        # A lost node is noticed in seconds; kubelets renew their leases every second.
        "--node-monitor-period=1s",
        "--node-monitor-grace-period=8s",
        "--horizontal-pod-autoscaler-sync-period=5s",
        "--horizontal-pod-autoscaler-initial-readiness-delay=5s",
        "--horizontal-pod-autoscaler-cpu-initialization-period=20s",
        "--concurrent-deployment-syncs=10",
        "--concurrent-replicaset-syncs=10",
        *_FAST_CLIENT,
    ]
