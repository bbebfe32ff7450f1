"""Cutting a byte stream into lines with a bound on the memory an unfinished one may take."""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["LineTooLong", "Lines"]

MAX_LINE_BYTES = 16 * 2**20
"""An object is at most 1.5 MiB in etcd's default and 3 MiB in a request; escaping as JSON can multiply that."""


class LineTooLong(ValueError):
    """A line grew past the bound."""


class Lines:
    """Feed it chunks, take whole lines; what has no end yet waits in ``rest``.

    Args:
        limit_bytes: Longest line accepted.
    """

    def __init__(self, limit_bytes: int = MAX_LINE_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._parts: list[bytes] = []
        self._length = 0

    @property
    def rest(self) -> bytes:
        """The unfinished line; empty right after a line's end."""
        return b"".join(self._parts)

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the lines that this chunk completes, without their ends; blank ones are skipped.

        Raises:
            LineTooLong: If the unfinished line exceeds the limit.
        """
        *whole, rest = chunk.split(b"\n")
        for piece in whole:
            line = b"".join((*self._parts, piece)) if self._parts else piece
            self._parts, self._length = [], 0
            if line.strip():
                yield line
        if rest:
            self._parts.append(rest)
            self._length += len(rest)
        if self._length > self._limit_bytes:
            raise LineTooLong(f"a line of more than {self._limit_bytes} bytes")
