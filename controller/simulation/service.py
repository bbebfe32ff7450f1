"""How long a service takes: the law of one stage, and the random demands that requests bring along."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["ColdStart", "ServiceLaw", "demands", "stream"]

Spread = Literal["gamma", "lognormal"]


@dataclass(frozen=True, slots=True)
class ServiceLaw:
    """Mean time of one service (a batch of n requests) as a function of cores and GPU share.

    In words: the CPU part is Amdahl's law over the cores, once per request; the GPU part is a batch's fixed cost plus a cost per request,
    of which the scaling fraction is divided by the share, the rest is as long as it is at the reference share.

    t(n, c, ρ) = n · cpu_s · (f + (1 − f)/c) + (batch_s + n · item_s) · (φ/ρ + (1 − φ)/ρ_ref)
    """

    cpu_s: float = 0.0
    """CPU time of one request on one core, seconds."""
    serial_fraction: float = 0.2
    """f of Amdahl's law; 0.10 to 0.43 for published pre- and post-processing code."""
    batch_s: float = 0.0
    """GPU time of a batch whatever its size, seconds of a whole card."""
    item_s: float = 0.0
    """GPU time per request of a batch, seconds of a whole card."""
    max_batch: int = 1
    scaling_fraction: float = 1.0
    """φ: part of the GPU time that is divided by the share."""
    reference_share: float = 1.0
    """ρ_ref: the share at which φ makes no difference."""
    scv: float = 0.0
    """Squared coefficient of variation of one request's demand."""
    spread: Spread = "gamma"
    wait_cores: float = 1.0
    """Cores that a host thread keeps busy while the GPU works: CUDA's default synchronisation spins."""

    @property
    def uses_gpu(self) -> bool:
        """Some of the work runs on a GPU."""
        return self.batch_s + self.item_s > 0

    def cpu_time_s(self, batch: float, cores: float) -> float:
        """CPU part of a service of ``batch`` requests, seconds."""
        return batch * self.cpu_s * (self.serial_fraction + (1 - self.serial_fraction) / cores)

    def gpu_time_s(self, batch: float, share: float) -> float:
        """GPU part of a service of ``batch`` requests at an effective share in (0, 1], seconds."""
        if not self.uses_gpu:
            return 0.0
        scaled = self.scaling_fraction / share + (1 - self.scaling_fraction) / self.reference_share
        return (self.batch_s + batch * self.item_s) * scaled

    def time_s(self, batch: float, cores: float, share: float) -> float:
        """Mean time of a service of ``batch`` requests, seconds."""
        return self.cpu_time_s(batch, cores) + self.gpu_time_s(batch, share)

    def capacity_per_s(self, cores: float, share: float) -> float:
        """Most requests per second that one replica can serve, all batches full."""
        return self.max_batch / self.time_s(self.max_batch, cores, share)

    def core_seconds(self, batch: float, share: float) -> float:
        """CPU that a service of ``batch`` requests uses: its work on one core, and the wait for the GPU."""
        return batch * self.cpu_s + self.wait_cores * self.gpu_time_s(batch, share)


@dataclass(frozen=True, slots=True)
class ColdStart:
    """Time from a replica's creation to its first request: lognormal, cut to a range. Seconds."""

    median_s: float
    sigma: float = 0.35
    shortest_s: float = 0.5
    longest_s: float = 600.0

    def draw(self, generator: np.random.Generator, size: int) -> NDArray[np.float64]:
        """Independent cold starts, seconds."""
        drawn = self.median_s * np.exp(self.sigma * generator.standard_normal(size))
        return np.asarray(np.clip(drawn, self.shortest_s, self.longest_s))


def stream(seed: int, *names: str) -> np.random.Generator:
    """A generator of its own for each purpose, so that one consumer's draws never shift another's (common random numbers)."""
    return np.random.default_rng([seed & 0xFFFFFFFF, *(zlib.crc32(name.encode()) for name in names)])


def demands(law: ServiceLaw, generator: np.random.Generator, size: int) -> NDArray[np.float64]:
    """Factors by which each request's demand differs from the law's mean: mean 1, squared coefficient of variation ``law.scv``."""
    if law.scv == 0:
        return np.ones(size)
    if law.spread == "gamma":
        return generator.gamma(1 / law.scv, law.scv, size)
    variance = np.log1p(law.scv)
    return np.asarray(np.exp(np.sqrt(variance) * generator.standard_normal(size) - variance / 2))
