"""What the identified queueing model predicts for an allocation at a load: utilisation, P99, cost, reserve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from controller.analogues import GROWTH_LEAST
from controller.batches import batch_sojourn
from controller.capacity import Cards, highest_cpu
from controller.cost import effective_cost
from controller.decision import Situation
from controller.granting import most_cores, most_milli
from controller.identification import StageFit, fitted_curve, service_time_error
from controller.knowledge import Knowledge
from controller.model import Array, ServiceCurve, StageLoad, capacity_per_s, pipeline_p99_s, sojourn, utilisation
from controller.peak import kept_rate, peak_to_serve, reserve_rate
from controller.state import Allocation, ClusterRoom, PipelineView, StageView
from controller.tuning import Tuning

__all__ = ["REPLICAS_AHEAD", "Forecast", "PipelineModel", "StageModel", "visits"]

_SLOPE_SIGNIFICANCE = 3.0
_CORRECTIONS = (1.0, 2.0)
"""Bounds of the correction: a model is not believed to be too pessimistic, for the P99 of one window's few requests is mostly too low."""
REPLICAS_AHEAD = 6
"""Replicas beyond the present ones that a plan looks at; the next round looks further."""


_Standing = tuple[int, float, float]
"""Replicas that serve, cores and GPU share of each."""
_NONE_STANDS: Final[_Standing] = (0, 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class Forecast:
    """What is predicted for one set of allocations."""

    p99_s: float
    cost_per_hour: float
    utilisations: dict[str, float]
    reserve_shortfall: float
    """Largest share of the reserve that a stage lacks at its highest knobs; 0 if all have it."""


@dataclass(frozen=True, slots=True)
class StageModel:
    """One stage with what is known of it now."""

    view: StageView
    fit: StageFit
    visits: float
    """Tasks at this stage per end-to-end request."""
    allocation: Allocation
    ready: int
    backlog: float
    """Tasks waiting now."""
    room: ClusterRoom
    most_milli: int | None = None
    """What replicas are granted while more is wished for and not to be had, thousandths; no share beyond it is believed in."""
    most_replicas: int | None = None
    """What there are, ready and starting, while more are wished for and not to be had; no more are believed in."""
    most_cores: float = np.inf
    """The same of the cores that replicas have."""
    curve: ServiceCurve = field(init=False, compare=False, repr=False)
    """As fitted."""
    _cards: list[Cards] = field(default_factory=list, compare=False, repr=False)
    _reaches: dict[int, list[int]] = field(default_factory=dict, compare=False, repr=False)
    _standings: dict[int, list[_Standing]] = field(default_factory=dict, compare=False, repr=False)
    _paces: dict[tuple[float, float, float], float] = field(default_factory=dict, compare=False, repr=False)
    """What was worked out before: a plan asks for the same allocations many times."""

    def __post_init__(self) -> None:
        """Work the curve out once."""
        object.__setattr__(self, "curve", fitted_curve(self.fit))

    def highest_milli(self, replicas: Sequence[int], shares_milli: Sequence[int]) -> npt.NDArray[np.int64]:
        """Highest GPU share the cards would allow so many replicas (rows) that were placed at a share (columns); thousandths, 0 where
        they do not fit."""
        reach = np.array([self._highest_milli(share) for share in shares_milli])
        return np.asarray(reach[:, np.minimum(replicas, reach.shape[1]) - 1].T)

    def highest_cpu(self, replicas: int) -> int:
        """Highest CPU in millicores the nodes would allow so many replicas."""
        reach = self._reaches.get(0)
        if reach is None:
            reach = self._reaches[0] = highest_cpu(self.room, self.view, self.allocation, self._counts)
        return reach[min(replicas, len(reach)) - 1]

    def _highest_milli(self, share_milli: int) -> list[int]:
        """By the number of replicas, from 1 on."""
        reach = self._reaches.get(share_milli)
        if reach is None:
            if not self._cards:
                self._cards.append(Cards(self.room, self.view, self.allocation))
            reach = self._reaches[share_milli] = self._cards[0].highest_rate(self._counts, share_milli)
        return reach

    @property
    def _counts(self) -> range:
        limits, now = self.view.limits, self.allocation.replicas
        return range(1, max(1, limits.replicas_min, min(limits.replicas_max, now + REPLICAS_AHEAD), now) + 1)

    def load(self, arrivals_per_s: float) -> StageLoad:
        """The stage's load if so many requests per second enter the pipeline."""
        return StageLoad(arrivals_per_s * self.visits, max(1.0, self.visits))

    def sojourn(
        self, arrivals_per_s: float, servers: Array | float, cores: Array | float, rate: Array | float, caution: float
    ) -> tuple[Array, Array, Array]:
        """Mean (s), variance (s²) and utilisation at full batches, the service ``caution`` standard deviations of its fit longer."""
        load, curve, cores = self.load(arrivals_per_s), self.curve, np.minimum(cores, self.most_cores)
        if self.most_replicas is not None:
            servers = np.minimum(servers, max(self.most_replicas, 0.5))
        if self.most_milli is not None:
            rate = np.minimum(rate, self.most_milli / 1000)
        longer = 1.0 + caution * service_time_error(self.fit, cores, rate) if caution else 1.0
        once, each = curve.per_batch_s(rate) * longer, curve.per_item_s(cores, rate) * longer
        if curve.batch_max > 1.0:
            mean, variance, _ = batch_sojourn(load, servers, once, each, curve.scv, curve.batch_max)
        else:
            mean, variance = sojourn(load, servers, once + each, curve.scv)
        return mean, variance, utilisation(load, servers, once / curve.batch_max + each)

    def capacity_per_s(self, servers: float, cores: float, rate: float) -> float:
        """What so many replicas can serve with full batches, requests per second at this stage."""
        return capacity_per_s(self.curve, servers, cores, rate)

    def reachable_per_s(self, replicas: int, share_milli: int | None = None, caution: float = 0.0) -> float:
        """Σ over replicas of μ at the highest knobs that limits and room allow, requests per second at this stage.

        Args:
            replicas: How many.
            share_milli: The GPU share at which they are placed before the burst; None: the present one.
            caution: Standard deviations of the fit.
        """
        serving, cores, rate = self._standing(replicas, share_milli)
        return serving * self._pace(cores, rate, caution) if serving else 0.0

    def reachable_grid(self, replicas: Sequence[int], shares_milli: Sequence[int], caution: float) -> Array:
        """The same for every number of replicas (rows) at every share (columns)."""
        found = np.array([self._standings_at(share) for share in shares_milli])
        wanted = np.array(replicas) if self.most_replicas is None else np.minimum(replicas, self.most_replicas)
        serving, cores, rate = found[:, np.clip(wanted, 1, found.shape[1]) - 1].transpose(2, 1, 0)
        serving = np.where(wanted[:, None] < 1, 0.0, serving)
        longer = 1.0 + caution * service_time_error(self.fit, cores, rate) if caution else 1.0
        return np.asarray(serving / self.curve.service_s(cores, rate, self.curve.batch_max) / longer)

    def _standing(self, replicas: int, share_milli: int | None) -> _Standing:
        """How many of so many replicas would serve, and the highest cores and share of each; beyond what a plan looks at, as its most."""
        share = share_milli or 0
        if self.view.uses_gpu and share_milli is None:
            share = self.allocation.gpu_rate.milli if self.allocation.gpu_rate else 1000
        if self.most_replicas is not None:
            replicas = min(replicas, self.most_replicas)
        if replicas < 1:
            return _NONE_STANDS
        known = self._standings_at(share)
        return known[min(replicas, len(known)) - 1]

    def _standings_at(self, share_milli: int) -> list[_Standing]:
        """The same by the number of replicas, from 1 on, placed at a share, thousandths; of a stage without a GPU any."""
        known = self._standings.get(share_milli)
        if known is None:
            known = self._standings[share_milli] = self._all_standing(share_milli)
        return known

    def _all_standing(self, share_milli: int) -> list[_Standing]:
        """Work that out."""
        allocation, uses_gpu = self.allocation, self.view.uses_gpu
        own = allocation.gpu_rate.milli if allocation.gpu_rate else 1000
        reach = self._highest_milli(share_milli) if uses_gpu else None
        found: list[_Standing] = []
        for count, cores in zip(self._counts, self._most_cores(), strict=True):
            milli = 1000
            if reach is not None:
                # What is there already is not measured against the room again.
                there = count <= allocation.replicas
                milli = max(reach[count - 1], min(own, share_milli) if there else 1)
                if not there and reach[count - 1] < share_milli:
                    # Replicas that no card holds wait and serve nothing.
                    found.append(found[-1] if found else _NONE_STANDS)
                    continue
                if self.most_milli is not None:
                    milli = min(milli, self.most_milli)
            found.append((count, cores, milli / 1000))
        return found

    def _most_cores(self) -> list[float]:
        """Highest cores of each replica by their number, from 1 on."""
        own, there = self.allocation.cpu, self.allocation.replicas
        most = (max(self.highest_cpu(count), own if count <= there else 1) / 1000 for count in self._counts)
        return [min(cores, self.most_cores) for cores in most]

    def _pace(self, cores: float, rate: float, caution: float) -> float:
        """What one replica can serve with full batches, ``caution`` standard deviations below the mean; requests per second."""
        key = (cores, rate, caution)
        if key not in self._paces:
            longer = 1.0 + caution * float(service_time_error(self.fit, cores, rate)) if caution else 1.0
            self._paces[key] = self.capacity_per_s(1.0, cores, rate) / longer
        return self._paces[key]


@dataclass(frozen=True, slots=True)
class PipelineModel:
    """The identified model of a pipeline in one situation, and the loads that matter."""

    view: PipelineView
    stages: dict[str, StageModel]
    """Stages that were ever measured."""
    tuning: Tuning
    arrivals_per_s: float
    """The rate that the knobs are set for: the recent peak, its trend, analogues, with the margin."""
    reserve_per_s: float
    """The rate that the reserve must cover; 0 with the reserve off."""
    round_s: float
    kept_per_s: float = 0.0
    """The rate that the reserve covers as far as the present replicas can; none are added for it."""
    correction: float = 1.0
    """Observed P99 over predicted P99, smoothed and bounded; every forecast is multiplied by it."""
    _known: dict[tuple[str, float, int, int, float, float], tuple[float, float, float]] = field(
        default_factory=dict, compare=False, repr=False
    )
    _forecasts: dict[tuple[Any, ...], Forecast] = field(default_factory=dict, compare=False, repr=False)
    _lacking: dict[tuple[str, int, int], float] = field(default_factory=dict, compare=False, repr=False)
    """What was worked out before: a menu asks for the same stage at the same allocation many times."""

    @classmethod
    def of(cls, knowledge: Knowledge, situation: Situation, tuning: Tuning, growth: float = 1.0) -> PipelineModel:
        """Build the model.

        Args:
            knowledge: Fits, ratios, peaks.
            situation: Observation and room.
            tuning: Windows, factors.
            growth: By which factor analogues expect arrivals to grow.
        """
        view, observation, learned = situation.view, situation.observation, knowledge.learned
        seen = visits(view, learned.ratios)
        stages = {}
        for stage in view.stages:
            at, fit = observation.stage(stage.name), learned.fits.get(stage.name)
            if at is None or fit is None:
                continue
            stages[stage.name] = StageModel(
                view=stage,
                fit=fit,
                visits=seen[stage.name],
                allocation=at.allocation,
                ready=at.ready,
                backlog=max(0.0, at.queue_depth) if np.isfinite(at.queue_depth) else 0.0,
                room=situation.room,
                most_milli=most_milli(at),
                most_replicas=at.ready + at.starting if at.waiting else None,
                most_cores=most_cores(at),
            )
        now = situation.now
        recent = peak_to_serve(learned.peaks, now, tuning)
        rate = observation.arrivals_per_s if np.isfinite(observation.arrivals_per_s) else 0.0
        ahead = rate * growth if growth >= GROWTH_LEAST else rate
        wanted = max(recent, ahead, rate + _trend(rate, observation.arrivals_slope, observation.window_s, tuning))
        reserve = reserve_rate(learned.peaks, now, tuning) if tuning.reserve else 0.0
        low, high = _CORRECTIONS
        return cls(
            view,
            stages,
            tuning,
            wanted * tuning.load_margin,
            reserve,
            tuning.interval_s,
            kept_rate(learned.peaks, now, tuning) if tuning.reserve else 0.0,
            min(high, max(low, float(np.exp(learned.residual)))) if tuning.correct_forecasts else 1.0,
        )

    @property
    def complete(self) -> bool:
        """Every stage has been measured."""
        return len(self.stages) == len(self.view.stages)

    def forecast(
        self,
        allocations: Mapping[str, Allocation],
        *,
        arrivals_per_s: float | None = None,
        only_ready: bool = False,
        backlog: bool = True,
        caution: float | None = None,
    ) -> Forecast:
        """Predict for one set of allocations.

        Args:
            allocations: Of all stages; a stage that was never measured or is not observed now adds nothing to the latency.
            arrivals_per_s: Load; the rate the knobs are set for if None.
            only_ready: Replicas that are not ready yet serve nothing.
            backlog: What waits now must be served within a round, on top of the arrivals.
            caution: Standard deviations of the fit; the tuning's if None.
        """
        arrivals = self.arrivals_per_s if arrivals_per_s is None else arrivals_per_s
        careful = self.tuning.caution if caution is None else caution
        servers = {name: each.replicas for name, each in allocations.items()}
        if only_ready:
            servers |= {name: min(servers[name], each.ready) for name, each in self.stages.items() if name in servers}
        key = (tuple(allocations.items()), tuple(servers.values()), arrivals, backlog, careful)
        if key not in self._forecasts:
            self._forecasts[key] = self._forecast(allocations, servers, arrivals, backlog, careful)
        return self._forecasts[key]

    def _forecast(
        self,
        allocations: Mapping[str, Allocation],
        servers: Mapping[str, int],
        arrivals: float,
        backlog: bool,
        careful: float,
    ) -> Forecast:
        sojourns: dict[str, tuple[float, float]] = {}
        busy: dict[str, float] = {}
        shortfall = 0.0
        for stage in self.view.stages:
            model = self.stages.get(stage.name)
            allocation = allocations.get(stage.name)
            if model is None or allocation is None:
                sojourns[stage.name] = (0.0, 0.0)
                continue
            extra = model.backlog / self.round_s / model.visits if backlog else 0.0
            mean, variance, used = self._at(model, arrivals + extra, servers[stage.name], allocation, careful)
            sojourns[stage.name] = mean, variance
            busy[stage.name] = used
            shortfall = max(shortfall, self.shortfall(model, allocation))
        return Forecast(
            self.correction * pipeline_p99_s(self.view, sojourns),
            effective_cost(allocations.values(), self.tuning.prices),
            busy,
            shortfall,
        )

    def _at(
        self, stage: StageModel, arrivals_per_s: float, servers: int, allocation: Allocation, caution: float
    ) -> tuple[float, float, float]:
        """Mean (s), variance (s²) and utilisation of one stage."""
        milli = allocation.gpu_rate.milli if allocation.gpu_rate else 1000
        key = (stage.view.name, arrivals_per_s, servers, milli, float(allocation.cpu), caution)
        if key not in self._known:
            found = stage.sojourn(arrivals_per_s, max(servers, 0.5), allocation.cpu / 1000, milli / 1000, caution)
            self._known[key] = float(found[0]), float(found[1]), float(found[2])
        return self._known[key]

    def shortfall(self, model: StageModel, allocation: Allocation) -> float:
        """Share of the reserve that a stage lacks at its highest knobs, 0 if it has it."""
        milli = allocation.gpu_rate.milli if allocation.gpu_rate else 0
        key = (model.view.name, allocation.replicas, milli)
        if key not in self._lacking:
            needed = self.needed_per_s(model)
            reach = (
                model.reachable_per_s(allocation.replicas, milli or None, self.tuning.caution) if needed > 0 else 0.0
            )
            self._lacking[key] = max(0.0, 1.0 - reach / needed) if needed > 0 else 0.0
        return self._lacking[key]

    def shortfalls(self, model: StageModel, replicas: Sequence[int], shares_milli: Sequence[int]) -> Array:
        """The same for every number of replicas (rows) at every share (columns)."""
        needed = self.needed_per_s(model)
        if not needed > 0:
            return np.zeros((len(replicas), len(shares_milli)))
        return np.maximum(0.0, 1.0 - model.reachable_grid(replicas, shares_milli, self.tuning.caution) / needed)

    def needed_per_s(self, model: StageModel) -> float:
        """What a stage's replicas must be able to serve at their highest knobs, requests per second at this stage."""
        factor = 1.0 if model.view.uses_gpu else self.tuning.cpu_reserve
        needed, kept = (factor * rate * model.visits for rate in (self.reserve_per_s, self.kept_per_s))
        if kept <= needed:
            return needed
        there = model.reachable_per_s(model.allocation.replicas, None, self.tuning.caution)
        return max(needed, min(kept, (1.0 - 1e-9) * there))


def visits(view: PipelineView, ratios: Mapping[str, float]) -> dict[str, float]:
    """Tasks at each stage per end-to-end request: the ratios multiplied along the graph; 1 where nothing is known."""
    found: dict[str, float] = {}
    for stage in view.stages:
        above = [found[name] for name in stage.after if name in found]
        found[stage.name] = max(1e-3, (sum(above) / len(above) if above else 1.0) * ratios.get(stage.name, 1.0))
    return found


def _trend(rate: float, slope: float, window_s: float, tuning: Tuning) -> float:
    """Growth until the next round if the slope is more than Poisson arrivals would show by chance, requests per second."""
    if not np.isfinite(slope) or slope <= 0 or window_s <= 0:
        return 0.0
    # The slope over a window is the difference of its halves' rates over half its length.
    chance = float(np.sqrt(4.0 * max(rate, 0.1) / window_s) / (window_s / 2.0))
    return min(slope, rate / tuning.interval_s) * tuning.interval_s if slope > _SLOPE_SIGNIFICANCE * chance else 0.0
