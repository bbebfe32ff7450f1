"""The plant: engine, cluster and bill of one simulated pipeline, as every controller and baseline sees and moves it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from controller.simulation.cluster import Cluster, Replica
from controller.simulation.engine import Engine, Requests
from controller.simulation.pipelines import PipelineSetup
from controller.simulation.service import stream
from controller.simulation.windows import observe_stage, peak_rate, slope
from controller.state import Allocation, ClusterRoom, KnobOutcome, Observation, StageGauge
from sair.errors import InvalidInput

__all__ = ["BillSample", "Plant"]

GPU_RATE_DELAY_S: Final = 0.1
"""kubelet shows a changed grant to the hook in about 0.1 s (measured)."""
CPU_RESIZE_DELAY_S: Final = 0.2
"""An in-place resize of a pod; assumed."""
_TICK_S: Final = 1.0
"""How often what waits for room is tried again."""
_COLD_STARTS: Final = 4096


@dataclass(frozen=True, slots=True)
class BillSample:
    """Dollars spent since the beginning, with shares of cards and with whole cards."""

    time_s: float
    effective_usd: float
    whole_card_usd: float


class Plant:
    """One pipeline under a load in its cluster.

    Args:
        setup: The pipeline; its initial replicas are ready at time 0.
        arrivals_s: Sorted arrival times, seconds.
        seed: Of demands, fan-outs and cold starts.
        requests: Drawn before for the same stages, arrivals and seed: runs that differ in their policy alone can share them.
    """

    def __init__(
        self, setup: PipelineSetup, arrivals_s: NDArray[np.float64], seed: int, *, requests: Requests | None = None
    ) -> None:
        plans = [stage.plan for stage in setup.stages]
        self.setup = setup
        self.view = setup.view
        self.engine = Engine(plans, requests or Requests(plans, arrivals_s, setup.timeout_s, seed))
        self.cluster = Cluster(setup.nodes)
        self.wished = dict(setup.initial)
        """Allocation of each stage as last asked for."""
        self._stages = {stage.plan.name: stage for stage in setup.stages}
        self._waiting: list[Replica] = []
        self._created = dict.fromkeys(self._stages, 0)
        self._next_server = 0
        self._cold_starts: dict[str, list[float]] = {
            name: stage.cold_start.draw(stream(seed, "cold start", name), _COLD_STARTS).tolist()
            for name, stage in self._stages.items()
        }
        self.bill = [BillSample(0.0, 0.0, 0.0)]
        self._billed_at = 0.0
        self._effective_usd = 0.0
        self._whole_card_usd = 0.0
        self._next_tick = _TICK_S
        for name, allocation in self.wished.items():
            for _ in range(allocation.replicas):
                reason = self._create(name, allocation, warm=True)
                if reason:
                    raise InvalidInput(f"initial allocation of {name}", allocation, f"one that fits: {reason}")
        self.engine.advance(0.0)

    @property
    def now(self) -> float:
        """Simulated time, seconds."""
        return self.engine.now

    # Time

    def advance(self, to: float) -> None:
        """Let everything up to and including ``to`` happen."""
        while self.engine.now < to:
            at = min(to, self._next_tick)
            self.engine.advance(at)
            self._collect()
            if at >= self._next_tick:
                self._next_tick += _TICK_S
                self._settle()
                self._charge()
                self.bill.append(BillSample(at, self._effective_usd, self._whole_card_usd))

    def _charge(self) -> None:
        """Bill the time since the last change at the rates that held."""
        hours = (self.now - self._billed_at) / 3600
        if hours > 0:
            self._effective_usd += hours * self.cluster.cost(self.setup.prices, whole_cards=False)
            self._whole_card_usd += hours * self.cluster.cost(self.setup.prices, whole_cards=True)
            self._billed_at = self.now

    def _collect(self) -> None:
        """Take away the replicas that have finished their last batch, billed up to that moment."""
        for time, _, server in self.engine.gone:
            if server in self.cluster.replicas:
                self._charge()
                before = [self.cluster.cost(self.setup.prices, whole_cards=whole) for whole in (False, True)]
                del self.cluster.replicas[server]
                after = [self.cluster.cost(self.setup.prices, whole_cards=whole) for whole in (False, True)]
                hours = (self.now - time) / 3600
                self._effective_usd -= hours * (before[0] - after[0])
                self._whole_card_usd -= hours * (before[1] - after[1])
        self.engine.gone.clear()

    # Capacity

    def _create(self, stage: str, allocation: Allocation, *, warm: bool = False) -> str:
        self._next_server += 1
        share = allocation.gpu_rate.milli if allocation.gpu_rate else 0
        memory = self._stages[stage].gpu_memory
        one = Replica(self._next_server, stage, allocation.cpu, allocation.memory, share, share, memory)
        reason = self._start(one, warm=warm)
        if reason and not warm:
            self._waiting.append(one)
        return reason

    def _start(self, one: Replica, *, warm: bool = False) -> str:
        reason = self.cluster.place(one)
        if reason:
            return reason
        number = self._created[one.stage]
        self._created[one.stage] += 1
        one.ready_at = self.now if warm else self.now + self._cold_starts[one.stage][number % _COLD_STARTS]
        share = one.granted_milli / 1000 if one.granted_milli else 1.0
        self.engine.add_replica(one.stage, one.server, one.cpu / 1000, share, one.ready_at)
        return ""

    def grow_at_once(self, stage: str, more: int) -> None:
        """What if there were more replicas: ready now, at the wished knobs, taking no room and costing nothing. For copies only."""
        allocation = self.wished[stage]
        share = allocation.gpu_rate.fraction if allocation.gpu_rate else 1.0
        for _ in range(more):
            self._next_server += 1
            self.engine.add_replica(stage, self._next_server, allocation.cpu / 1000, share, self.now)

    def _settle(self) -> None:
        """Give what has become free to what waits for it: raises first, then replicas in the order of their wishes."""
        short = [one for one in self.cluster.replicas.values() if not one.retiring and self._is_short(one)]
        if self._waiting or short:
            self._charge()
            for one in short:
                self._resize_in_place(one)
            for one in self.cluster.settle_shares():
                at = self.now + GPU_RATE_DELAY_S
                self.engine.set_share(one.stage, one.server, one.granted_milli / 1000, at)
            self._waiting = [one for one in self._waiting if self._start(one)]

    def _is_short(self, one: Replica) -> bool:
        """Some wish for this replica is still open."""
        wanted = self.wished[one.stage]
        return one.granted_milli != one.desired_milli or one.cpu != wanted.cpu or one.memory != wanted.memory

    def apply(self, wanted: Mapping[str, Allocation]) -> list[KnobOutcome]:
        """Ask for allocations; stages not named stay as they are.

        Returns:
            What became of each changed knob. What does not fit stays wished and is granted as soon as there is room.

        Raises:
            InvalidInput: If a stage is unknown or has no such knob.
        """
        changed: list[str] = []
        for name, allocation in wanted.items():
            if name not in self.wished:
                raise InvalidInput("stage", name, "one of " + ", ".join(self.wished))
            if (allocation.gpu_rate is None) == self._stages[name].plan.law.uses_gpu:
                raise InvalidInput(
                    f"{name} gpu rate", allocation.gpu_rate, "a share for a GPU stage and none for a CPU stage"
                )
            if allocation != self.wished[name]:
                changed.append(name)
        self._charge()
        before = {name: self.wished[name] for name in changed}
        reasons: dict[tuple[str, str], str] = {}
        for name in changed:
            self.wished[name] = wanted[name]
            if wanted[name].replicas < before[name].replicas:
                self._remove(name, before[name].replicas - wanted[name].replicas)
        for name in changed:
            reasons.update(self._resize(name, wanted[name]))
        self._settle()
        for name in changed:
            for _ in range(wanted[name].replicas - before[name].replicas):
                reason = self._create(name, wanted[name])
                if reason:
                    reasons[name, "replicas"] = reason
        self._collect()
        return [outcome for name in changed for outcome in self._outcomes(name, before[name], reasons)]

    def _remove(self, stage: str, count: int) -> None:
        """Take away what serves least: what waits for room, then what starts, then the youngest."""
        waiting = [one for one in self._waiting if one.stage == stage][::-1][:count]
        self._waiting = [one for one in self._waiting if one not in waiting]
        live = [one for one in self.cluster.replicas.values() if one.stage == stage and not one.retiring]
        live.sort(key=lambda one: (one.ready_at <= self.now, -one.server))
        for one in live[: count - len(waiting)]:
            one.retiring = True
            one.desired_milli = one.granted_milli
            self.engine.remove_replica(stage, one.server)

    def _resize(self, stage: str, wanted: Allocation) -> dict[tuple[str, str], str]:
        reasons: dict[tuple[str, str], str] = {}
        for one in self._waiting:
            if one.stage == stage:
                one.cpu, one.memory = wanted.cpu, wanted.memory
                one.desired_milli = one.granted_milli = wanted.gpu_rate.milli if wanted.gpu_rate else 0
        for one in self._live(stage):
            assert one.node is not None  # noqa: S101 - live replicas are placed
            node = self.cluster.plans[one.node].name
            if wanted.gpu_rate is not None:
                one.desired_milli = wanted.gpu_rate.milli
            self._resize_in_place(one)
            if one.cpu != wanted.cpu:
                reasons[stage, "cpu"] = f"{node} has not {wanted.cpu - one.cpu}m CPU left"
            if one.memory != wanted.memory:
                reasons[stage, "memory"] = f"{node} has not {wanted.memory - one.memory}Mi left"
        return reasons

    def _resize_in_place(self, one: Replica) -> None:
        """Give a replica the CPU and memory its stage is wished to have, each as far as its node has room."""
        wanted = self.wished[one.stage]
        assert one.node is not None  # noqa: S101 - live replicas are placed
        if one.cpu != wanted.cpu and self.cluster.free_cpu(one.node) + one.cpu >= wanted.cpu:
            one.cpu = wanted.cpu
            self.engine.set_cores(one.stage, one.server, one.cpu / 1000, self.now + CPU_RESIZE_DELAY_S)
        if one.memory != wanted.memory and self.cluster.free_memory(one.node) + one.memory >= wanted.memory:
            one.memory = wanted.memory

    def _live(self, stage: str) -> list[Replica]:
        return [one for one in self.cluster.replicas.values() if one.stage == stage and not one.retiring]

    def _outcomes(self, stage: str, before: Allocation, reasons: Mapping[tuple[str, str], str]) -> list[KnobOutcome]:
        wanted, live = self.wished[stage], self._live(stage)
        found = [("replicas", before.replicas, wanted.replicas, len(live))]
        found.append(("cpu", before.cpu, wanted.cpu, min((one.cpu for one in live), default=wanted.cpu)))
        found.append(("memory", before.memory, wanted.memory, min((one.memory for one in live), default=wanted.memory)))
        if wanted.gpu_rate is not None and before.gpu_rate is not None:
            granted = min((one.granted_milli for one in live), default=wanted.gpu_rate.milli)
            found.append(("gpu_rate", before.gpu_rate.milli, wanted.gpu_rate.milli, granted))
        outcomes = []
        for knob, old, wish, granted in found:
            if wish != old:
                reason = "" if granted == wish else reasons.get((stage, knob), "the replica's card is full: reserved")
                outcomes.append(KnobOutcome(stage, knob, wish, granted, reason))
        return outcomes

    # What can be seen

    def room(self) -> ClusterRoom:
        """What the cluster could still hold."""
        return self.cluster.room()

    def replicas(self, stage: str) -> tuple[int, int]:
        """(ready, starting) replicas of a stage; those that wait for room are neither."""
        live = self._live(stage)
        ready = sum(one.ready_at <= self.now for one in live)
        return ready, len(live) - ready

    def gauges(self, window_s: float) -> list[StageGauge]:
        """Queues right now and arrivals over the last ``window_s`` seconds."""
        gauges = []
        for place, name in enumerate(self.wished):
            now = self.engine.sample(place)
            plan = self.setup.stages[place].plan
            if plan.after:
                then = self.engine.sample_at(place, self.now - window_s)
                rate = (now.arrived - then.arrived) / max(now.time_s - then.time_s, 1e-9)
            else:
                rate = plan.fan_out * self.entering_per_s(window_s)
            gauges.append(StageGauge(name, now.queue, rate, self.wished[name], self.replicas(name)[0]))
        return gauges

    def entering_per_s(self, window_s: float, at_s: float | None = None) -> float:
        """Requests per second that entered in the ``window_s`` seconds before a moment; before now if None."""
        arrivals, end = self.engine.requests.arrivals, self.now if at_s is None else at_s
        return (bisect_right(arrivals, end) - bisect_right(arrivals, end - window_s)) / window_s

    def cost_per_hour(self, window_s: float) -> float:
        """Effective cost over the last ``window_s`` seconds, $/h."""
        self._charge()
        first = self.bill[max(0, bisect_right(self.bill, self.now - window_s, key=lambda one: one.time_s) - 1)]
        if self.now <= first.time_s:
            return self.cluster.cost(self.setup.prices, whole_cards=False)
        return (self._effective_usd - first.effective_usd) / (self.now - first.time_s) * 3600

    def observe(self, window_s: float, peak_since_s: float | None = None) -> Observation:
        """The pipeline over the last ``window_s`` seconds.

        Args:
            window_s: Length of the window, at most 900 s; from the first sample on if the run is younger.
            peak_since_s: From when on the highest arrival rate counts; None: the window.
        """
        since = max(0.0, self.now - window_s)
        span = max(self.now - since, 1e-9)
        stages = tuple(
            observe_stage(
                self.engine,
                place,
                since=since,
                wished=self.wished[name],
                replicas=self.replicas(name),
                granted_milli=min(
                    (one.granted_milli for one in self._live(name) if one.ready_at <= self.now), default=None
                ),
            )
            for place, name in enumerate(self.wished)
        )
        arrivals = self.engine.requests.arrivals
        first = bisect_right(arrivals, since, 0, self.engine.arrived)
        counts = np.histogram(
            arrivals[first : self.engine.arrived], np.linspace(since, self.now, max(2, round(span) + 1))
        )[0]
        latencies = self.engine.latencies(since)
        late = int((latencies > self.view.slo_s).sum())
        failed = len(self.engine.failed_t) - bisect_right(self.engine.failed_t, since)
        p50, p99 = np.percentile(latencies, [50, 99]) if len(latencies) else (None, None)
        return Observation(
            pipeline=self.view.key,
            time_s=self.now,
            window_s=span,
            age_s=0.0,
            stages=stages,
            arrivals_per_s=(self.engine.arrived - first) / span,
            arrivals_slope=slope(counts * (len(counts) / span), span / len(counts)),
            arrivals_peak_per_s=peak_rate(arrivals, since if peak_since_s is None else peak_since_s, self.now),
            p50_s=None if p50 is None else float(p50),
            p99_s=None if p99 is None else float(p99),
            slo_s=self.view.slo_s,
            goodput_per_s=(len(latencies) - late) / span,
            completed=len(latencies),
            missed=late + failed + self.engine.open_older_than(self.view.slo_s),
            cost_per_hour=self.cost_per_hour(window_s),
        )

    def copy(self, keep_s: float = 60.0) -> Self:
        """An independent plant that goes on exactly as this one would under the same requests."""
        other = type(self).__new__(type(self))
        other.__dict__.update(self.__dict__)
        other.engine = self.engine.copy(keep_s)
        other.cluster = self.cluster.copy()
        other.wished = dict(self.wished)
        other._waiting = [replace(one) for one in self._waiting]
        other._created = dict(self._created)
        other.bill = self.bill[max(0, bisect_right(self.bill, self.now - keep_s, key=lambda one: one.time_s) - 1) :]
        return other

    @property
    def spent(self) -> BillSample:
        """The bill up to now."""
        self._charge()
        return BillSample(self.now, self._effective_usd, self._whole_card_usd)

    def stage_names(self) -> Sequence[str]:
        """In topological order."""
        return tuple(self.wished)
