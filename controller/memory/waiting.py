"""Journal records that wait for Redis: held within a number of bytes for all pipelines together, and what had to go is counted."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

__all__ = ["Dropped", "Waiting"]

Record = Mapping[str, str]

_RECORD_BYTES: Final = 1_400
_FIELD_BYTES: Final = 50
"""What CPython takes for a dictionary of some twenty fields, and for a text besides its characters."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """Records of one pipeline that are lost."""

    records: int = 0
    first_round: str = ""
    last_round: str = ""

    def and_then(self, later: Dropped) -> Dropped:
        """Together with what was lost after it."""
        if not self.records or not later.records:
            return later if later.records else self
        return Dropped(self.records + later.records, self.first_round or later.first_round, later.last_round)


@dataclass(slots=True)
class _Queue:
    records: deque[Record] = field(default_factory=deque)
    in_flight: int = 0
    """Records that are being written: they wait still, and are not among ``records``."""
    bytes: int = 0
    dropped: Dropped = field(default_factory=Dropped)


class Waiting:
    """Queues of records, one per pipeline. Where all together are too large, the longest gives up its oldest.

    Args:
        most_bytes: For all pipelines together, in this process; about.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._queues: dict[str, _Queue] = {}

    def add(self, pipeline: str, record: Record) -> list[str]:
        """Let a record wait; gives the pipelines of which one was dropped to make room."""
        shortened: list[str] = []
        queue = self._queues.setdefault(pipeline, _Queue())
        queue.records.append(record)
        self._grow(queue, _size(record))
        while self._bytes > self._most_bytes:
            name, longest = max(self._queues.items(), key=lambda item: item[1].bytes)
            if len(longest.records) <= (longest is queue):
                break  # the new one is always held, and so is what is being written
            gone = longest.records.popleft()
            self._grow(longest, -_size(gone))
            number = gone.get("round", "")
            longest.dropped = longest.dropped.and_then(Dropped(1, number, number))
            shortened.append(name)
        return shortened

    @contextlib.contextmanager
    def writing(self, pipeline: str) -> Iterator[Record]:
        """The oldest record of a pipeline: nothing drops it meanwhile, and it waits no more once it is written.

        Raises:
            LookupError: If none waits.
        """
        queue = self._queues[pipeline]
        record = queue.records.popleft()
        queue.in_flight += 1
        try:
            yield record
        except BaseException:
            if self._queues.get(pipeline) is queue:
                queue.records.appendleft(record)
            raise
        else:
            if self._queues.get(pipeline) is queue:
                self._grow(queue, -_size(record))
        finally:
            queue.in_flight -= 1
            self._tidy(pipeline)

    @contextlib.contextmanager
    def telling(self, pipeline: str) -> Iterator[Dropped]:
        """What was lost of a pipeline since it was told last; what is dropped meanwhile is told the next time."""
        queue = self._queues.get(pipeline)
        if queue is None:
            yield Dropped()
            return
        told, queue.dropped = queue.dropped, Dropped()
        try:
            yield told
        except BaseException:
            queue.dropped = told.and_then(queue.dropped)
            raise
        finally:
            self._tidy(pipeline)

    def dropped(self, pipeline: str) -> Dropped:
        """What was lost of a pipeline since it was told last."""
        queue = self._queues.get(pipeline)
        return Dropped() if queue is None else queue.dropped

    def clear(self, pipeline: str) -> int:
        """Nothing of a pipeline waits any more; gives how many records did."""
        queue = self._queues.pop(pipeline, None)
        if queue is None:
            return 0
        self._bytes -= queue.bytes
        return len(queue.records) + queue.in_flight

    def count(self, pipeline: str | None = None) -> int:
        """How many records wait, of a pipeline or of all."""
        queues = self._queues.values() if pipeline is None else filter(None, [self._queues.get(pipeline)])
        return sum(len(queue.records) + queue.in_flight for queue in queues)

    def _tidy(self, pipeline: str) -> None:
        queue = self._queues.get(pipeline)
        if queue is not None and not queue.records and not queue.in_flight and not queue.dropped.records:
            del self._queues[pipeline]

    def _grow(self, queue: _Queue, bytes_: int) -> None:
        queue.bytes += bytes_
        self._bytes += bytes_


def _size(record: Record) -> int:
    return _RECORD_BYTES + sum(len(value) + _FIELD_BYTES for value in record.values())
