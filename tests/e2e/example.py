"""The example pipeline under a load of the test's own, and what it cost and how late it was."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sair.annotations import GPU_RATE, STAGE
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.errors import ClusterError
from tests.e2e.cluster.installation import EXAMPLE, Installation
from tests.e2e.pods import eventually, pods, rollout, scale
from tests.e2e.rest import fetched

PIPELINE = "image-classification"
STAGES = ("preprocess", "inference", "postprocess")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What users and the bill saw of one run. A request that was not finished counts with its age at the end."""

    requests: int
    missed: int
    p50_s: float
    p99_s: float
    core_s: float
    share_s: float

    @property
    def row(self) -> str:
        """The figures, as a row of a Markdown table."""
        late = f"{self.missed} ({self.missed / self.requests:.0%})"
        return f"{self.requests} | {self.p50_s * 1000:.0f} | {self.p99_s * 1000:.0f} | {late} | {self.core_s:.0f} | {self.share_s:.1f}"


HEADER = (
    "| scaler | requests | P50 ms | P99 ms | later than the SLO | core-seconds | GPU-share-seconds |\n"
    + "|---" * 7
    + "|"
)


@dataclass
class Example:
    """The example in a namespace of its own.

    Args:
        cluster: with SAIR installed.
        namespace: made by `deploy`.
        trace: of the load, as the example's client reads it.
        mode: of the pipeline.
        cpu: CPU request and limit of each stage at the start.
        cpu_ms: CPU time per request, by stage.
        gpu_ms: time per request that a whole GPU takes.
        gpu_rate: share of a GPU at the start.
        gpu_rate_max: largest share a replica may get; empty: the default.
        replicas_max: most replicas of a stage; None: what the example says.
        cpu_max: most CPU a replica of a stage may get; empty: the default.
        home: node that queue and client are put on; any if empty.
        hpa_percent: utilisation of the CPU at which the cluster's own autoscaler holds each stage; None: there is none.
    """

    cluster: Cluster
    namespace: str
    trace: str
    mode: str = "auto"
    cpu: Mapping[str, str] = field(
        default_factory=lambda: {"preprocess": "100m", "inference": "200m", "postprocess": "100m"}
    )
    cpu_ms: Mapping[str, float] = field(default_factory=lambda: {"preprocess": 4, "inference": 1, "postprocess": 2})
    gpu_ms: float = 25
    gpu_rate: str = "0.4"
    gpu_rate_max: str = ""
    replicas_max: int | None = None
    cpu_max: str = ""
    home: str = ""
    hpa_percent: int | None = None
    _objects: list[dict[str, Any]] = field(default_factory=list)

    def deploy(self) -> None:
        """Apply everything but the client and wait until it runs."""
        installation = Installation(self.cluster, EXAMPLE)
        installation.load_images()
        self._objects = [self._fitted(item) for item in installation.objects]
        self.cluster.apply([item for item in self._objects if item["metadata"]["name"] != "load"])
        for name in ("redis", *STAGES):
            rollout(self.cluster, self.namespace, name, timeout_s=90)
        if self.hpa_percent is not None:
            self.cluster.apply([_hpa(self.namespace, stage, self.hpa_percent) for stage in STAGES])

    def start_load(self) -> None:
        """Let the client begin."""
        self.cluster.apply([item for item in self._objects if item["metadata"]["name"] == "load"])
        eventually(lambda: self.sent() > 0, 60, "the first request")

    def stop_load(self) -> None:
        """End the client."""
        scale(self.cluster, self.namespace, "load", 0)

    def restart_load(self) -> None:
        """Let the client begin its trace anew."""
        with self.cluster.api() as api:
            load = f"/api/v1/namespaces/{self.namespace}/pods?labelSelector=app.kubernetes.io/name%3Dload"
            api.delete(load, grace_s=0)
        rollout(self.cluster, self.namespace, "load")

    def outcome(self, slo_s: float, core_s: float, share_s: float) -> Outcome:
        """What the run was like, up to now.

        Args:
            slo_s: later than this is late.
            core_s: core-seconds that its stages had.
            share_s: GPU-share-seconds that they were granted.
        """
        latencies = sorted(latency_s for _, latency_s in self.latencies())
        return Outcome(
            requests=len(latencies),
            missed=sum(latency > slo_s for latency in latencies),
            p50_s=_quantile(latencies, 0.5),
            p99_s=_quantile(latencies, 0.99),
            core_s=core_s,
            share_s=share_s,
        )

    def latencies(self) -> list[tuple[float, float]]:
        """Of each request so far when it was due, Unix seconds, and the seconds until it was done, or its age if it is not."""
        now = float(self._redis("TIME").split()[0])
        done = {born: float(queued) for born, queued in self._stream("results")}
        return [(float(born), done.get(born, now) - float(born)) for born, _ in self._stream(f"stage:{STAGES[0]}")]

    def sent(self) -> int:
        """Requests sent so far."""
        return int(self._redis("XLEN", f"stage:{STAGES[0]}"))

    def finished(self) -> int:
        """Requests finished so far."""
        return int(self._redis("XLEN", "results"))

    def births(self) -> set[str]:
        """When each request that was sent was due, which tells them apart."""
        return {born for born, _ in self._stream(f"stage:{STAGES[0]}")}

    def served(self) -> set[str]:
        """The same of those that reached the end."""
        return {born for born, _ in self._stream("results")}

    def pods(self) -> list[dict[str, Any]]:
        """The stages' pods that are not being deleted."""
        return [pod for pod in pods(self.cluster, self.namespace) if STAGE in pod["metadata"].get("annotations", {})]

    def status(self) -> dict[str, Any]:
        """Status of the Pipeline object; empty before the first round."""
        try:
            raw = fetched(self.cluster, f"/apis/sair.dev/v1alpha1/namespaces/{self.namespace}/pipelines/{PIPELINE}")
        except ClusterError:
            return {}
        status: dict[str, Any] = raw.get("status", {})
        return status

    def decided(self) -> int:
        """Number of the newest decision of the controller, -1 before the first."""
        return int(self.status().get("lastDecision", {}).get("round", -1))

    def columns(self) -> dict[str, str]:
        """What `kubectl get pipelines` shows of it, by column."""
        head, row = self._kubectl("get", "pipelines", PIPELINE).splitlines()
        starts = [found.start() for found in re.finditer(r"\S+", head)]
        ends = [*starts[1:], max(len(head), len(row))]
        return {head[at:to].strip(): row[at:to].strip() for at, to in zip(starts, ends, strict=True)}

    def delete(self) -> None:
        """Remove it all; does not wait."""
        with self.cluster.api() as api:
            api.delete(f"/api/v1/namespaces/{self.namespace}")

    def _fitted(self, item: dict[str, Any]) -> dict[str, Any]:
        if item["kind"] == "Namespace":
            item["metadata"]["name"] = self.namespace
            return item
        item["metadata"]["namespace"] = self.namespace
        name = item["metadata"]["name"]
        if item["kind"] == "ConfigMap":
            item["data"] = {"trace.txt": self.trace}
        if item["kind"] == "Deployment":
            template = item["spec"]["template"]
            (container,) = template["spec"]["containers"]
            # Queue and client: three copies and all that their stages grow by have to find room on two nodes.
            container["resources"]["requests"]["cpu"] = "10m"
            if name in STAGES:
                template["spec"]["terminationGracePeriodSeconds"] = 5
                template["metadata"]["annotations"]["sair.dev/mode"] = self.mode
                if self.replicas_max is not None:
                    template["metadata"]["annotations"]["sair.dev/replicas-max"] = str(self.replicas_max)
                if self.cpu_max:
                    template["metadata"]["annotations"]["sair.dev/cpu-max"] = self.cpu_max
                container["args"].append(f"--cpu-ms={self.cpu_ms[name]:g}")
                for amounts in container["resources"].values():
                    amounts["cpu"] = self.cpu[name]
            elif self.home:
                template["spec"]["nodeSelector"] = {"kubernetes.io/hostname": self.home}
            if name == "load":
                # It has nothing to finish, and as the first process of its container it does not hear SIGTERM.
                template["spec"]["terminationGracePeriodSeconds"] = 0
            if name == "preprocess":
                # It can grow by CPU only, so that a ramp shows that knob as well.
                template["metadata"]["annotations"]["sair.dev/replicas-max"] = "1"
            if name == "inference":
                template["metadata"]["annotations"][GPU_RATE] = self.gpu_rate
                if self.gpu_rate_max:
                    template["metadata"]["annotations"]["sair.dev/gpu-rate-max"] = self.gpu_rate_max
                container["args"].append(f"--gpu-ms={self.gpu_ms:g}")
        return item

    def _stream(self, name: str) -> list[tuple[str, str]]:
        """Fields `born` and `queued` of every entry."""
        lines = self._redis("--raw", "XRANGE", name, "-", "+").splitlines()
        # Identifier, then names and values by turns.
        return [(lines[at + 2], lines[at + 4]) for at in range(0, len(lines) - 4, 5)]

    def _redis(self, *command: str) -> str:
        return self._kubectl("exec", "deployment/redis", "--", "redis-cli", *command)

    def _kubectl(self, *arguments: str, timeout_s: float = 60.0) -> str:
        before, *rest = arguments
        return self.cluster.kubectl(before, f"--namespace={self.namespace}", *rest, timeout_s=timeout_s)


def _hpa(namespace: str, name: str, percent: int) -> dict[str, Any]:
    metric = {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": 1,
            "maxReplicas": 6,
            "metrics": [{"type": "Resource", "resource": metric}],
        },
    }


def _quantile(ordered: Sequence[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, math.ceil(q * len(ordered)) - 1)]
