"""The extender's settings."""

from __future__ import annotations

import socket
from typing import Annotated

import msgspec

from sair.logs import LogLevel
from sair.settings import settings

__all__ = ["Settings"]

Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=3600)]


@settings("SAIR_EXTENDER_")
class Settings:
    """Everything that can be set; see each field."""

    host: str = "127.0.0.1"
    """Address on which the scheduler's requests are taken. They carry no credentials: anything but loopback lets others bind pods."""

    port: Port = 8890
    """Port of /filter, /prioritize and /bind; 0 takes any free one."""

    metrics_host: str = "0.0.0.0"  # noqa: S104  # kubelet's probes and Prometheus come from outside the pod
    """Address of /healthz, /readyz and /metrics."""

    metrics_port: Port = 8891
    """Port of /healthz, /readyz and /metrics; 0 takes any free one."""

    lease_namespace: str = "kube-system"
    """Namespace of the scheduler's Lease."""

    lease_name: str = ""
    """Name of the Lease for which the schedulers of several replicas compete (their leaderElection.resourceName): only the extender
    beside the holder grants and binds. Empty if there is one scheduler without leader election: this extender always does."""

    hostname: str = ""
    """What the own scheduler's identity in the Lease begins with; empty: this machine's host name, which both containers of a pod share.
    With hostNetwork two replicas on one node would share it: keep them apart."""

    lease_fresh_s: Seconds = 10.0
    """Seconds without a renewal of the Lease after which nothing more is granted: the scheduler's renewDeadline."""

    takeover_s: Seconds = 1.0
    """Seconds between becoming the one that grants and the first grant, in which a predecessor's last writes arrive."""

    unresolved_s: Seconds = 120.0
    """Seconds after which a write whose answer was lost is looked up and given up if it did not happen. Must exceed the API server's
    request timeout (60 s unless set otherwise), after which it cannot happen any more."""

    remind_after_s: Seconds = 1.5
    """Seconds after a live pod's grant until the pod is changed once more (`sair.dev/gpu-granted-at`), for a kubelet that did not take
    up the first change."""

    request_timeout_s: Seconds = 4.0
    """Deadline of one request to the API server, in seconds; below the scheduler's httpTimeout for extenders (5 s unless set otherwise)."""

    headroom_milli: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 100
    """Thousandths of a GPU that placement likes to leave free on a card for raises; a preference, never a refusal. 0 disables it."""

    kubeconfig: str = ""
    """Kubeconfig file; unset uses the pod's service account, or $KUBECONFIG outside a cluster."""

    log_level: LogLevel = "info"
    """Least severe level that is logged."""

    @property
    def identity(self) -> str:
        """The host name by which the own scheduler's Lease is known."""
        return self.hostname or socket.gethostname()
