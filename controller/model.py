"""The queueing prior: service times as a function of GPU share, CPU and batch, waiting in G/G/c queues, P99 over a DAG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Final

import numpy as np
import numpy.typing as npt

from controller.state import PipelineView, StageView

__all__ = [
    "OVERLOAD_S",
    "PATHS_MOST",
    "SATURATED",
    "Array",
    "ServiceCurve",
    "StageLoad",
    "capacity_per_s",
    "gamma_quantile",
    "path_count",
    "paths",
    "pipeline_p99_s",
    "sojourn",
    "utilisation",
    "waiting",
]

Array = npt.NDArray[np.float64]

SATURATED: Final = 0.97
"""Past this utilisation the stationary formula is continued by a line: a round is too short for it to come true."""

OVERLOAD_S: Final = 30.0
"""Slope of that line: in full overload for one round of 30 s the last request waits (u − 1) · 30 s."""

PATHS_MOST: Final = 256
"""From a pipeline's first stages to its last: P99 is worked out along each."""

_LEAST_SHAPE: Final = 0.3


@dataclass(frozen=True, slots=True)
class ServiceCurve:
    """Busy time of one replica for a batch of n requests.

    S(n, cores, ρ) = setup + setup_gpu/ρ + n · (fixed + cpu/cores + gpu/ρ)

    Without batches (n = 1, no setup) this is Amdahl's law t₁ · (f + (1−f)/cores) with fixed = f·t₁, plus a GPU part that goes with the
    reciprocal of the share that the hook grants.
    """

    fixed_s: float
    cpu_s: float
    """Seconds at one core that scale with CPU, per request."""
    gpu_s: float
    """Seconds at a whole card that scale with the share, per request; 0 for a CPU stage."""
    scv: float = 1.0
    """Squared coefficient of variation of the service time."""
    setup_s: float = 0.0
    """Seconds per batch whatever its size."""
    setup_gpu_s: float = 0.0
    """Seconds at a whole card per batch that scale with the share."""
    batch_max: float = 1.0
    """Largest batch known to be served together."""

    def per_batch_s(self, rate: Array | float) -> Array:
        """The part that is paid once per batch, seconds; ``rate`` in (0, 1]."""
        return np.asarray(self.setup_s + self.setup_gpu_s / np.asarray(rate, dtype=float), dtype=float)

    def per_item_s(self, cores: Array | float, rate: Array | float) -> Array:
        """The part that is paid for each request, seconds."""
        gpu = self.gpu_s / np.asarray(rate, dtype=float) if self.gpu_s else 0.0
        return np.asarray(self.fixed_s + self.cpu_s / np.asarray(cores, dtype=float) + gpu, dtype=float)

    def service_s(self, cores: Array | float, rate: Array | float, batch: float = 1.0) -> Array:
        """Mean busy time per request in batches of ``batch``, seconds."""
        return self.per_batch_s(rate) / max(1.0, batch) + self.per_item_s(cores, rate)


@dataclass(frozen=True, slots=True)
class StageLoad:
    """What a stage has to do."""

    arrivals_per_s: float
    fan_out: float = 1.0
    """Tasks per end-to-end request that arrive together at this stage (crops per frame); 1 for a plain stage."""
    arrivals_scv: float = 1.0
    """Squared coefficient of variation between arrivals; 1 is Poisson."""


def utilisation(load: StageLoad, servers: Array | float, service_s: Array | float) -> Array:
    """u = λ · t / c."""
    return np.asarray(load.arrivals_per_s * np.asarray(service_s) / np.maximum(np.asarray(servers, dtype=float), 1e-9))


def capacity_per_s(curve: ServiceCurve, servers: float, cores: float, rate: float) -> float:
    """c · μ: requests per second that a stage's replicas can serve, all batches full."""
    return servers / float(curve.service_s(cores, rate, curve.batch_max))


def waiting(load: StageLoad, servers: Array | float, service_s: Array | float, scv: float) -> tuple[Array, Array]:
    """Waiting in a G/G/c queue by Allen and Cunneen with Sakasegawa's approximation of Erlang's C, for services of single requests.

    With u = λS/c: P(W > 0) ≈ u^(√(2(c+1)) − 1) and E[W] = P(W > 0) · S/(c · (1 − u)) · (c_a² + c_s²)/2. Exact for M/M/1 and, through the
    variability factor, Pollaczek-Khinchine for M/G/1. Stages that batch: ``controller.batches``.

    Args:
        load: What arrives.
        servers: c.
        service_s: S, seconds.
        scv: c_s².

    Returns:
        Probability of waiting, and mean wait in seconds over all requests. Past u = 0.97 a line that keeps on rising.
    """
    servers = np.asarray(servers, dtype=float)
    service_s = np.asarray(service_s, dtype=float)
    busy = utilisation(load, servers, service_s)
    below = np.minimum(busy, SATURATED)
    delayed = below ** (np.sqrt(2.0 * (servers + 1.0)) - 1.0)
    spread = (load.arrivals_scv * max(1.0, load.fan_out) + scv) / 2.0
    mean = delayed * service_s / (servers * (1.0 - below)) * spread
    return delayed, mean + np.maximum(busy - SATURATED, 0.0) * OVERLOAD_S


def sojourn(load: StageLoad, servers: Array | float, service_s: Array | float, scv: float) -> tuple[Array, Array]:
    """Mean (s) and variance (s²) of the time an end-to-end request spends in a stage, waiting included.

    The wait is 0 or, with P(W > 0), exponential. With a fan-out the last of the tasks counts: the others are served before it.
    Arguments as for ``waiting``.
    """
    service_s = np.asarray(service_s, dtype=float)
    delayed, wait = waiting(load, servers, service_s, scv)
    ahead = max(0.0, load.fan_out - 1.0) / np.asarray(servers, dtype=float)
    extra = ahead * service_s
    wait_variance = np.where(wait > 0.0, np.maximum(2.0 * wait**2 / np.maximum(delayed, 1e-12) - wait**2, 0.0), 0.0)
    return service_s + wait + extra, service_s**2 * scv + wait_variance + extra * service_s * scv


@lru_cache(maxsize=64)
def _z(probability: float) -> float:
    return NormalDist().inv_cdf(probability)


def gamma_quantile(mean: Array | float, variance: Array | float, probability: float = 0.99) -> Array:
    """Quantile of a gamma distribution with this mean and variance (Wilson and Hilferty 1931).

    q = m · (1 − 1/(9k) + z/(3√k))³ with the shape k = m²/v. The cube root fails for small k; k is taken as at least 0.3.
    At one variance that falls by 2 % while the mean grows from k = 0.3 to 1; there the value at 0.3 is kept, so that what
    makes a stage faster never seems to make the pipeline slower.
    """
    mean = np.asarray(mean, dtype=float)
    variance = np.maximum(np.asarray(variance, dtype=float), 1e-18)
    z = _z(probability)
    shape = np.maximum(mean**2 / variance, _LEAST_SHAPE)
    quantile = mean * np.maximum(1.0 - 1.0 / (9.0 * shape) + z / (3.0 * np.sqrt(shape)), 0.0) ** 3
    least = math.sqrt(_LEAST_SHAPE) * (1.0 - 1.0 / (9.0 * _LEAST_SHAPE) + z / (3.0 * math.sqrt(_LEAST_SHAPE))) ** 3
    return np.asarray(np.maximum(quantile, least * np.minimum(np.sqrt(variance), mean / math.sqrt(_LEAST_SHAPE))))


def paths(view: PipelineView) -> tuple[tuple[int, ...], ...]:
    """All paths from a source to a sink, as indices into ``view.stages``, the longest first; at most ``PATHS_MOST``."""
    return _paths(view.stages)


def path_count(upstreams: Mapping[str, Sequence[str]]) -> int:
    """How many paths lead from the first stages to the last.

    Args:
        upstreams: Of each stage, those before it; upstreams come first.
    """
    count = dict.fromkeys(upstreams, 0)
    followed: set[str] = set()
    for name, above in upstreams.items():
        count[name] = sum(count[each] for each in above) or 1
        followed.update(above)
    return sum(paths for name, paths in count.items() if name not in followed)


@lru_cache(maxsize=4096)
def _paths(stages: tuple[StageView, ...]) -> tuple[tuple[int, ...], ...]:
    index = {stage.name: place for place, stage in enumerate(stages)}
    downstream: dict[int, list[int]] = {place: [] for place in range(len(stages))}
    for place, stage in enumerate(stages):
        for name in stage.after:
            if name in index:
                downstream[index[name]].append(place)
    found: list[tuple[int, ...]] = []
    open_paths: list[tuple[int, ...]] = [
        (place,) for place, stage in enumerate(stages) if not any(name in index for name in stage.after)
    ]
    while open_paths and len(found) < PATHS_MOST:
        path = open_paths.pop()
        following = downstream[path[-1]]
        if not following:
            found.append(path)
        open_paths.extend((*path, place) for place in following)
    return tuple(sorted(found, key=lambda path: (-len(path), path)))


def pipeline_p99_s(
    view: PipelineView, sojourns: Mapping[str, tuple[float, float]] | Sequence[tuple[float, float]]
) -> float:
    """End-to-end P99: along each path means and variances add up, and the slowest path counts.

    Where k paths must all finish, each is asked for its 1 − 0.01/k quantile (union bound).

    Args:
        view: Its stages' order and edges.
        sojourns: Mean (s) and variance (s²) of each stage, by name or in the order of ``view.stages``.
    """
    if isinstance(sojourns, Mapping):
        sojourns = [sojourns[stage.name] for stage in view.stages]
    routes = paths(view)
    probability = 1.0 - 0.01 / max(1, len(routes))
    worst = 0.0
    for route in routes:
        mean = math.fsum(sojourns[place][0] for place in route)
        variance = math.fsum(sojourns[place][1] for place in route)
        worst = max(worst, float(gamma_quantile(mean, variance, probability)))
    return worst
