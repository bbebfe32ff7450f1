"""The controller's own Prometheus metrics, registered once and written by whichever term of leadership is on."""

from __future__ import annotations

from typing import Final
from weakref import WeakKeyDictionary

from prometheus_client import CollectorRegistry, Counter, Gauge

from controller.journal import RoundReport
from controller.llm.client import Usage
from controller.memory.copies import Losses
from controller.memory.mirror import MirroredMemory

__all__ = ["ControllerMetrics"]

_LABELS: Final = ("namespace", "pipeline")


class ControllerMetrics:
    """What Prometheus sees of the controller.

    Args:
        registry: Where the metrics go.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._rounds = Counter(
            "sair_controller_rounds", "Rounds by who decided.", (*_LABELS, "policy"), registry=registry
        )
        self._reflexes = Counter("sair_controller_reflexes", "Times the reflex acted.", _LABELS, registry=registry)
        self._p99 = Gauge(
            "sair_pipeline_p99_seconds", "End-to-end P99 latency of the last window.", _LABELS, registry=registry
        )
        self._slo = Gauge("sair_pipeline_slo_seconds", "Upper bound of P99.", _LABELS, registry=registry)
        self._cost = Gauge("sair_pipeline_cost_dollars_per_hour", "Effective cost.", _LABELS, registry=registry)
        self._misses = Counter(
            "sair_pipeline_slo_misses", "Requests later than the SLO, as seen in windows.", _LABELS, registry=registry
        )
        self._residual = Gauge(
            "sair_pipeline_model_residual",
            "Smoothed log of observed over predicted P99; 0 while the model holds, beyond 0.41 condition ModelDrift.",
            _LABELS,
            registry=registry,
        )
        self._unsaved = Gauge(
            "sair_controller_unsaved_experiences", "Experiences that wait for Redis.", registry=registry
        )
        self._waiting = Gauge(
            "sair_controller_waiting_journal_records", "Journal records that wait for Redis.", registry=registry
        )
        self._lost = Counter(
            "sair_controller_lost_journal_records",
            "Journal records dropped while Redis took none for too long, or missing from a Redis that lost them.",
            registry=registry,
        )
        self._refused = Counter(
            "sair_controller_refused_writes",
            "Writes to Redis that came after another controller had begun to lead the pipeline.",
            registry=registry,
        )
        self._counted: WeakKeyDictionary[MirroredMemory, Losses] = WeakKeyDictionary()
        # Asked for when somebody looks: with a thousand pipelines adding it up costs more than a scrape.
        self._unsaved.set_function(lambda: sum(each.unsaved for each in self._counted))
        self._waiting.set_function(lambda: sum(each.waiting for each in self._counted))
        self._failures = Counter(
            "sair_controller_loop_failures", "Times a pipeline's loop failed.", _LABELS, registry=registry
        )
        self._model_calls = Counter(
            "sair_controller_model_calls",
            "Calls of the language model that may be charged for, by purpose: decision or probe.",
            (*_LABELS, "purpose"),
            registry=registry,
        )
        self._model_tokens = Counter(
            "sair_controller_model_tokens",
            "Tokens of those calls, in or out.",
            (*_LABELS, "direction"),
            registry=registry,
        )
        self._model_dollars = Counter(
            "sair_controller_model_dollars", "Dollars of those calls, at the prices set.", _LABELS, registry=registry
        )
        self._leader = Gauge(
            "sair_controller_leader", "1 while this process leads or holds a shard.", registry=registry
        )
        self._shards = Gauge("sair_controller_shards", "Shards that this process holds.", registry=registry)
        self._held: set[int] = set()

    def memory(self, memory: MirroredMemory) -> None:
        """Show what waits, and count what was lost or refused since this memory was shown last. Each shard has a memory of its own."""
        before, now = self._counted.get(memory, Losses()), memory.losses
        self._lost.inc(now.records - before.records)
        self._refused.inc(now.refused - before.refused)
        self._counted[memory] = now

    def round(self, report: RoundReport) -> None:
        """Count a round and show what it saw."""
        place = report.view.key.split("/")
        self._rounds.labels(*place, report.decision.policy if report.decision else "none").inc()
        self._slo.labels(*place).set(report.view.slo_s)
        if report.learned is not None:
            self._residual.labels(*place).set(report.learned.residual)
        seen = report.observation
        if seen is not None:
            self._cost.labels(*place).set(seen.cost_per_hour)
            self._misses.labels(*place).inc(max(0, seen.missed))
            if seen.p99_s is not None:
                self._p99.labels(*place).set(seen.p99_s)

    def reflex(self, key: str) -> None:
        """Count a reflex of the pipeline ``namespace/name``."""
        self._reflexes.labels(*key.split("/")).inc()

    def failed(self, key: str) -> None:
        """Count a failure of a pipeline's loop."""
        self._failures.labels(*key.split("/")).inc()

    def asked(self, key: str, usage: Usage, dollars: float) -> None:
        """Count a call of the language model for the pipeline ``namespace/name``."""
        place = key.split("/")
        self._model_calls.labels(*place, usage.purpose).inc()
        self._model_tokens.labels(*place, "in").inc(usage.tokens_in)
        self._model_tokens.labels(*place, "out").inc(usage.tokens_out)
        self._model_dollars.labels(*place).inc(dollars)

    def leading(self, leads: bool, shard: int = 0) -> None:
        """Show whether this process leads, or holds a shard; who holds none shows no pipelines."""
        (self._held.add if leads else self._held.discard)(shard)
        self._shards.set(len(self._held))
        self._leader.set(bool(self._held))
        if not self._held:
            for gauge in (self._p99, self._slo, self._cost, self._residual):
                gauge.clear()
            self._unsaved.set(0)
            self._waiting.set(0)

    def forget(self, key: str) -> None:
        """Show no more of a pipeline that is gone; its counters stay, as counters do."""
        for gauge in (self._p99, self._slo, self._cost, self._residual):
            gauge.remove_by_labels(dict(zip(_LABELS, key.split("/"), strict=True)))
