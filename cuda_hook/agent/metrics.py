"""The agent's Prometheus metrics, made from the latest snapshot whenever they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cuda_hook.agent.containers import Tenant
from cuda_hook.agent.observer import Snapshot
from cuda_hook.agent.page import GpuSection

__all__ = ["PodName", "SnapshotCollector"]


@dataclass(frozen=True, slots=True)
class PodName:
    """What a pod's UID stands for."""

    namespace: str
    name: str
    pipeline: str = ""
    stage: str = ""


_LABELS = ["namespace", "pod", "pod_uid", "pipeline", "stage", "gpu_uuid"]


class SnapshotCollector(Collector):
    """Turns snapshots into metrics.

    Args:
        latest: Gives the latest snapshot.
        names: Gives pod UID → name; pods that are not in it are shown by UID alone.
    """

    def __init__(self, latest: Callable[[], Snapshot], names: Callable[[], Mapping[str, PodName]]) -> None:
        self._latest = latest
        self._names = names

    def collect(self) -> Iterator[Metric]:
        """Yield every metric."""
        snapshot = self._latest()
        yield from self._containers(snapshot)
        yield from _cards(snapshot)
        refused = GaugeMetricFamily("sair_agent_pages_refused", "Stats pages that cannot be read.")
        refused.add_metric([], snapshot.refused)
        yield refused

    def _labels(self, tenant: Tenant, section: GpuSection) -> list[str]:
        name = self._names().get(tenant.uid, PodName("", ""))
        return [name.namespace, name.name, tenant.uid, name.pipeline, name.stage, section.uuid]

    def _containers(self, snapshot: Snapshot) -> Iterator[Metric]:
        rate = GaugeMetricFamily("sair_gpu_rate", "Rate in force: share of the GPU's time.", labels=_LABELS)
        busy = CounterMetricFamily(
            "sair_gpu_busy_seconds",
            "GPU time of the container's completed work, as its hook measured it.",
            labels=_LABELS,
        )
        nvml = CounterMetricFamily("sair_gpu_nvml_busy_seconds", "GPU time of the container by NVML.", labels=_LABELS)
        charged = GaugeMetricFamily(
            "sair_gpu_charged_seconds",
            "GPU time charged to the container's budget, corrections included.",
            labels=_LABELS,
        )
        throttled = CounterMetricFamily(
            "sair_gpu_throttled_seconds", "Time its threads slept for budget.", labels=_LABELS
        )
        launches = CounterMetricFamily("sair_gpu_launches", "Kernels and graphs submitted.", labels=_LABELS)
        memory = GaugeMetricFamily("sair_gpu_memory_bytes", "Device memory held.", labels=_LABELS)
        limit = GaugeMetricFamily("sair_gpu_memory_limit_bytes", "Device memory granted; 0: no limit.", labels=_LABELS)
        refused = GaugeMetricFamily(
            "sair_gpu_memory_refused", "Allocations of living processes refused by the limit.", labels=_LABELS
        )
        processes = GaugeMetricFamily("sair_gpu_processes", "Processes that use the GPU.", labels=_LABELS)
        errors = CounterMetricFamily("sair_gpu_grant_errors", "Malformed or unreadable grants seen.", labels=_LABELS)
        for tenant in snapshot.tenants:
            for section in tenant.view.gpus:
                labels = self._labels(tenant, section)
                slots = [slot for slot in tenant.view.slots if slot.gpu == section.index]
                rate.add_metric(labels, tenant.view.rate)
                busy.add_metric(labels, (section.retired_busy_ns + sum(s.busy_ns for s in slots)) / 1e9)
                charged.add_metric(labels, section.charged_ns / 1e9)
                throttled.add_metric(labels, (section.retired_throttled_ns + sum(s.throttled_ns for s in slots)) / 1e9)
                launches.add_metric(labels, section.retired_launches + sum(s.launches for s in slots))
                memory.add_metric(labels, sum(s.memory_bytes for s in slots))
                limit.add_metric(labels, tenant.view.memory_granted_bytes)
                refused.add_metric(labels, sum(s.memory_refused for s in slots))
                processes.add_metric(labels, len(slots))
                errors.add_metric(labels, tenant.view.grant_errors)
                account = snapshot.busy.get((tenant.uid, section.uuid))
                if account is not None:
                    nvml.add_metric(labels, account.busy_ns / 1e9)
        yield from (rate, busy, nvml, charged, throttled, launches, memory, limit, refused, processes, errors)


def _cards(snapshot: Snapshot) -> Iterator[Metric]:
    labels = ["index", "uuid", "model"]
    total = GaugeMetricFamily("sair_node_gpu_memory_bytes", "Memory of the card.", labels=labels)
    used = GaugeMetricFamily("sair_node_gpu_memory_used_bytes", "Memory of the card in use.", labels=labels)
    for gpu in snapshot.gpus:
        values = [str(gpu.index), gpu.uuid, gpu.model]
        total.add_metric(values, int(gpu.memory) * 2**20)
        memory = snapshot.memory.get(gpu.uuid)
        if memory is not None:
            used.add_metric(values, memory.used)
    yield from (total, used)
