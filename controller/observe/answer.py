"""What a Prometheus server answers, as scrapes of pods. Pure; labels and values are untrusted input.

The samples of one scrape carry one time, so that what a pod said at a moment can be put together again just as if it had been asked
itself. https://prometheus.io/docs/prometheus/latest/querying/api/
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from controller.observe.exposition import MAX_SAMPLES, Said, Scrape, needed_of, scrape_of, wanted_of
from sair.annotations import MetricsEndpoint
from sair.errors import MetricError, MetricsUnavailable, WireError
from sair.wire import decode

__all__ = ["PodAnswer", "Series", "by_pod", "missing_of", "parse_declared", "parse_matrix", "scrapes_of"]

_WHAT = "Prometheus' answer"
_NO_LABELS = frozenset({"__name__", "le"})
"""Job and instance are among those that tell series apart: where now one source counts and now another, each has its own counters."""


class Series(msgspec.Struct, frozen=True):
    """Raw samples of one series; those of native histograms are left aside."""

    metric: dict[str, str]
    values: list[tuple[float, str]] = []


class _Matrix(msgspec.Struct, frozen=True, rename="camel"):
    result_type: str
    result: list[Series] = []


class _Queried(msgspec.Struct, frozen=True):
    status: str
    error: str = ""
    data: _Matrix | None = None


class _Declared(msgspec.Struct, frozen=True):
    status: str
    error: str = ""
    data: dict[str, msgspec.Raw] = {}


@dataclass(frozen=True, slots=True)
class PodAnswer:
    """What was found of one pod."""

    scrapes: tuple[Scrape, ...]
    """Oldest first; those with values that cannot be are left out."""
    problem: str = ""
    """What is wrong with the newest of them, or why there is none."""


def parse_matrix(body: bytes) -> list[Series]:
    """Read the answer to a query for ranges of samples.

    Raises:
        MetricsUnavailable: If the server says that it could not answer; with its words, cut short.
        WireError: If it is no such answer.
    """
    answer = decode(body, _Queried, what=_WHAT)
    _check(answer)
    if answer.data is None or answer.data.result_type != "matrix":
        raise WireError(f"{_WHAT}.data", answer.data and answer.data.result_type, "a matrix")
    return answer.data.result


def parse_declared(body: bytes) -> bool:
    """Read the answer to a question for the metadata of one metric: whether any target that is scraped declares it.

    Raises:
        MetricsUnavailable: If the server says that it could not answer.
        WireError: If it is no such answer.
    """
    answer = decode(body, _Declared, what=_WHAT)
    _check(answer)
    return bool(answer.data)


def _check(answer: _Queried | _Declared) -> None:
    if answer.status != "success":
        raise MetricsUnavailable(f"Prometheus: {answer.error[:200] or answer.status[:80]}")


def by_pod(series: Iterable[Series], namespace_label: str, pod_label: str) -> dict[tuple[str, str], list[Series]]:
    """Series by namespace and name of the pod; those that lack a label are nobody's."""
    pods: dict[tuple[str, str], list[Series]] = {}
    for each in series:
        namespace, pod = each.metric.get(namespace_label), each.metric.get(pod_label)
        if namespace is not None and pod is not None:
            pods.setdefault((namespace, pod), []).append(each)
    return pods


def missing_of(series: Iterable[Series], endpoint: MetricsEndpoint) -> list[str]:
    """Names of the metrics a stage cannot do without of which a pod has no sample: those may be declared and still unused."""
    shown = {each.metric.get("__name__") for each in series if each.values}
    return [name for name, samples in needed_of(endpoint) if samples not in shown]


def scrapes_of(
    series: Sequence[Series], endpoint: MetricsEndpoint, declared: Collection[str], after_s: float
) -> PodAnswer:
    """Put one pod's scrapes together again.

    Where several jobs or ports of a pod export what is looked for, the one that was scraped last counts, for they would count twice.

    Args:
        series: All of the pod.
        endpoint: What the metrics are called.
        declared: Metrics without a sample that are known all the same: they count as 0.
        after_s: Only scrapes later than this are put together, Unix seconds.
    """
    needed = {samples for _name, samples in needed_of(endpoint)}
    sources: dict[tuple[str, str], list[Series]] = {}
    for each in series:
        sources.setdefault((each.metric.get("job", ""), each.metric.get("instance", "")), []).append(each)
    newest = {
        source: max(
            (one.values[-1][0] for one in own if one.values and one.metric.get("__name__") in needed), default=None
        )
        for source, own in sources.items()
    }
    candidates = [(-time_s, source) for source, time_s in newest.items() if time_s is not None]
    if not candidates:
        return PodAnswer(
            (), "Prometheus has no samples of it; does it scrape the pod, with labels for namespace and pod?"
        )
    own = sources[min(candidates)[1]]
    unknown = [name for name in missing_of(own, endpoint) if name not in declared]
    if unknown:
        return PodAnswer((), str(MetricError(unknown[0], None, "the metric to be exported")))
    return _put_together(own, endpoint, needed, after_s)


def _put_together(series: Sequence[Series], endpoint: MetricsEndpoint, needed: set[str], after_s: float) -> PodAnswer:
    wanted = set(wanted_of(endpoint))
    moments: dict[float, dict[str, list[Said]]] = {}
    for each in series:
        name = each.metric.get("__name__", "")
        if name not in wanted:
            continue
        others = tuple(sorted((k, v) for k, v in each.metric.items() if k not in _NO_LABELS))
        le = each.metric.get("le")
        for time_s, text in each.values:
            if time_s > after_s:
                moments.setdefault(time_s, {}).setdefault(name, []).append(Said(others, le, _number(text)))
    scrapes, problem = [], ""
    for time_s, samples in sorted(moments.items()):
        if not needed & samples.keys():
            continue
        try:
            if sum(map(len, samples.values())) > MAX_SAMPLES:
                raise MetricError("samples", len(samples), f"at most {MAX_SAMPLES} of a stage's own metrics")
            scrapes.append(scrape_of(samples, endpoint, time_s))
            problem = ""
        except MetricError as error:
            problem = str(error)
    return PodAnswer(tuple(scrapes), problem)


def _number(text: str) -> float:
    """What is no number is none that a metric may have either."""
    try:
        return float(text)
    except ValueError:
        return float("nan")
