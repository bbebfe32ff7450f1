"""Carrying out what the ledger orders: shares are written onto pods, wishes' outcomes are reported, lost answers are looked up."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from extender.entries import (
    CardProblem,
    Entry,
    GrantFailed,
    LookedUp,
    LookUp,
    Order,
    Outcome,
    PodGone,
    PodSeen,
    Report,
    WriteGrant,
    WriteWish,
)
from extender.ledger import Ledger
from extender.metrics import Metrics
from extender.reminding import Reminder
from extender.replica import Replica, parse_replica
from sair.annotations import GPU_GRANTED, GPU_RATE
from sair.errors import Conflict, NotFound, SairError
from sair.kube.backoff import Backoff
from sair.kube.client import Api
from sair.kube.events import Recorder, Reference, Severity
from sair.kube.patch import merge_patch_annotations
from sair.kube.resources import NODES, PODS
from sair.logs import get_logger

__all__ = ["COMPONENT", "Granter"]

COMPONENT = "extender"

_BACKOFF = Backoff(base_s=0.05, cap_s=5.0)

_LOG = get_logger(COMPONENT)


class Granter:
    """The only way to the ledger: tell it something, and what it then orders is done.

    Args:
        api: Client.
        ledger: Decides.
        recorder: Takes the Events.
        metrics: Counts.
        spawn: Starts a task that nobody waits for; an unexpected error in it must end the program.
        monotonic: Local time in seconds, the ledger's clock.
        reminder: Tells kubelet of grants once more.
        backoff: Waits after failures in a row, per pod.
    """

    def __init__(
        self,
        api: Api,
        ledger: Ledger,
        recorder: Recorder,
        metrics: Metrics,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        monotonic: Callable[[], float],
        reminder: Reminder,
        backoff: Backoff = _BACKOFF,
    ) -> None:
        self._api = api
        self._ledger = ledger
        self._recorder = recorder
        self._metrics = metrics
        self._spawn = spawn
        self._monotonic = monotonic
        self._reminder = reminder
        self._backoff = backoff
        self._failures: Counter[str] = Counter()

    def tell(self, entry: Entry) -> None:
        """Tell the ledger something and begin what it orders; returns at once."""
        if isinstance(entry, PodGone):
            self._failures.pop(entry.uid, None)
        for order in self._ledger.fold(entry, self._monotonic()):
            self._begin(order)

    async def read(self, replica: Replica) -> Replica | None:
        """Read a pod from the API server and tell the ledger what it is like now; None if it is gone.

        Raises:
            ApiUnavailable: If it could not be read.
        """
        try:
            now = parse_replica(await self._api.get(PODS.path(replica.namespace, replica.name)))
        except NotFound:
            now = None
        if now is None or now.uid != replica.uid:
            self.tell(PodGone(replica.uid))
            return None
        self.tell(PodSeen(now))
        return now

    def _begin(self, order: Order) -> None:
        match order:
            case WriteGrant() | WriteWish():
                self._spawn(self._write(order))
            case LookUp(replica):
                self._spawn(self._look_up(replica))
            case Report(replica, outcome, text):
                self._report(replica, outcome, text)
            case CardProblem(node, index, text):
                _LOG.warning("gpu in trouble" if text else "gpu is in order again", node=node, gpu=index, problem=text)
                if text:
                    note = f"gpu {index}: {text}; nothing is raised on it until that is over"
                    self._recorder.record(
                        Reference(NODES, node), "GpuOvercommitted", note, action="Accounting", severity="Warning"
                    )

    async def _write(self, order: WriteGrant | WriteWish) -> None:
        replica, began_s = order.replica, self._monotonic()
        annotations = {GPU_RATE: str(order.rate)}
        if isinstance(order, WriteGrant):
            annotations[GPU_GRANTED] = str(order.rate)
        try:
            raw = await merge_patch_annotations(
                self._api,
                PODS,
                replica.namespace,
                replica.name,
                annotations,
                component=COMPONENT,
                uid=replica.uid,
                resource_version=str(replica.version),
            )
            written = parse_replica(raw)
        except NotFound:
            self.tell(PodGone(replica.uid))
            return
        except SairError as error:
            await self._recover(replica, error)
            return
        self._failures.pop(replica.uid, None)
        if isinstance(order, WriteGrant):
            raised = replica.granted is not None and order.rate > replica.granted
            self._metrics.grants_s.labels("raise" if raised else "lowering").observe(self._monotonic() - began_s)
            self._report(replica, Outcome.GRANTED, f"{replica.granted} → {order.rate} of gpu {replica.index}")
            self._spawn(self._reminder.remind(written))
        self.tell(PodSeen(written))

    async def _recover(self, replica: Replica, error: SairError) -> None:
        """After a failed write: find out what the pod is like, then let the ledger decide anew."""
        self._failures[replica.uid] += 1
        self._metrics.grant_failures.labels(type(error).__name__).inc()
        if not isinstance(error, Conflict) or self._failures[replica.uid] > 1:
            _LOG.warning(
                "a pod's share not written", pod=replica.key, error=str(error), failures=self._failures[replica.uid]
            )
        while True:
            failures = self._failures[replica.uid] - isinstance(error, Conflict)
            await asyncio.sleep(self._backoff.delay_s(failures, random.random()))
            try:
                if await self.read(replica) is not None:
                    self.tell(GrantFailed(replica.uid))
                return
            except SairError as again:
                self._failures[replica.uid] += 1
                error = again

    async def _look_up(self, replica: Replica) -> None:
        try:
            now = await self.read(replica)
        except SairError as error:
            _LOG.warning("unanswered write could not be looked up; it stays charged", pod=replica.key, error=str(error))
            return
        if now is not None:
            self.tell(LookedUp(now.uid, now.version))

    def _report(self, replica: Replica, outcome: Outcome, text: str) -> None:
        self._metrics.reports.labels(outcome.name.lower()).inc()
        _LOG.info(outcome.value, pod=replica.key, text=text)
        regarding = Reference(PODS, replica.name, replica.namespace, replica.uid)
        severity: Severity = "Normal" if outcome is Outcome.GRANTED else "Warning"
        self._recorder.record(regarding, outcome.value, text, action="Granting", severity=severity)
