"""The webhook's manifests on a control plane that has no nodes: its address stands in for its pods."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.cluster.control_plane import ControlPlane

BASE = Path(__file__).parents[2] / "deploy" / "base"
SERVICE_ACCOUNT = "system:serviceaccount:sair-system:sair-webhook"


def own_address() -> str | None:
    """An IPv4 address of this machine that is no loopback, which an endpoint must not be; None if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Connecting a datagram socket sends nothing: it only asks the routing table.
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        address: str = probe.getsockname()[0]
    return None if address.startswith("127.") else address


@contextmanager
def installed(control_plane: ControlPlane) -> Iterator[None]:
    """Namespaces, CRD, policies and the webhook's RBAC, Service and configuration; removed afterwards."""
    parts = (
        "namespaces.yaml",
        "../crds/pipelines.yaml",
        "webhook/rbac.yaml",
        "webhook/service.yaml",
        "webhook/configuration.yaml",
    )
    files = [f"--filename={BASE / part}" for part in parts]
    control_plane.run_kubectl("apply", *files)
    control_plane.run_kubectl("apply", f"--kustomize={BASE / 'policy'}")
    control_plane.run_kubectl("wait", "--for=condition=Established", "crd/pipelines.sair.dev", "--timeout=20s")
    try:
        yield
    finally:
        # Without the namespace controller a namespace would stay Terminating for ever: it is left to the next test.
        control_plane.run_kubectl("delete", f"--kustomize={BASE / 'policy'}", "--ignore-not-found")
        control_plane.run_kubectl("delete", "--ignore-not-found", *files[2:])
        secrets = ("--namespace=sair-system", "delete", "secrets", "--all")
        control_plane.run_kubectl(*secrets)


def route(control_plane: ControlPlane, address: str, port: int) -> None:
    """Have the webhook's Service lead to this address."""
    control_plane.run_kubectl(
        "apply",
        "--filename=-",
        stdin=json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": "sair-webhook", "namespace": "sair-system"},
                "spec": {"ports": [{"name": "admission", "port": 443, "targetPort": "admission"}]},
            }
        ),
    )
    control_plane.run_kubectl(
        "apply",
        "--filename=-",
        stdin=json.dumps(
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": "sair-webhook-test",
                    "namespace": "sair-system",
                    "labels": {"kubernetes.io/service-name": "sair-webhook"},
                },
                "addressType": "IPv4",
                "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
                "ports": [{"name": "admission", "port": port, "protocol": "TCP"}],
            }
        ),
    )
