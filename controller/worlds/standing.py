"""One stage as it stands in the cluster: its workload, its live pods, and what they are allocated. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from controller.cluster import PodState, Workload
from controller.discovery import Found
from controller.state import Allocation
from sair.annotations import LOWEST_RATE
from sair.quantities import GpuRate, Millicores

__all__ = ["Standing", "given_cpu", "is_given", "standings"]

_ROUNDED: Final = 26
"""By how many millicores a node may be off that reads a request back from its cgroup's weight: 9999 weights stand for 262142 shares, of
which a core has 1024."""


@dataclass(frozen=True, slots=True)
class Standing:
    """A stage's workload and pods."""

    name: str
    workload: Workload
    pods: tuple[PodState, ...]
    """Alive."""

    @property
    def ready(self) -> tuple[PodState, ...]:
        """Those that serve."""
        return tuple(pod for pod in self.pods if pod.ready)

    @property
    def granted(self) -> GpuRate | None:
        """Lowest share a ready replica has; the hook holds one that nobody granted anything to the lowest rate there is."""
        if self.workload.spec is None or self.workload.spec.gpu_rate is None:
            return None
        return min((pod.granted or LOWEST_RATE for pod in self.ready), default=None)

    @property
    def granted_cpu(self) -> Millicores | None:
        """Least CPU that a ready replica really has: what its node has given it, where that is not what its specification says."""
        return min((given_cpu(pod) for pod in self.ready), default=None)

    @property
    def absent(self) -> tuple[str, ...]:
        """Why replicas that are wished for do not come, a reason each: they cannot be created, or fit on no node."""
        reasons = [pod.unplaced for pod in self.pods if pod.unplaced]
        if self.workload.failure:
            reasons += [self.workload.failure] * max(0, self.workload.replicas - len(self.pods))
        # While a new version is rolled out there are more pods than replicas are wished for.
        return tuple(reasons[: max(0, self.workload.replicas - len(self.ready))])

    @property
    def starting(self) -> int:
        """Replicas that are not ready yet and on their way."""
        return max(0, self.workload.replicas - len(self.ready) - len(self.absent))

    def allocation(self, wished: GpuRate | None) -> Allocation:
        """What each replica is to have; a GPU share as wished, CPU as the pods' specifications say.

        Args:
            wished: The controller's wish, None if it has none.
        """
        workload, rate = self.workload, None
        if workload.spec is not None and workload.spec.gpu_rate is not None:
            wishes = [pod.wished for pod in self.pods if pod.wished is not None]
            rate = wished or max(wishes, default=workload.spec.gpu_rate)
        cpu: Millicores = max((pod.container_cpu for pod in self.pods), default=workload.cpu)
        return Allocation(workload.replicas, cpu, workload.memory, rate)


def is_given(pod: PodState, cpu: Millicores) -> bool:
    """The node has given a pod's container so much, as far as it says."""
    return pod.container_has is None or abs(pod.container_has - cpu) <= _ROUNDED


def given_cpu(pod: PodState) -> Millicores:
    """What a pod's container really has: the node may not have done a resize that was asked for, and may never do it."""
    has, asked = pod.container_has, pod.container_cpu
    return asked if has is None or is_given(pod, asked) else has


def standings(found: Found, pods: Iterable[PodState]) -> dict[str, Standing]:
    """The stages of a pipeline by name, in topological order.

    Args:
        found: The pipeline.
        pods: Of the whole cluster.
    """
    mine: dict[str | None, list[PodState]] = {}
    for pod in pods:
        if pod.alive and pod.pipeline == found.view.key:
            mine.setdefault(pod.stage, []).append(pod)
    return {name: Standing(name, workload, tuple(mine.get(name, ()))) for name, workload in found.workloads.items()}
