"""What an allocation costs. Prices are list prices of 2024-2026 in dollars per hour, kept in one dated table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from controller.state import Allocation

__all__ = ["GPU_PRICES", "Prices", "effective_cost"]

GPU_PRICES: Final = {
    "T4": 0.53,
    "A6000": 1.09,
    "A10": 1.29,
    "A100-40": 1.99,
    "A100-80": 2.21,
    "H100": 4.25,
}
"""$/h of one card, on-demand list prices as of 2024-2026; a cluster's own prices go before them."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices in dollars per hour; vCPU and memory are OpenCost's defaults."""

    gpu: float = GPU_PRICES["A100-80"]
    vcpu: float = 0.0316
    gibibyte: float = 0.0042


def effective_cost(allocations: Iterable[Allocation], prices: Prices) -> float:
    """Dollars per hour if every share of a card that is not used is sold to somebody else.

    cost = Σ replicas · (ρ · gpu + cores · vcpu + GiB · gibibyte)
    """
    total = 0.0
    for allocation in allocations:
        share = allocation.gpu_rate.fraction if allocation.gpu_rate else 0.0
        each = share * prices.gpu + allocation.cpu / 1000 * prices.vcpu + allocation.memory / 1024 * prices.gibibyte
        total += allocation.replicas * each
    return total
