"""Immutable builders: a whole valid value, of which a test states only what it is about."""

from __future__ import annotations

from typing import Any

from controller.experience import Experience, Outcome, RewardTerms
from controller.state import Action, Allocation, StageDelta
from sair.quantities import GpuRate, Mebibytes, Millicores

__all__ = ["allocation", "experience", "pod"]


def pod(annotations: dict[str, str] | None = None, **changes: Any) -> dict[str, Any]:
    """A raw pod of one container."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "stage-0", "namespace": "default", "annotations": annotations or {}},
        "spec": {"containers": [{"name": "main", "image": "example/app:1"}]},
        **changes,
    }


def allocation(replicas: int = 2, cpu: int = 1000, memory: int = 512, gpu_milli: int | None = 300) -> Allocation:
    """An allocation; CPU in millicores, memory in MiB, GPU share in thousandths."""
    rate = None if gpu_milli is None else GpuRate(gpu_milli)
    return Allocation(replicas, Millicores(cpu), Mebibytes(memory), rate)


def experience(number: int = 1, **changes: Any) -> Experience:
    """The experience of round ``number``, 30 s a round."""
    values: dict[str, Any] = {
        "id": f"{number:010d}",
        "pipeline": "default/vision",
        "round": number,
        "time_s": 1_700_000_000.0 + 30 * number,
        "context": (0.1, 0.25, 0.5),
        "action": Action((StageDelta("inference", gpu_milli=100),)),
        "before": (("inference", allocation()), ("preprocess", allocation(gpu_milli=None))),
        "load_bucket": 3,
        "previous_latency_ratio": 0.9,
        "outcome": Outcome(0.8, 0.4, 0.0),
        "reward": RewardTerms(latency=0.02, cost=-1.6, sla=0.0, proactive=0.1, pareto=1.05),
        "surprisal": 0.3,
        "predicted_reward": -0.4,
        "policy": "in-context",
        "arrivals_per_s": 42.0,
        "bottleneck": "inference",
        "note": "",
    }
    return Experience(**{**values, **changes})
