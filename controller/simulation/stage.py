"""One stage of the simulated pipeline: replicas as servers of one FIFO queue, with dynamic batches, exact at every change.

The stages of a DAG never feed back, so each is advanced over a whole interval in one tight loop instead of through a global event list.
Because services start in the order of arrival, the next start is always max(head's arrival, earliest free server), the recursion of
Kiefer and Wolfowitz; an interval ends wherever something changes (a speed, a replica, a sample), so within it speeds are constant.
"""

from __future__ import annotations

from bisect import bisect_right
from heapq import heapify, heappush, heapreplace

from controller.simulation.service import ServiceLaw

__all__ = ["StageQueue"]

_IDLE: tuple[int, ...] = ()


class StageQueue:
    """Queue and servers of one stage. Times are absolute seconds; entries are positions in the list of admitted tasks.

    Args:
        law: Service times.
        demand: Factor of each task's service time, by task number.
        deadline: When the client of each task gives up, by task number; a task that is still queued by then is thrown away
            when its turn comes, as servers do that learn of a closed connection only on reading the request.
        queue_limit: Most tasks that may wait; further ones are dropped on arrival.
    """

    __slots__ = (
        "_batches",
        "_busy",
        "_heap",
        "_speeds",
        "_tables",
        "admitted_t",
        "arrived",
        "batch_n",
        "batch_s",
        "batch_t",
        "deadline",
        "demand",
        "departed_entry",
        "departed_t",
        "done",
        "dropped",
        "dropped_t",
        "head",
        "law",
        "queue_limit",
        "retiring",
        "started_t",
        "tasks",
    )

    def __init__(self, law: ServiceLaw, demand: list[float], deadline: list[float], queue_limit: int) -> None:
        self.law = law
        self.demand = demand
        self.deadline = deadline
        self.queue_limit = queue_limit
        self.arrived = 0
        """Tasks that have arrived, dropped ones included."""
        self.done = 0
        self.dropped = 0
        self.tasks: list[int] = []
        self.admitted_t: list[float] = []
        self.started_t: list[float] = []
        """As long as ``head``: when each entry was started (or thrown away)."""
        self.head = 0
        """First entry that has not started."""
        self.departed_t: list[float] = []
        self.departed_entry: list[int] = []
        self.batch_t: list[float] = []
        self.batch_s: list[float] = []
        self.batch_n: list[int] = []
        """Finished services: when, how long, how many tasks."""
        self.dropped_t: list[float] = []
        self.retiring: list[tuple[float, int]] = []
        self._heap: list[tuple[float, int]] = []
        """(time at which it is free, server)."""
        self._batches: dict[int, tuple[int, ...] | range] = {}
        """Entries in service by server."""
        self._speeds: dict[int, tuple[float, float]] = {}
        """(cores, share) by server."""
        self._tables: dict[tuple[float, float], list[float]] = {}
        self._busy = 0.0

    # Servers

    @property
    def size(self) -> int:
        """How many servers take new work."""
        return len(self._heap)

    @property
    def has_work(self) -> bool:
        """Something waits, is being served, or has still to be reported as finished."""
        return self.head < len(self.tasks) or any(self._batches.values()) or bool(self.retiring)

    def prepare(self, server: int, cores: float, share: float) -> None:
        """A replica is starting."""
        self._speeds[server] = (cores, share)

    def open_server(self, server: int, now: float) -> None:
        """A replica that was prepared is ready; nothing happens if it was removed meanwhile."""
        if server in self._speeds:
            self._batches[server] = _IDLE
            heappush(self._heap, (now, server))

    def knows(self, server: int) -> bool:
        """The server is starting, ready or retiring."""
        return server in self._speeds

    def remove_server(self, server: int, now: float) -> bool:
        """Take no more work; what is in service is finished. False if the server still works, True if it is gone at once."""
        free_at = next((time for time, name in self._heap if name == server), None)
        if free_at is None:
            del self._speeds[server]
            return True
        self._heap = [entry for entry in self._heap if entry[1] != server]
        heapify(self._heap)
        if self._batches[server] and free_at > now:
            heappush(self.retiring, (free_at, server))
            return False
        del self._speeds[server], self._batches[server]
        return True

    def set_speed(self, server: int, cores: float, share: float, now: float) -> None:
        """Change a server's cores and share; what is left of the work in service goes on at the new speed."""
        old = self._speeds.get(server)
        if old is None or old == (cores, share):
            return
        batch = self._batches.get(server, _IDLE)
        before, after = self._table(*old)[len(batch)], self._table(cores, share)[len(batch)]
        self._speeds[server] = (cores, share)
        for pool in (self._heap, self.retiring):
            for position, (free_at, name) in enumerate(pool):
                if name == server and batch and free_at > now:
                    moved = now + (free_at - now) * after / before
                    self._busy += moved - free_at
                    pool[position] = (moved, server)
                    heapify(pool)
                    return

    def speed(self, server: int) -> tuple[float, float]:
        """(cores, share) of a server that is starting, ready or retiring."""
        return self._speeds[server]

    def _table(self, cores: float, share: float) -> list[float]:
        """Mean service time by batch size, index 0 unused."""
        table = self._tables.get((cores, share))
        if table is None:
            table = [self.law.time_s(size, cores, share) for size in range(self.law.max_batch + 1)]
            self._tables[cores, share] = table
        return table

    # What can be seen

    def queue_depth(self) -> int:
        """Tasks waiting."""
        return len(self.tasks) - self.head

    def in_service(self) -> int:
        """Tasks being served."""
        return sum(map(len, self._batches.values()))

    def busy_s(self, now: float) -> float:
        """Server seconds spent working since the beginning."""
        left = 0.0
        for pool in (self._heap, self.retiring):
            for free_at, server in pool:
                if free_at > now and self._batches[server]:
                    left += free_at - now
        return self._busy - left

    # Time

    def run(
        self, times: list[float], tasks: list[int] | range, until: float
    ) -> tuple[list[float], list[int], list[tuple[float, int]], list[tuple[float, int]]]:
        """Advance to ``until``.

        Args:
            times: Arrivals after the last call's ``until`` up to this one, in order.
            tasks: The tasks that arrive.
            until: Everything up to and including this moment happens.

        Returns:
            Departures in order as times and tasks; drops as (time, task); retired servers as (time, server).
        """
        self.arrived += len(times)
        out_t: list[float] = []
        out_entry: list[int] = []
        drops: list[tuple[float, int]] = []
        gone: list[tuple[float, int]] = []
        if len(self.tasks) - self.head + len(times) <= self.queue_limit:
            self.tasks.extend(tasks)
            self.admitted_t.extend(times)
        else:
            reached = -1.0
            for time, task in zip(times, tasks, strict=True):
                if time > reached:  # what arrives together is admitted before any of it is served
                    self._run_to(time, out_t, out_entry, drops, gone)
                    reached = time
                if len(self.tasks) - self.head >= self.queue_limit:
                    drops.append((time, task))
                else:
                    self.tasks.append(task)
                    self.admitted_t.append(time)
        self._run_to(until, out_t, out_entry, drops, gone)
        self.done += len(out_t)
        self.dropped += len(drops)
        self.dropped_t.extend(time for time, _ in drops)
        self.departed_t.extend(out_t)
        self.departed_entry.extend(out_entry)
        names = self.tasks
        return out_t, [names[entry] for entry in out_entry], drops, gone

    def _run_to(
        self,
        until: float,
        out_t: list[float],
        out_entry: list[int],
        drops: list[tuple[float, int]],
        gone: list[tuple[float, int]],
    ) -> None:
        serve = self._serve_singly if self.law.max_batch == 1 else self._serve_batches
        while self.retiring and self.retiring[0][0] <= until:
            free_at, server = self.retiring[0]
            serve(free_at, out_t, out_entry, drops)
            self._flush(free_at, out_t, out_entry)
            self.retiring.pop(0)
            heapify(self.retiring)
            self._finish(free_at, server, out_t, out_entry)
            del self._speeds[server], self._batches[server]
            gone.append((free_at, server))
        serve(until, out_t, out_entry, drops)
        self._flush(until, out_t, out_entry)

    def _finish(self, time: float, server: int, out_t: list[float], out_entry: list[int]) -> None:
        batch = self._batches[server]
        if batch:
            self.batch_t.append(time)
            self.batch_s.append(time - self.started_t[batch[0]])
            self.batch_n.append(len(batch))
            out_t.extend([time] * len(batch))
            out_entry.extend(batch)
            self._batches[server] = _IDLE

    def _flush(self, until: float, out_t: list[float], out_entry: list[int]) -> None:
        """Let everything that is finished by ``until`` depart; the loops do so only when a server takes its next batch."""
        batches = self._batches
        finished = [entry for entry in self._heap if entry[0] <= until and batches[entry[1]]]
        finished.sort()
        for free_at, server in finished:
            self._finish(free_at, server, out_t, out_entry)

    def _serve_singly(
        self, until: float, out_t: list[float], out_entry: list[int], drops: list[tuple[float, int]]
    ) -> None:
        heap = self._heap
        head, count = self.head, len(self.tasks)
        if not heap or head == count:
            return
        tasks, admitted, started, batches = self.tasks, self.admitted_t, self.started_t, self._batches
        demand, deadline = self.demand, self.deadline
        batch_t, batch_s, batch_n = self.batch_t, self.batch_s, self.batch_n
        unit = {server: self._table(*self._speeds[server])[1] for _, server in heap}
        busy = self._busy
        while head < count:
            free_at, server = heap[0]
            start = admitted[head]
            if free_at > start:  # noqa: PLR1730 - max() costs a call in the hottest loop
                start = free_at
            if start > until:
                break
            task = tasks[head]
            started.append(start)
            if start > deadline[task]:
                drops.append((start, task))
                head += 1
                continue
            batch = batches[server]
            if batch:
                entry = batch[0]
                batch_t.append(free_at)
                batch_s.append(free_at - started[entry])
                batch_n.append(1)
                out_t.append(free_at)
                out_entry.append(entry)
            duration = demand[task] * unit[server]
            busy += duration
            batches[server] = (head,)
            heapreplace(heap, (start + duration, server))
            head += 1
        self.head = head
        self._busy = busy

    def _serve_batches(
        self, until: float, out_t: list[float], out_entry: list[int], drops: list[tuple[float, int]]
    ) -> None:
        heap = self._heap
        head, count = self.head, len(self.tasks)
        if not heap or head == count:
            return
        tasks, admitted, started, batches = self.tasks, self.admitted_t, self.started_t, self._batches
        demand, deadline, most = self.demand, self.deadline, self.law.max_batch
        tables = {server: self._table(*self._speeds[server]) for _, server in heap}
        while head < count:
            free_at, server = heap[0]
            start = admitted[head]
            if free_at > start:  # noqa: PLR1730 - max() costs a call in the hottest loop
                start = free_at
            if start > until:
                break
            first, work = head, 0.0
            last = min(head + most, count)
            expired = False
            while head < last and admitted[head] <= start:
                task = tasks[head]
                started.append(start)
                if start > deadline[task]:
                    drops.append((start, task))
                    expired = True
                else:
                    work += demand[task]
                head += 1
            batch: tuple[int, ...] | range = range(first, head)
            if expired:
                batch = tuple(entry for entry in batch if start <= deadline[tasks[entry]])
                if not batch:
                    continue
            if batches[server]:
                self._finish(free_at, server, out_t, out_entry)
            size = len(batch)
            duration = work / size * tables[server][size]
            self._busy += duration
            batches[server] = batch
            heapreplace(heap, (start + duration, server))
        self.head = head

    # History

    def copy(self, since: float) -> StageQueue:
        """An independent copy that remembers only what left after ``since``."""
        other = StageQueue.__new__(StageQueue)
        for name in self.__slots__:  # lists of history are shared until forget() below replaces them
            setattr(other, name, getattr(self, name))
        other.retiring = list(self.retiring)
        other._heap = list(self._heap)
        other._batches = dict(self._batches)
        other._speeds = dict(self._speeds)
        other.forget(since)
        return other

    def forget(self, before: float) -> None:
        """Drop the history of tasks that left before that moment (new lists: a copy shares none)."""
        departures = bisect_right(self.departed_t, before)
        entries = self.departed_entry[departures:]
        first = min([self.head, *(batch[0] for batch in self._batches.values() if batch), *entries])
        self.tasks = self.tasks[first:]
        self.admitted_t = self.admitted_t[first:]
        self.started_t = self.started_t[first:]
        self.departed_t = self.departed_t[departures:]
        self.departed_entry = [entry - first for entry in entries]
        services = bisect_right(self.batch_t, before)
        self.batch_t, self.batch_s, self.batch_n = (
            self.batch_t[services:],
            self.batch_s[services:],
            self.batch_n[services:],
        )
        self.dropped_t = self.dropped_t[bisect_right(self.dropped_t, before) :]
        self.head -= first
        self._batches = {
            server: range(batch.start - first, batch.stop - first)
            if isinstance(batch, range)
            else tuple(entry - first for entry in batch)
            for server, batch in self._batches.items()
        }
