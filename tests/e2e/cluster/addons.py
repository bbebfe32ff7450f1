"""What a cluster needs besides its own daemons: DNS, and on request metrics for autoscaling."""

from collections.abc import Iterable

from tests.e2e.cluster.node import CLUSTER_DNS

Manifest = dict[str, object]

_COREFILE = """.:5353 {
    errors
    health :8080
    ready :8181
    kubernetes cluster.local in-addr.arpa {
        pods insecure
        ttl 5
    }
    cache 5
}
"""
_SYSTEM = "kube-system"


def dns(image: str) -> list[Manifest]:
    """CoreDNS, answering for the cluster's own names only: nothing is forwarded out of the cluster."""
    rules = [
        {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    container: Manifest = {
        "name": "coredns",
        "image": image,
        "args": ["-conf", "/etc/coredns/Corefile"],
        "readinessProbe": _http_probe("/ready", 8181),
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns", "readOnly": True}],
    }
    volume: Manifest = {"name": "config", "configMap": {"name": "coredns"}}
    ports = [
        {"name": "dns", "protocol": "UDP", "port": 53, "targetPort": 5353},
        {"name": "dns-tcp", "protocol": "TCP", "port": 53, "targetPort": 5353},
    ]
    return [
        _account("coredns"),
        _cluster_role("system:coredns", rules),
        _binding("system:coredns", "ClusterRole", "system:coredns", "coredns"),
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _metadata("coredns"), "data": {"Corefile": _COREFILE}},
        _deployment("coredns", container, [volume]),
        _service("kube-dns", "coredns", ports, clusterIP=CLUSTER_DNS),
    ]


def metrics(image: str) -> list[Manifest]:
    """metrics-server, with the resource metrics API that a HorizontalPodAutoscaler reads."""
    reader = [
        {"apiGroups": [""], "resources": ["nodes/metrics"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"]},
    ]
    viewer = [{"apiGroups": ["metrics.k8s.io"], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"]}]
    container: Manifest = {
        "name": "metrics-server",
        "image": image,
        "args": [
            "--cert-dir=/certificates",
            "--secure-port=10250",
            "--kubelet-preferred-address-types=InternalIP",
            "--kubelet-certificate-authority=/var/run/secrets/kubernetes.io/serviceaccount/ca.crt",
            "--metric-resolution=10s",
            # Has to be less than the resolution.
            "--kubelet-request-timeout=5s",
        ],
        "readinessProbe": _http_probe("/readyz", 10250, "HTTPS"),
        "volumeMounts": [{"name": "certificates", "mountPath": "/certificates"}],
    }
    ports = [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": 10250}]
    return [
        _account("metrics-server"),
        _cluster_role("system:metrics-server", reader),
        _cluster_role(
            "system:aggregated-metrics-reader", viewer, {"rbac.authorization.k8s.io/aggregate-to-view": "true"}
        ),
        _binding("system:metrics-server", "ClusterRole", "system:metrics-server", "metrics-server"),
        _binding("metrics-server:system:auth-delegator", "ClusterRole", "system:auth-delegator", "metrics-server"),
        _binding("metrics-server-auth-reader", "Role", "extension-apiserver-authentication-reader", "metrics-server"),
        _deployment("metrics-server", container, [{"name": "certificates", "emptyDir": {}}]),
        _service("metrics-server", "metrics-server", ports),
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": "v1beta1.metrics.k8s.io"},
            "spec": {
                "group": "metrics.k8s.io",
                "version": "v1beta1",
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                # It signs its own certificate at every start.
                "insecureSkipTLSVerify": True,
                "service": {"name": "metrics-server", "namespace": _SYSTEM},
            },
        },
    ]


def _metadata(name: str) -> Manifest:
    return {"name": name, "namespace": _SYSTEM}


def _account(name: str) -> Manifest:
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _metadata(name)}


def _cluster_role(name: str, rules: Iterable[object], labels: dict[str, str] | None = None) -> Manifest:
    metadata = {"name": name, "labels": labels or {}}
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": metadata,
        "rules": list(rules),
    }


def _binding(name: str, role_kind: str, role: str, account: str) -> Manifest:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": f"{role_kind}Binding",
        "metadata": _metadata(name) if role_kind == "Role" else {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role_kind, "name": role},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": _SYSTEM}],
    }


def _deployment(name: str, container: Manifest, volumes: list[Manifest]) -> Manifest:
    labels = {"app": name}
    security = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(name),
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "serviceAccountName": name,
                    "priorityClassName": "system-cluster-critical",
                    "containers": [
                        {**container, "imagePullPolicy": "Never", "securityContext": security},
                    ],
                    "volumes": volumes,
                    # DNS must not wait for itself.
                    "dnsPolicy": "Default",
                },
            },
        },
    }


def _service(name: str, app: str, ports: list[dict[str, object]], **spec: object) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(name),
        "spec": {"selector": {"app": app}, "ports": ports, **spec},
    }


def _http_probe(path: str, port: int, scheme: str = "HTTP") -> Manifest:
    return {"httpGet": {"path": path, "port": port, "scheme": scheme}, "periodSeconds": 1}
