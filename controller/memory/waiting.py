"""Journal records that wait for Redis: held within a number of bytes for all pipelines together, and what had to go is counted."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
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


@dataclass(slots=True)
class _Queue:
    records: deque[Record] = field(default_factory=deque)
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
            if longest is queue and len(queue.records) == 1:
                break  # one record is always held
            gone = longest.records.popleft()
            self._grow(longest, -_size(gone))
            number, before = gone.get("round", ""), longest.dropped
            longest.dropped = Dropped(before.records + 1, before.first_round or number, number)
            shortened.append(name)
        return shortened

    def first(self, pipeline: str) -> Record | None:
        """The oldest record of a pipeline."""
        queue = self._queues.get(pipeline)
        return queue.records[0] if queue is not None and queue.records else None

    def done(self, pipeline: str) -> None:
        """The oldest record of a pipeline is written."""
        queue = self._queues[pipeline]
        self._grow(queue, -_size(queue.records.popleft()))
        if not queue.records and not queue.dropped.records:
            del self._queues[pipeline]

    def dropped(self, pipeline: str) -> Dropped:
        """What was lost of a pipeline since it was told last."""
        queue = self._queues.get(pipeline)
        return Dropped() if queue is None else queue.dropped

    def told(self, pipeline: str) -> None:
        """The journal says by now what was lost."""
        queue = self._queues.get(pipeline)
        if queue is not None:
            queue.dropped = Dropped()
            if not queue.records:
                del self._queues[pipeline]

    def clear(self, pipeline: str) -> int:
        """Nothing of a pipeline waits any more; gives how many records did."""
        queue = self._queues.pop(pipeline, None)
        if queue is None:
            return 0
        self._bytes -= queue.bytes
        return len(queue.records)

    def count(self, pipeline: str | None = None) -> int:
        """How many records wait, of a pipeline or of all."""
        queues = self._queues.values() if pipeline is None else filter(None, [self._queues.get(pipeline)])
        return sum(len(queue.records) for queue in queues)

    def _grow(self, queue: _Queue, bytes_: int) -> None:
        queue.bytes += bytes_
        self._bytes += bytes_


def _size(record: Record) -> int:
    return _RECORD_BYTES + sum(len(value) + _FIELD_BYTES for value in record.values())
