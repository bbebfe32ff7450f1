"""The contract with users: ``sair.dev/…`` annotations on pod templates, parsed and validated in one place."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from sair.errors import AnnotationError, InvalidInput
from sair.pipeline import MODES, REPLICAS_MOST, Mode
from sair.quantities import GpuRate, Mebibytes, Millicores, parse_cpu, parse_duration, parse_memory

__all__ = [
    "AFTER",
    "CONTAINER",
    "GPUS",
    "GPU_GRANTED",
    "GPU_GRANTED_AT",
    "GPU_INDEX",
    "GPU_MEMORY",
    "GPU_RATE",
    "INJECTED",
    "LOWEST_RATE",
    "PIPELINE",
    "PREFIX",
    "STAGE",
    "Bounds",
    "MetricsEndpoint",
    "StageSpec",
    "is_opted_in",
    "parse_grant",
    "parse_stage",
]

PREFIX = "sair.dev/"
PIPELINE = PREFIX + "pipeline"
STAGE = PREFIX + "stage"
AFTER = PREFIX + "after"
GPU_RATE = PREFIX + "gpu-rate"
GPU_GRANTED = PREFIX + "gpu-granted"
GPU_GRANTED_AT = PREFIX + "gpu-granted-at"
GPU_MEMORY = PREFIX + "gpu-memory"
GPU_INDEX = PREFIX + "gpu-index"
CONTAINER = PREFIX + "container"
INJECTED = PREFIX + "injected"
GPUS = PREFIX + "gpus"
"""On a Node, written by the node agent: JSON list of its cards, ``[{"memoryMi": 81920, "model": "…", "uuid": "…"}]``."""

LOWEST_RATE = GpuRate(50)
"""What a container gets that nobody granted anything: the bottom of the rate grid."""

_USER_KEYS = frozenset(
    PREFIX + key
    for key in (
        *("pipeline", "stage", "after", "gpu-rate", "gpu-memory", "gpu-rate-min", "gpu-rate-max", "replicas-min"),
        *("replicas-max", "cpu-min", "cpu-max", "slo-p99", "mode", "budget-per-hour", "metrics-port", "metrics-path"),
        *("latency-metric", "queue-metric", "arrivals-metric", "container"),
    )
)
_SYSTEM_KEYS = frozenset((GPU_GRANTED, GPU_GRANTED_AT, GPU_INDEX, INJECTED))
_DNS_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)
_METRIC_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,199}", re.ASCII)
_PATH = re.compile(r"/[A-Za-z0-9._~/-]{0,199}", re.ASCII)
_INTEGER = re.compile(r"\d{1,6}", re.ASCII)
_MONEY = re.compile(r"\d{1,9}(?:\.\d{1,4})?", re.ASCII)
_MAX_UPSTREAMS = 16

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bounds:
    """Limits of one stage's knobs; None where the user set none."""

    gpu_rate_min: GpuRate | None = None
    gpu_rate_max: GpuRate | None = None
    replicas_min: int | None = None
    replicas_max: int | None = None
    cpu_min: Millicores | None = None
    cpu_max: Millicores | None = None


@dataclass(frozen=True, slots=True)
class MetricsEndpoint:
    """Where a stage exports its Prometheus metrics, and what they are called."""

    port: int = 9090
    path: str = "/metrics"
    latency: str = "sair_stage_latency_seconds"
    """Histogram of the time a request spends in the stage, waiting included, in seconds."""
    queue: str = "sair_stage_queue_depth"
    """Gauge of requests waiting for the stage."""
    arrivals: str = "sair_stage_arrivals_total"
    """Counter of requests that reached the stage."""


@dataclass(frozen=True, slots=True)
class StageSpec:
    """What one annotated pod template says about its stage.

    ``gpu_rate`` is None for a stage that runs on CPU alone; ``slo_p99_s``, ``mode`` and ``budget_per_hour`` are the pipeline's
    defaults as this stage states them.
    """

    pipeline: str
    stage: str
    after: tuple[str, ...] = ()
    gpu_rate: GpuRate | None = None
    gpu_memory: Mebibytes | None = None
    bounds: Bounds = Bounds()
    slo_p99_s: float | None = None
    mode: Mode | None = None
    budget_per_hour: float | None = None
    metrics: MetricsEndpoint = MetricsEndpoint()
    container: str | None = None


def is_opted_in(annotations: Mapping[str, str]) -> bool:
    """Say whether a pod asks for SAIR at all: it carries the pipeline or the stage annotation."""
    return PIPELINE in annotations or STAGE in annotations


def parse_stage(annotations: Mapping[str, str]) -> StageSpec:
    """Parse the ``sair.dev/…`` annotations of one pod template or pod.

    Annotations without the prefix are ignored; those that components write (granted share, GPU index, hook version) are allowed
    and ignored; any other key with the prefix is an error, because a misspelt bound would otherwise silently not hold.

    Raises:
        AnnotationError: Names the key, its value and what is allowed.
    """
    own = {key: value for key, value in annotations.items() if key.startswith(PREFIX)}
    for key in own.keys() - _USER_KEYS - _SYSTEM_KEYS:
        raise AnnotationError(key, own[key], "one of the keys " + ", ".join(sorted(_USER_KEYS)))
    for key in (PIPELINE, STAGE):
        if key not in own:
            raise AnnotationError(
                key, None, "a DNS label: both sair.dev/pipeline and sair.dev/stage are needed to opt in"
            )

    stage = _dns_label(STAGE, own[STAGE])
    gpu_rate = _read(own, "gpu-rate", _gpu_rate)
    gpu_memory = _read(own, "gpu-memory", lambda key, text: parse_memory(text, field=key))
    bounds = Bounds(
        gpu_rate_min=_read(own, "gpu-rate-min", _gpu_rate),
        gpu_rate_max=_read(own, "gpu-rate-max", _gpu_rate),
        replicas_min=_read(own, "replicas-min", _replicas),
        replicas_max=_read(own, "replicas-max", _replicas),
        cpu_min=_read(own, "cpu-min", lambda key, text: parse_cpu(text, field=key)),
        cpu_max=_read(own, "cpu-max", lambda key, text: parse_cpu(text, field=key)),
    )
    _check_gpu_keys(own, gpu_rate)
    # A pod that went through admission has the rate it was given since, and the Pipeline's bounds go before its own.
    _check_bounds(own, bounds, gpu_rate if INJECTED not in own else None)
    default = MetricsEndpoint()
    return StageSpec(
        pipeline=_dns_label(PIPELINE, own[PIPELINE]),
        stage=stage,
        after=_read(own, "after", lambda key, text: _upstreams(key, text, stage)) or (),
        gpu_rate=gpu_rate,
        gpu_memory=gpu_memory,
        bounds=bounds,
        slo_p99_s=_read(own, "slo-p99", lambda key, text: parse_duration(text, field=key)),
        mode=_read(own, "mode", _mode),
        budget_per_hour=_read(own, "budget-per-hour", _money),
        metrics=MetricsEndpoint(
            port=_read(own, "metrics-port", _port) or default.port,
            path=_read(own, "metrics-path", _path) or default.path,
            latency=_read(own, "latency-metric", _metric_name) or default.latency,
            queue=_read(own, "queue-metric", _metric_name) or default.queue,
            arrivals=_read(own, "arrivals-metric", _metric_name) or default.arrivals,
        ),
        container=_read(own, "container", _dns_label),
    )


def parse_grant(annotations: Mapping[str, str]) -> tuple[GpuRate, int] | None:
    """Read what the extender granted a live pod.

    Returns:
        The share and the index of its GPU on the node, or None if nothing was granted.

    Raises:
        AnnotationError: If only one of the two is there, or one is malformed.
    """
    granted, index = annotations.get(GPU_GRANTED), annotations.get(GPU_INDEX)
    if granted is None and index is None:
        return None
    if granted is None or index is None:
        key = GPU_GRANTED if granted is None else GPU_INDEX
        raise AnnotationError(key, None, f"{GPU_GRANTED} and {GPU_INDEX} together or neither")
    if not re.fullmatch(r"\d{1,3}", index, re.ASCII):
        raise AnnotationError(GPU_INDEX, index, "the index of a GPU on its node, 0 to 999")
    return _wrapped(_gpu_rate, GPU_GRANTED, granted), int(index)


def _read(own: Mapping[str, str], name: str, parse: Callable[[str, str], T]) -> T | None:
    key = PREFIX + name
    return _wrapped(parse, key, own[key]) if key in own else None


def _wrapped(parse: Callable[[str, str], T], key: str, text: str) -> T:
    try:
        return parse(key, text)
    except AnnotationError:
        raise
    except InvalidInput as error:
        raise AnnotationError(error.field, error.value, error.allowed) from error


def _dns_label(key: str, text: str) -> str:
    if not _DNS_LABEL.fullmatch(text):
        allowed = (
            "a DNS label: lower-case letters, digits and '-', at most 63, starting and ending with a letter or digit"
        )
        raise AnnotationError(key, text, allowed)
    return text


def _gpu_rate(key: str, text: str) -> GpuRate:
    return GpuRate.parse(text, field=key)


def _replicas(key: str, text: str) -> int:
    if not _INTEGER.fullmatch(text) or not 1 <= int(text) <= REPLICAS_MOST:
        raise AnnotationError(key, text, f"a whole number of replicas, 1 to {REPLICAS_MOST}")
    return int(text)


def _port(key: str, text: str) -> int:
    if not _INTEGER.fullmatch(text) or not 1 <= int(text) <= 65_535:
        raise AnnotationError(key, text, "a port, 1 to 65535")
    return int(text)


def _money(key: str, text: str) -> float:
    if not _MONEY.fullmatch(text) or float(text) == 0:
        raise AnnotationError(key, text, "a positive amount of dollars per hour, such as 12.50")
    return float(text)


def _mode(key: str, text: str) -> Mode:
    for mode in MODES:
        if text == mode:
            return mode
    raise AnnotationError(key, text, "one of " + ", ".join(MODES))


def _path(key: str, text: str) -> str:
    if not _PATH.fullmatch(text):
        raise AnnotationError(key, text, "an absolute URL path of letters, digits and . _ ~ / -")
    return text


def _metric_name(key: str, text: str) -> str:
    if not _METRIC_NAME.fullmatch(text):
        raise AnnotationError(key, text, "a Prometheus metric name")
    return text


def _upstreams(key: str, text: str, stage: str) -> tuple[str, ...]:
    names = tuple(_dns_label(key, name.strip()) for name in text.split(","))
    if len(set(names)) != len(names) or stage in names or len(names) > _MAX_UPSTREAMS:
        allowed = f"up to {_MAX_UPSTREAMS} different upstream stages, comma-separated, the stage itself not among them"
        raise AnnotationError(key, text, allowed)
    return names


def _check_gpu_keys(own: Mapping[str, str], gpu_rate: GpuRate | None) -> None:
    if gpu_rate is not None:
        return
    for name in ("gpu-rate-min", "gpu-rate-max", "gpu-memory"):
        if PREFIX + name in own:
            raise AnnotationError(
                PREFIX + name, own[PREFIX + name], f"only beside {GPU_RATE}: a stage without it runs on CPU alone"
            )


def _check_bounds(own: Mapping[str, str], bounds: Bounds, gpu_rate: GpuRate | None) -> None:
    pairs = (
        ("gpu-rate", bounds.gpu_rate_min, bounds.gpu_rate_max),
        ("replicas", bounds.replicas_min, bounds.replicas_max),
        ("cpu", bounds.cpu_min, bounds.cpu_max),
    )
    for name, low, high in pairs:
        if low is not None and high is not None and low > high:  # type: ignore[operator]  # both of one row have one type
            key = f"{PREFIX}{name}-min"
            raise AnnotationError(key, own[key], f"at most {PREFIX}{name}-max, which is {own[PREFIX + name + '-max']}")
    if gpu_rate is None:
        return
    if bounds.gpu_rate_min is not None and gpu_rate < bounds.gpu_rate_min:
        raise AnnotationError(GPU_RATE, str(gpu_rate), f"at least {PREFIX}gpu-rate-min, which is {bounds.gpu_rate_min}")
    if bounds.gpu_rate_max is not None and gpu_rate > bounds.gpu_rate_max:
        raise AnnotationError(GPU_RATE, str(gpu_rate), f"at most {PREFIX}gpu-rate-max, which is {bounds.gpu_rate_max}")
