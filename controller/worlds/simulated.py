"""The simulated world: the controller's view of simulated pipelines, on a clock where sleeping is what makes time pass."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import Any, Final

from controller.simulation.pipelines import PipelineSetup
from controller.simulation.plant import Plant
from controller.simulation.workloads import RateSeries, draw_arrivals
from controller.state import Allocation, ClusterRoom, KnobOutcome, Observation, PipelineView, StageGauge
from sair.errors import ApiUnavailable, MetricsUnavailable, NotFound

__all__ = ["Faults", "SimulatedClock", "SimulatedWorld", "real_time_pace"]

_STEP_S: Final = 5.0
"""Simulated seconds after which the event loop gets a turn (a live view, Ctrl-C)."""
_SAME_ROUND_S: Final = 5.0

Pace = Callable[[float], Awaitable[None]]
"""Waits, in real time, before simulated time goes on to the given moment."""


def real_time_pace(speed: float) -> Pace:
    """Let ``speed`` simulated seconds pass per real second, at most."""
    began: list[float] = []

    async def pace(to: float) -> None:
        now = asyncio.get_running_loop().time()
        if not began:
            began.extend((now, to))
        await asyncio.sleep(max(0.0, began[0] + (to - began[1]) / speed - now))

    return pace


class SimulatedClock:
    """Time that stands still while somebody thinks and leaps to the next moment somebody waits for.

    With one sleeper that is all. Where several tasks sleep, those that must not be left behind while they wait for something real
    (a language model, Redis) enter ``participant()``: time goes on only while all participants sleep.

    Args:
        advance: Lets the world's time pass up to a moment.
        pace: Waits in real time before each step; None: as fast as it goes.
        on_advance: Called with the time after each step.
    """

    def __init__(
        self,
        advance: Callable[[float], None],
        *,
        pace: Pace | None = None,
        on_advance: Callable[[float], None] | None = None,
    ) -> None:
        self._advance = advance
        self._pace = pace
        self._on_advance = on_advance
        self._now = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None], asyncio.Task[Any] | None]] = []
        self._participants: set[asyncio.Task[Any] | None] = set()
        self._sequence = 0
        self._driver: asyncio.Task[None] | None = None

    def now(self) -> float:
        """Simulated seconds since the beginning."""
        return self._now

    async def sleep(self, seconds: float) -> None:
        """Return after that much simulated time."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sequence += 1
        heappush(self._sleepers, (self._now + seconds, self._sequence, future, asyncio.current_task()))
        self._wake_driver()
        await future

    @asynccontextmanager
    async def participant(self) -> AsyncIterator[None]:
        """While the current task is in here, time passes only when it sleeps on this clock."""
        task = asyncio.current_task()
        self._participants.add(task)
        try:
            yield
        finally:
            self._participants.discard(task)
            self._wake_driver()

    async def aclose(self) -> None:
        """Stop; whoever still sleeps is cancelled."""
        if self._driver is not None:
            self._driver.cancel()
            await asyncio.gather(self._driver, return_exceptions=True)
        for _, _, future, _ in self._sleepers:
            future.cancel()
        self._sleepers.clear()

    def _wake_driver(self) -> None:
        if self._sleepers and (self._driver is None or self._driver.done()):
            self._driver = asyncio.get_running_loop().create_task(self._drive())

    async def _drive(self) -> None:
        try:
            while await self._may_pass():
                await self._pass_until(self._sleepers[0][0])
                while self._sleepers and self._sleepers[0][0] <= self._now:
                    future = heappop(self._sleepers)[2]
                    if not future.done():
                        future.set_result(None)
        except Exception as error:
            for _, _, future, _ in self._sleepers:
                if not future.done():
                    future.set_exception(error)
            self._sleepers.clear()

    async def _may_pass(self) -> bool:
        """Everything that is ready to run has run, somebody sleeps, and no participant is awake."""
        for _ in range(3):
            await asyncio.sleep(0)
        while self._sleepers and self._sleepers[0][2].done():
            heappop(self._sleepers)
        asleep = {task for _, _, future, task in self._sleepers if not future.done()}
        return bool(self._sleepers) and self._participants <= asleep

    async def _pass_until(self, moment: float) -> None:
        while self._now < moment:
            to = min(moment, self._now + _STEP_S)
            if self._pace is not None:
                await self._pace(to)
            else:
                await asyncio.sleep(0)
            self._advance(to)
            self._now = to
            if self._on_advance is not None:
                self._on_advance(to)


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong, as stretches (from, to) of simulated seconds."""

    metrics_down: tuple[tuple[float, float], ...] = ()
    """Observations and gauges fail."""
    metrics_stale: tuple[tuple[float, float], ...] = ()
    """Observations are those from before the stretch, with their age."""
    api_down: tuple[tuple[float, float], ...] = ()
    """Nothing can be listed or applied."""


_NO_FAULTS: Final = Faults()


class SimulatedWorld:
    """Simulated pipelines behind the interface that the cluster has too.

    Args:
        plants: By pipeline key; all at the same time.
        faults: What goes wrong when.
        pace: Waits in real time before each step; None: as fast as it goes.
        on_advance: Called with the time after each step.
    """

    def __init__(
        self,
        plants: Sequence[Plant],
        *,
        faults: Faults = _NO_FAULTS,
        pace: Pace | None = None,
        on_advance: Callable[[float], None] | None = None,
    ) -> None:
        self.plants = {plant.view.key: plant for plant in plants}
        self.clock = SimulatedClock(self._advance, pace=pace, on_advance=on_advance)
        self._faults = faults
        self._observed_at: dict[str, list[float]] = {key: [0.0] for key in self.plants}
        self._last_fresh: dict[str, Observation] = {}

    @classmethod
    def of(
        cls,
        setup: PipelineSetup,
        series: RateSeries,
        seed: int,
        *,
        faults: Faults = _NO_FAULTS,
        pace: Pace | None = None,
        on_advance: Callable[[float], None] | None = None,
    ) -> SimulatedWorld:
        """A world of one pipeline under one workload."""
        plant = Plant(setup, draw_arrivals(series, seed), seed)
        return cls([plant], faults=faults, pace=pace, on_advance=on_advance)

    def _advance(self, to: float) -> None:
        for plant in self.plants.values():
            plant.advance(to)

    def _plant(self, key: str) -> Plant:
        try:
            return self.plants[key]
        except KeyError:
            raise NotFound(f"pipeline {key} does not exist; there are {', '.join(self.plants)}") from None

    def _in(self, stretches: Sequence[tuple[float, float]]) -> float | None:
        """Beginning of the stretch that holds now, None if none does."""
        now = self.clock.now()
        return next((begin for begin, end in stretches if begin <= now < end), None)

    def _need_api(self) -> None:
        if self._in(self._faults.api_down) is not None:
            raise ApiUnavailable("the API server does not answer")

    def _need_metrics(self, key: str) -> None:
        if self._in(self._faults.metrics_down) is not None:
            raise MetricsUnavailable(f"{key}: no stage answers the scrape")

    async def view(self, key: str) -> PipelineView | None:
        """One pipeline.

        Raises:
            ApiUnavailable: In a stretch of ``api_down``.
        """
        self._need_api()
        return self.plants[key].view if key in self.plants else None

    async def decided(self, key: str) -> int:
        """None: nothing outlives a simulation but the memory."""
        return 0

    async def observe(self, key: str, window_s: float) -> Observation:
        """One pipeline over the last ``window_s`` seconds; the arrivals' peak counts since the round before.

        Raises:
            NotFound: If there is no such pipeline.
            MetricsUnavailable: In a stretch of ``metrics_down``, or of ``metrics_stale`` before anything was seen.
        """
        plant, now = self._plant(key), self.clock.now()
        self._need_metrics(key)
        if self._in(self._faults.metrics_stale) is not None:
            if key not in self._last_fresh:
                raise MetricsUnavailable(f"{key}: nothing has been scraped yet")
            last = self._last_fresh[key]
            return replace(last, age_s=now - last.time_s)
        before = self._observed_at[key]
        while len(before) > 1 and before[1] <= now - _SAME_ROUND_S:
            before.pop(0)
        since = min(before[0], now - window_s) if before[0] <= now - _SAME_ROUND_S else now - window_s
        observation = plant.observe(window_s, max(0.0, since))
        if before[-1] < now:
            before.append(now)
        self._last_fresh[key] = observation
        return observation

    async def gauges(self, key: str, window_s: float) -> Sequence[StageGauge]:
        """Queues right now and arrivals over the last ``window_s`` seconds.

        Raises:
            NotFound: If there is no such pipeline.
            MetricsUnavailable: In a stretch of ``metrics_down``.
        """
        plant = self._plant(key)
        self._need_metrics(key)
        return plant.gauges(window_s)

    async def entering(self, key: str, window_s: float) -> float:
        """Requests per second that entered over the last ``window_s`` seconds.

        Raises:
            NotFound: If there is no such pipeline.
            MetricsUnavailable: In a stretch of ``metrics_down``.
        """
        plant = self._plant(key)
        self._need_metrics(key)
        return plant.entering_per_s(window_s)

    async def room(self, key: str) -> ClusterRoom:
        """What the cluster could still hold.

        Raises:
            NotFound: If there is no such pipeline.
            ApiUnavailable: In a stretch of ``api_down``.
        """
        plant = self._plant(key)
        self._need_api()
        return plant.room()

    async def allocations(self, key: str) -> Mapping[str, Allocation]:
        """What each stage is wished to have now.

        Raises:
            NotFound: If there is no such pipeline.
            ApiUnavailable: In a stretch of ``api_down``.
        """
        plant = self._plant(key)
        self._need_api()
        return dict(plant.wished)

    async def apply(self, key: str, wanted: Mapping[str, Allocation], *, reason: str) -> Sequence[KnobOutcome]:
        """Ask for allocations.

        Raises:
            NotFound: If there is no such pipeline.
            ApiUnavailable: In a stretch of ``api_down``.
            InvalidInput: If a stage is unknown or has no such knob.
        """
        plant = self._plant(key)
        self._need_api()
        return plant.apply(wanted)
