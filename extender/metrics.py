"""What the extender measures about itself and about the ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from extender.ledger import Ledger
from sair.quantities import MILLI_PER_GPU

__all__ = ["Metrics"]

_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Metrics:
    """The extender's metrics in one registry.

    Args:
        registry: Where they go.
        ledger: Whose cards are shown.
        leads: Whether this extender grants at the moment.
    """

    def __init__(self, registry: CollectorRegistry, ledger: Ledger, leads: Callable[[], bool]) -> None:
        self.requests_s = Histogram(
            "sair_extender_request_seconds",
            "Time taken by the scheduler's requests.",
            ("verb", "outcome"),
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self.grants_s = Histogram(
            "sair_extender_grant_seconds",
            "Time from the decision to change a live pod's share until it is written.",
            ("direction",),
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self.grant_failures = Counter(
            "sair_extender_grant_failures_total",
            "Grants that could not be written at the first attempt.",
            ("kind",),
            registry=registry,
        )
        self.reports = Counter(
            "sair_extender_wishes_total", "Wishes of live pods by outcome.", ("outcome",), registry=registry
        )
        leading = Gauge("sair_extender_granting", "1 while this extender is the one that grants.", registry=registry)
        leading.set_function(lambda: float(leads()))
        registry.register(_Cards(ledger))


class _Cards(Collector):
    """Reads the ledger when it is scraped, so that cards that are gone leave no series behind."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def collect(self) -> Iterator[Metric]:
        """Yield the ledger's gauges."""
        labels = ("node", "gpu")
        share = GaugeMetricFamily(
            "sair_extender_gpu_share", "Share of a GPU's time that is granted or about to be, 0 to 1.", labels=labels
        )
        kept = GaugeMetricFamily(
            "sair_extender_gpu_share_wished", "Share that waiting raises ask for beyond it.", labels=labels
        )
        memory = GaugeMetricFamily(
            "sair_extender_gpu_memory_bytes", "GPU memory that replicas are entitled to.", labels=labels
        )
        troubled = GaugeMetricFamily(
            "sair_extender_gpu_trouble", "1 while a card holds more than it has, or is gone.", labels=labels
        )
        for account in self._ledger.accounts():
            names = (account.seat[0], str(account.seat[1]))
            share.add_metric(names, account.share_milli / MILLI_PER_GPU)
            kept.add_metric(names, account.wished_milli / MILLI_PER_GPU)
            memory.add_metric(names, account.memory_mi * 2**20)
            troubled.add_metric(names, float(bool(account.trouble())))
        yield from (share, kept, memory, troubled)
        waiting = GaugeMetricFamily("sair_extender_raises_waiting", "Live pods whose raise waits for room.")
        waiting.add_metric((), len(self._ledger.waiting()))
        yield waiting
