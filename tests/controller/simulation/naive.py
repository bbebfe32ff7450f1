"""One stage simulated the obvious way, event by event from a single list: slow, short, and written apart from the engine."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from controller.simulation.service import ServiceLaw


@dataclass
class _Server:
    cores: float
    share: float
    free_since: float
    batch: list[int] = field(default_factory=list)
    work: float = 0.0
    """What is left of the batch, as a fraction of its time at the present speed's law."""
    mean: float = 1.0
    touched: float = 0.0
    retiring: bool = False


class NaiveStage:
    """FIFO, batches, bounded queue, clients that give up, servers that come, go and change speed."""

    def __init__(self, law: ServiceLaw, demand: list[float], deadline: list[float], limit: int) -> None:
        self.law, self.demand, self.deadline, self.limit = law, demand, deadline, limit
        self.events: list[tuple[float, int, int, str, tuple[float, ...]]] = []
        self.count = 0
        self.servers: dict[int, _Server] = {}
        self.queue: list[int] = []
        self.departed: list[tuple[float, int]] = []
        self.dropped: list[tuple[float, int]] = []
        self.busy_s = 0.0

    def at(self, time: float, kind: str, *values: float) -> None:
        self.count += 1
        heapq.heappush(self.events, (time, 0, self.count, kind, values))

    def run(self, until: float) -> None:
        now = 0.0
        while True:
            finish = min(
                ((self._finish(server), name) for name, server in self.servers.items() if server.batch), default=None
            )
            event = self.events[0] if self.events else None
            if finish is not None and (event is None or finish[0] <= event[0]):
                if finish[0] > until:
                    return
                now = finish[0]
                self._end(finish[1], now)
            elif event is not None and event[0] <= until:
                now, _, _, kind, values = heapq.heappop(self.events)
                getattr(self, "_on_" + kind)(now, *values)
            else:
                return
            self._start(now)

    def _finish(self, server: _Server) -> float:
        return server.touched + server.work * server.mean * self._time(server)

    def _time(self, server: _Server) -> float:
        return self.law.time_s(len(server.batch), server.cores, server.share)

    def _end(self, name: int, now: float) -> None:
        server = self.servers[name]
        self.busy_s += now - server.touched
        self.departed.extend((now, task) for task in server.batch)
        server.batch, server.free_since = [], now
        if server.retiring:
            del self.servers[name]

    def _on_arrive(self, now: float, task: float) -> None:
        idle = any(not server.batch and not server.retiring for server in self.servers.values())
        if len(self.queue) >= self.limit and not idle:
            self.dropped.append((now, int(task)))
        else:
            self.queue.append(int(task))

    def _on_open(self, now: float, name: float, cores: float, share: float) -> None:
        self.servers[int(name)] = _Server(cores, share, now)

    def _on_close(self, now: float, name: float) -> None:
        if self.servers[int(name)].batch:
            self.servers[int(name)].retiring = True
        else:
            del self.servers[int(name)]

    def _on_speed(self, now: float, name: float, cores: float, share: float) -> None:
        server = self.servers.get(int(name))
        if server is None:
            return
        if server.batch:
            passed = (now - server.touched) / (server.mean * self._time(server))
            self.busy_s += now - server.touched
            server.work -= passed
            server.touched = now
        server.cores, server.share = cores, share

    def _start(self, now: float) -> None:
        while self.queue:
            idle = [
                (server.free_since, name)
                for name, server in self.servers.items()
                if not server.batch and not server.retiring
            ]
            if not idle:
                return
            taken, self.queue = self.queue[: self.law.max_batch], self.queue[self.law.max_batch :]
            self.dropped.extend((now, task) for task in taken if now > self.deadline[task])
            live = [task for task in taken if now <= self.deadline[task]]
            if live:
                server = self.servers[min(idle)[1]]
                server.batch, server.work, server.touched = live, 1.0, now
                server.mean = sum(self.demand[task] for task in live) / len(live)
