"""Settings of the controller in a cluster."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from msgspec import Meta

from controller.cost import GPU_PRICES, Prices
from sair.errors import SettingsError
from sair.settings import load, settings

__all__ = ["Settings", "load_settings"]

_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*", re.ASCII)


@settings("SAIR_CONTROLLER_")
class Settings:
    """How the controller runs. The language model has settings of its own, SAIR_LLM_…"""

    redis_url: str = "redis://127.0.0.1:6379/0"
    """Where the memory is: redis://[user:password@]host:port/db; rediss:// for TLS, with ?ssl_ca_certs=PATH for a CA of
    one's own; redis+sentinel://host:port,host:port/<master>/<db>; redis+cluster://host:port. REDIS_URL stands in for it."""
    kubeconfig: str = ""
    """Path of a kubeconfig; unset: the pod's own service account, else the user's kubeconfig."""
    namespace: str = "sair-system"
    """Where the Lease is."""
    lease_name: str = "sair-controller"
    """Name of the Lease that elects the one controller that acts, or that all share; those of the shards are called after it."""
    lease_s: Annotated[int, Meta(ge=3, le=300)] = 15
    """How long the standby waits after the leader's last sign of life before it takes over, seconds. A leader that cannot renew the Lease
    for two thirds of it stops acting, so that a short one makes a slow API server interrupt it."""
    shards: Annotated[int, Meta(ge=1, le=16)] = 1
    """In how many shards the pipelines are divided, by namespace. 1: one replica acts and the others stand by; more: each replica
    holds a fair share of the shards, so that more replicas scale more pipelines. While it is being changed nobody acts twice."""
    metrics_source: Literal["pods", "prometheus"] = "pods"
    """Where the stages' metrics come from: pods, asked directly; or a Prometheus server that scrapes them."""
    prometheus_url: str = ""
    """Base URL of that server, without /api/v1; needed with prometheus. Let it scrape the stages every 5 s or more often: the reflex holds
    while the newest metrics are older than 6 s, and rounds do not scale down while they are older than 30 s."""
    prometheus_namespace_label: str = "namespace"
    """Label that names a pod's namespace there."""
    prometheus_pod_label: str = "pod"
    """Label that names the pod there."""
    prometheus_token_file: str = ""
    """File with a bearer token for that server, read anew every minute; unset: none is sent."""
    prometheus_ca_file: str = ""
    """File with the certificate authorities that are trusted for that server; unset: the system's."""
    host: str = "0.0.0.0"  # noqa: S104  # probes and Prometheus come from outside the pod
    """Address that /healthz, /readyz and /metrics listen on."""
    port: Annotated[int, Meta(ge=0, le=65535)] = 8080
    """Port of the same; 0: any free one."""
    interval_s: Annotated[float, Meta(ge=5, le=600)] = 30.0
    """Length of a round, seconds."""
    window_s: Annotated[float, Meta(ge=2, le=60)] = 15.0
    """Length of the observation window at the end of a round, seconds; at most the round's, so that rounds of less than 15 s need it set as
    well. Two of them are remembered."""
    reflex_interval_s: Annotated[float, Meta(ge=0.25, le=60)] = 0.5
    """How often the reflex looks at a pipeline's queues at most, seconds. It looks every two SLOs, at least every 2 s; where a process has
    more than 100 pipelines less often, from 1,000 on every 5 s. Arrivals of a pipeline that is known to burst are counted five times
    between two looks."""
    memory_capacity: Annotated[int, Meta(ge=100, le=1_000_000)] = 2_000
    """Experiences kept per pipeline; a frontier point is never forgotten. Each takes about 3 kB in Redis and as much in this process; what
    is beyond a lowered number is forgotten at the start."""
    journal_mib: Annotated[float, Meta(ge=0.25, le=4096)] = 4.0
    """What a pipeline's journal takes in Redis at most, MiB. A round of three stages takes 12 kB, so that 4 are three hours."""
    waiting_mib: Annotated[float, Meta(ge=1, le=4096)] = 64.0
    """What journal records of all pipelines take in this process at most while Redis takes none, MiB; beyond, the oldest are dropped and
    counted."""
    gpu_dollars_per_hour: Annotated[float, Meta(gt=0)] = GPU_PRICES["A100-80"]
    """Price of one card, $/h."""
    vcpu_dollars_per_hour: Annotated[float, Meta(ge=0)] = Prices().vcpu
    """Price of one vCPU, $/h."""
    gibibyte_dollars_per_hour: Annotated[float, Meta(ge=0)] = Prices().gibibyte
    """Price of one GiB of memory, $/h."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is logged."""

    def __post_init__(self) -> None:
        if self.window_s > self.interval_s:
            allowed = f"at most SAIR_CONTROLLER_INTERVAL_S, which is {self.interval_s:g}"
            raise SettingsError("SAIR_CONTROLLER_WINDOW_S", self.window_s, allowed)
        if self.metrics_source == "prometheus" and not self.prometheus_url.startswith(("http://", "https://")):
            allowed = "http://… or https://…, the Prometheus server that the metrics are read from"
            raise SettingsError("SAIR_CONTROLLER_PROMETHEUS_URL", self.prometheus_url, allowed)
        for name in ("namespace", "pod"):
            label = getattr(self, f"prometheus_{name}_label")
            if not _LABEL.fullmatch(label):
                variable = f"SAIR_CONTROLLER_PROMETHEUS_{name.upper()}_LABEL"
                raise SettingsError(variable, label, "the name of a label: letters, digits and _, no digit first")

    @property
    def prices(self) -> Prices:
        """The prices together."""
        return Prices(self.gpu_dollars_per_hour, self.vcpu_dollars_per_hour, self.gibibyte_dollars_per_hour)


def load_settings(environment: Mapping[str, str]) -> Settings:
    """Read the settings.

    Raises:
        SettingsError: Names the variable, the value and what is allowed.
    """
    common = environment.get("REDIS_URL")
    own = {"SAIR_CONTROLLER_REDIS_URL": common} if common and not environment.get("SAIR_CONTROLLER_REDIS_URL") else {}
    return load(Settings, {**environment, **own})
