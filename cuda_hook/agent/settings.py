"""The node agent's settings."""

from __future__ import annotations

from typing import Annotated

import msgspec

from sair.logs import LogLevel
from sair.settings import settings

__all__ = ["AgentSettings"]

Port = Annotated[int, msgspec.Meta(ge=0, le=65_535)]


@settings("SAIR_AGENT_")
class AgentSettings:
    """Everything that can be set; see each field."""

    node_name: str = ""
    """Node this agent runs on. Empty: no API server is asked or told anything; pages and metrics work all the same."""

    kubeconfig: str = ""
    """File with the API server's address and credentials; empty: the pod's service account, else ~/.kube/config."""

    host: str = "0.0.0.0"  # noqa: S104  # Prometheus and kubelet's probes come from outside the pod
    """Address of /healthz, /readyz and /metrics."""

    port: Port = 8080
    """Port of /healthz, /readyz and /metrics; 0 takes any free one."""

    pods_path: str = "/var/lib/kubelet/pods"
    """kubelet's folder of pods, in which the stats pages are found as <pod uid>/volumes/kubernetes.io~empty-dir/<volume>/<file>."""

    volume: str = "sair-stats"
    """Name of the volume that holds a pod's stats page."""

    file: str = "stats"
    """Name of the stats page in that volume."""

    nvml_library: str = "libnvidia-ml.so.1"
    """NVML, by a name the loader finds or by path. Where it is missing only pages are read, and the Node's inventory is left as it is."""

    period_ms: Annotated[int, msgspec.Meta(ge=10, le=1000)] = 100
    """Milliseconds between two looks at pages and NVML. Hooks ignore what is older than 2 s."""

    discovery_s: Annotated[float, msgspec.Meta(gt=0, le=60)] = 2.0
    """Seconds between two looks for new and vanished pages."""

    inventory_s: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 60.0
    """Seconds between two looks at which GPUs there are; the Node is patched only when that changed."""

    log_level: LogLevel = "info"
    """Least severe level that is logged."""
