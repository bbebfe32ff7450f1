"""A pipeline of queues in simulated time: requests walk a DAG of stages, capacity changes at scheduled moments; all of it can be copied.

Arrivals, service demands, fan-outs and cold starts are drawn from the seed before the run, per request and per replica, so that
two policies on the same seed meet the same requests (common random numbers) and a copy goes on exactly as its original would.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from controller.simulation.service import ServiceLaw, demands, stream
from controller.simulation.stage import StageQueue

__all__ = ["Engine", "Requests", "StagePlan", "StageSample"]

OPEN: Final = 0
DONE: Final = 1
FAILED: Final = 2

_SAMPLE_S: Final = 1.0
"""Grain of the counters' history: a metrics endpoint scraped every second."""

_HISTORY_S: Final = 900.0
"""How long single tasks are remembered; counters and whole requests are kept for the whole run."""

Knob = Literal["ready", "remove", "share", "cores"]


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What the engine needs to know of a stage."""

    name: str
    law: ServiceLaw
    after: tuple[str, ...] = ()
    queue_limit: int = 1000
    """Most tasks that may wait; further ones are dropped and their request has failed."""
    fan_out: float = 1.0
    """Mean number of tasks that one request becomes in this stage (1 + Poisson, at most 4x the mean); it leaves when all are done."""


@dataclass(frozen=True, slots=True)
class StageSample:
    """Cumulative counters of one stage at one moment, tasks and seconds since the beginning."""

    time_s: float
    arrived: int
    done: int
    dropped: int
    queue: int
    busy_s: float
    ready_s: float


class Requests:
    """All that is random about a run, drawn once and never changed: shared by every copy of an engine.

    Args:
        stages: In topological order.
        arrivals_s: Sorted arrival times, seconds.
        timeout_s: A request is given up by its client that long after its arrival.
        seed: Of the demands and fan-outs; the arrivals have their own.
    """

    __slots__ = ("arrivals", "deadlines", "demands", "fans", "first_task", "owners")

    def __init__(
        self, stages: Sequence[StagePlan], arrivals_s: NDArray[np.float64], timeout_s: float, seed: int
    ) -> None:
        count = len(arrivals_s)
        deadline = arrivals_s + timeout_s
        self.arrivals: list[float] = arrivals_s.tolist()
        self.demands: list[list[float]] = []
        self.deadlines: list[list[float]] = []
        self.fans: list[list[int] | None] = []
        self.first_task: list[list[int] | None] = []
        self.owners: list[list[int] | None] = []
        plain = deadline.tolist()
        for stage in stages:
            if stage.fan_out <= 1:
                size = count
                self.fans.append(None)
                self.first_task.append(None)
                self.owners.append(None)
                self.deadlines.append(plain)
            else:
                drawn = stream(seed, "fan-out", stage.name).poisson(stage.fan_out - 1, count)
                fan = 1 + np.minimum(drawn, int(4 * stage.fan_out) - 1)
                size = int(fan.sum())
                self.fans.append(fan.tolist())
                self.first_task.append((np.cumsum(fan) - fan).tolist())
                self.owners.append(np.repeat(np.arange(count), fan).tolist())
                self.deadlines.append(np.repeat(deadline, fan).tolist())
            self.demands.append(demands(stage.law, stream(seed, "demand", stage.name), size).tolist())


class Engine:
    """The simulated pipeline. Times in seconds from the beginning of the run.

    Args:
        stages: In topological order.
        requests: Drawn for the same stages.
    """

    __slots__ = (
        "_controls",
        "_joins",
        "_next_sample",
        "_order",
        "_parts",
        "_ready_s",
        "_ready_since",
        "_sequence",
        "_sinks",
        "_upstreams",
        "arrived",
        "done_id",
        "done_t",
        "failed_id",
        "failed_t",
        "first_open",
        "gone",
        "names",
        "now",
        "queues",
        "requests",
        "samples",
        "stages",
        "state",
    )

    def __init__(self, stages: Sequence[StagePlan], requests: Requests) -> None:
        self.stages = tuple(stages)
        self.requests = requests
        self.names = {stage.name: place for place, stage in enumerate(stages)}
        self._upstreams = [[self.names[name] for name in stage.after] for stage in stages]
        used = {place for upstream in self._upstreams for place in upstream}
        self._sinks = [place for place in range(len(stages)) if place not in used]
        self.queues = [
            StageQueue(stage.law, requests.demands[place], requests.deadlines[place], stage.queue_limit)
            for place, stage in enumerate(stages)
        ]
        self.now = 0.0
        self.arrived = 0
        """Requests that have arrived."""
        self.state = bytearray(len(requests.arrivals))
        """Of each request: open (0), done (1) or failed (2)."""
        self.first_open = 0
        self.done_t: list[float] = []
        self.done_id: list[int] = []
        self.failed_t: list[float] = []
        self.failed_id: list[int] = []
        self.gone: list[tuple[float, str, int]] = []
        """Replicas that have left since the owner last emptied this list: (time, stage, server)."""
        self.samples: list[list[StageSample]] = [[] for _ in stages]
        self._parts: list[dict[int, int]] = [{} for _ in stages]
        self._joins: list[dict[int, int]] = [{} for _ in range(len(stages) + 1)]
        self._controls: list[tuple[float, int, Knob, int, int, float]] = []
        self._sequence = 0
        self._next_sample = 0.0
        self._ready_s = [0.0] * len(stages)
        self._ready_since = [0.0] * len(stages)

    # Capacity

    def add_replica(self, stage: str, server: int, cores: float, share: float, ready_at: float) -> None:
        """A replica that takes work from ``ready_at`` on, at a share in (0, 1] (ignored by a CPU stage)."""
        place = self.names[stage]
        self.queues[place].prepare(server, cores, share)
        self._schedule(ready_at, "ready", place, server, 0.0)

    def remove_replica(self, stage: str, server: int) -> None:
        """Take a replica away now: it finishes the batch in service; ``gone`` says when it was."""
        self._schedule(self.now, "remove", self.names[stage], server, 0.0)
        self._control()

    def set_share(self, stage: str, server: int, share: float, at: float) -> None:
        """Change a replica's effective share of its card at a moment not in the past; work in service goes on at the new speed."""
        self._schedule(at, "share", self.names[stage], server, share)

    def set_cores(self, stage: str, server: int, cores: float, at: float) -> None:
        """Change a replica's cores at a moment not in the past."""
        self._schedule(at, "cores", self.names[stage], server, cores)

    def _schedule(self, at: float, knob: Knob, place: int, server: int, value: float) -> None:
        self._sequence += 1
        heappush(self._controls, (max(at, self.now), self._sequence, knob, place, server, value))

    def _control(self) -> None:
        while self._controls and self._controls[0][0] <= self.now:
            _, _, knob, place, server, value = heappop(self._controls)
            queue = self.queues[place]
            if knob in ("ready", "remove"):
                self._ready_s[place] = self.ready_s(place)
                self._ready_since[place] = self.now
                if knob == "ready":
                    queue.open_server(server, self.now)
                elif queue.remove_server(server, self.now):
                    self.gone.append((self.now, self.stages[place].name, server))
            elif queue.knows(server):
                cores, share = queue.speed(server)
                cores, share = (value, share) if knob == "cores" else (cores, value)
                queue.set_speed(server, cores, share, self.now)

    # Time

    def advance(self, to: float) -> None:
        """Let everything up to and including ``to`` happen."""
        if self._next_sample == 0.0 and self.now == 0.0:
            self._control()
            self._sample()
        while self.now < to:
            at = min(to, self._next_sample)
            if self._controls and self._controls[0][0] < at:
                at = self._controls[0][0]
            self._flow(at)
            self.now = at
            if self._controls and self._controls[0][0] <= at:
                self._control()
            if at >= self._next_sample:
                self._sample()

    def _sample(self) -> None:
        for place in range(len(self.stages)):
            self.samples[place].append(self.sample(place))
        self._next_sample += _SAMPLE_S
        if self.now > 0 and self.now % _HISTORY_S < _SAMPLE_S:
            for queue in self.queues:
                queue.forget(self.now - _HISTORY_S)

    def _flow(self, until: float) -> None:
        outputs: list[tuple[list[float], list[int]]] = []
        failures: list[tuple[float, int]] = []
        arrivals = self.requests.arrivals
        last = bisect_right(arrivals, until, self.arrived)
        source = (arrivals[self.arrived : last], range(self.arrived, last))
        self.arrived = last
        for place, queue in enumerate(self.queues):
            upstream = self._upstreams[place]
            times: list[float]
            tasks: list[int] | range
            if not upstream:
                times, tasks = source
            elif len(upstream) == 1:
                times, tasks = outputs[upstream[0]]
            else:
                times, tasks = self._join(place, [outputs[number] for number in upstream])
            if not times and not queue.has_work:
                outputs.append(([], []))
                continue
            owners = self.requests.owners[place]
            if owners is not None:
                times, tasks = self._split(place, times, tasks)
            out_t, out_id, drops, gone = queue.run(times, tasks, until)
            self.gone.extend((time, self.stages[place].name, server) for time, server in gone)
            if owners is not None:
                out_t, out_id = self._gather(place, owners, out_t, out_id)
                drops = [(time, owners[task]) for time, task in drops]
            failures.extend(drops)
            outputs.append((out_t, out_id))
        if failures:
            failures.sort()
            for time, request in failures:
                if self.state[request] == OPEN:
                    self.state[request] = FAILED
                    self.failed_t.append(time)
                    self.failed_id.append(request)
        times, tasks = (
            outputs[self._sinks[0]]
            if len(self._sinks) == 1
            else self._join(len(self.stages), [outputs[place] for place in self._sinks])
        )
        state = self.state
        for request in tasks:
            state[request] = DONE
        self.done_t.extend(times)
        self.done_id.extend(tasks)

    def _join(self, place: int, inputs: list[tuple[list[float], list[int]]]) -> tuple[list[float], list[int]]:
        """Requests that have left every upstream, at the time they left the last."""
        seen = self._joins[place]
        times: list[float] = []
        complete: list[int] = []
        for time, request in sorted(pair for output in inputs for pair in zip(*output, strict=True)):
            count = seen.pop(request, 0) + 1
            if count == len(inputs):
                times.append(time)
                complete.append(request)
            else:
                seen[request] = count
        return times, complete

    def _split(self, place: int, times: list[float], requests: list[int] | range) -> tuple[list[float], list[int]]:
        """A request's tasks arrive together."""
        fans, first_task = self.requests.fans[place], self.requests.first_task[place]
        assert fans is not None and first_task is not None  # noqa: S101 - drawn together with the owners
        parts = self._parts[place]
        out_t: list[float] = []
        tasks: list[int] = []
        for time, request in zip(times, requests, strict=True):
            fan, first = fans[request], first_task[request]
            parts[request] = fan
            tasks.extend(range(first, first + fan))
            out_t.extend([time] * fan)
        return out_t, tasks

    def _gather(
        self, place: int, owners: list[int], times: list[float], tasks: list[int]
    ) -> tuple[list[float], list[int]]:
        """A request leaves with its last task; one that lost a task never does."""
        parts = self._parts[place]
        out_t: list[float] = []
        requests: list[int] = []
        for time, task in zip(times, tasks, strict=True):
            request = owners[task]
            left = parts[request] - 1
            if left:
                parts[request] = left
            else:
                del parts[request]
                out_t.append(time)
                requests.append(request)
        return out_t, requests

    # What can be seen

    def ready_s(self, place: int) -> float:
        """Replica seconds ready since the beginning."""
        return self._ready_s[place] + self.queues[place].size * (self.now - self._ready_since[place])

    def sample(self, place: int) -> StageSample:
        """The counters of one stage now."""
        queue = self.queues[place]
        return StageSample(
            self.now,
            queue.arrived,
            queue.done,
            queue.dropped,
            queue.queue_depth(),
            queue.busy_s(self.now),
            self.ready_s(place),
        )

    def sample_at(self, place: int, time_s: float) -> StageSample:
        """The last sample taken at or before a moment; the first one if there is none."""
        samples = self.samples[place]
        return samples[max(0, bisect_right(samples, time_s, key=lambda sample: sample.time_s) - 1)]

    def latencies(self, since: float) -> NDArray[np.float64]:
        """Latency of the requests that finished after ``since``, in the order of finishing; seconds."""
        first = bisect_right(self.done_t, since)
        arrivals = self.requests.arrivals
        entered = np.array([arrivals[request] for request in self.done_id[first:]], dtype=np.float64)
        return np.asarray(np.array(self.done_t[first:], dtype=np.float64) - entered)

    def open_older_than(self, age_s: float) -> int:
        """Requests still in the system that arrived more than ``age_s`` ago."""
        state = self.state
        while self.first_open < self.arrived and state[self.first_open] != OPEN:
            self.first_open += 1
        last = bisect_right(self.requests.arrivals, self.now - age_s, 0, self.arrived)
        return state.count(OPEN, self.first_open, last) if last > self.first_open else 0

    @property
    def in_system(self) -> int:
        """Requests that have neither finished nor failed."""
        return self.state.count(OPEN, self.first_open, self.arrived)

    def copy(self, keep_s: float = 60.0) -> Engine:
        """An independent engine that goes on exactly as this one would; it remembers the last ``keep_s`` seconds."""
        other = Engine.__new__(Engine)
        for name in ("stages", "requests", "names", "_upstreams", "_sinks", "now", "arrived", "first_open"):
            setattr(other, name, getattr(self, name))
        since = self.now - keep_s
        other.queues = [queue.copy(since) for queue in self.queues]
        other.state = bytearray(self.state)
        first = bisect_right(self.done_t, since)
        other.done_t, other.done_id = self.done_t[first:], self.done_id[first:]
        first = bisect_right(self.failed_t, since)
        other.failed_t, other.failed_id = self.failed_t[first:], self.failed_id[first:]
        other.gone = list(self.gone)
        other.samples = [
            samples[max(0, bisect_right(samples, since, key=lambda sample: sample.time_s) - 1) :]
            for samples in self.samples
        ]
        other._parts = [dict(parts) for parts in self._parts]
        other._joins = [dict(join) for join in self._joins]
        other._controls = list(self._controls)
        other._sequence = self._sequence
        other._next_sample = self._next_sample
        other._ready_s = list(self._ready_s)
        other._ready_since = list(self._ready_since)
        return other
