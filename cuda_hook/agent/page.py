"""A stats page as the agent sees it: counters read from it, and the one block the agent writes.

The layout is that of ``cuda_hook/src/stats_page.h``. A page belongs to a tenant, who may write anything into it at any time:
what is read is treated as such, and nothing of it is ever used as an index or a length. The page is read and written as a
file: a mapping would let a tenant kill the agent (SIGBUS) by truncating it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from sair.errors import WireError

__all__ = ["PAGE_BYTES", "AgentBlock", "GpuSection", "Page", "PageView", "ProcessSlot"]

MAGIC: Final = 0x3145474150524153
VERSION: Final = 1
GPUS: Final = 4
SLOTS: Final = 128

_HEADER = struct.Struct("<QIIIIIIQQQQQQ")
_HEADER_BYTES: Final = 128
_GPU = struct.Struct("<16sQQQqqqQQQQQQQQ")
_GPU_BYTES: Final = 128 + 64 + 56 + 8 * 2048
_AGENT_OFFSET: Final = 128
_AGENT = struct.Struct("<QQQQQIIQ")
"""What follows the block's sequence number."""
_WORD = struct.Struct("<Q")
_MASK: Final = 0xFFFF_FFFF_FFFF_FFFF
_SLOT = struct.Struct("<QQqqQQQQQQQQQQQQQ")
_SLOT_BYTES: Final = 256
PAGE_BYTES: Final = _HEADER_BYTES + GPUS * _GPU_BYTES + SLOTS * _SLOT_BYTES


@dataclass(frozen=True, slots=True)
class GpuSection:
    """One GPU of the container."""

    index: int
    """Place of the section in the page."""
    uuid: str
    """As NVML writes it: ``GPU-…``."""
    charged_ns: int
    measured_ns: int
    """Busy time by event spans; includes other tenants' slices while they were active."""
    scale: float
    """Factor on the uncontended cost."""
    retired_launches: int
    retired_busy_ns: int
    retired_throttled_ns: int


@dataclass(frozen=True, slots=True)
class ProcessSlot:
    """One process of the container on one GPU."""

    gpu: int
    """Index of the GPU's section."""
    pid: int
    """As the container sees it."""
    start_ticks: int
    outstanding_ns: int
    """Busy time charged for work that has not completed."""
    launches: int
    graph_launches: int
    busy_ns: int
    throttled_ns: int
    memory_bytes: int
    memory_refused: int
    last_seen_ns: int
    """When it last took budget; ns of CLOCK_MONOTONIC."""


@dataclass(frozen=True, slots=True)
class PageView:
    """Everything of a page at about one moment."""

    rate: float
    """Rate in force, (0, 1]."""
    grant_state: int
    grant_errors: int
    memory_granted_bytes: int
    """0: no limit."""
    slots_refused: int
    reaped: int
    gpus: tuple[GpuSection, ...]
    slots: tuple[ProcessSlot, ...]


@dataclass(frozen=True, slots=True)
class AgentBlock:
    """What the agent tells a container about one of its GPUs; times in ns of CLOCK_MONOTONIC."""

    updated_ns: int
    peers_last_active_ns: int
    own_busy_ns: int
    own_busy_from_ns: int
    own_busy_until_ns: int
    peers_active: int
    period_ms: int


class Page:
    """A stats page. It is open only while it is read or written: kubelet cannot unmount the volume under an open file, and the pod
    would stay there, terminating, for as long as the agent runs.

    Args:
        path: The file. It must be a plain file of at least the page's size: a tenant could put anything there.

    Raises:
        WireError: If it is something else, or holds no page of this version.
        OSError: If it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.identity: tuple[int, int] | None = None
        """Device and inode."""
        self.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Nothing is kept open."""

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        # No link is followed and no FIFO waited for: the folder is the tenant's.
        descriptor = os.open(self.path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise WireError(str(self.path), stat.filemode(status.st_mode), "a plain file")
            identity = (status.st_dev, status.st_ino)
            if self.identity not in (None, identity):
                raise WireError(str(self.path), "another file", "the file that was there before")
            self.identity = identity
            yield descriptor
        finally:
            os.close(descriptor)

    @staticmethod
    def has_agent(path: Path) -> bool:
        """Whether an agent ever wrote into the first section of the page at a path."""
        try:
            with path.open("rb") as file:
                file.seek(_HEADER_BYTES + _AGENT_OFFSET)
                return any(file.read(8))
        except OSError:
            return False

    def read(self) -> PageView:
        """Read the whole page.

        Raises:
            WireError: If it was truncated, replaced, or is no page of this version.
            OSError: If it is gone.
        """
        with self._opened() as descriptor:
            data = os.pread(descriptor, PAGE_BYTES, 0)
        if len(data) < PAGE_BYTES:
            raise WireError(str(self.path), f"{len(data)} bytes", f"{PAGE_BYTES} bytes")
        magic, version, size, _, _, rate_ppm, state, _, errors, memory, _, refused, reaped = _HEADER.unpack_from(data)
        if magic != MAGIC or version != VERSION or size != PAGE_BYTES:
            raise WireError(
                str(self.path), f"magic {magic:#x}, version {version}", f"a stats page of version {VERSION}"
            )
        gpus = tuple(section for index in range(GPUS) if (section := _section(data, index)) is not None)
        slots = tuple(slot for index in range(SLOTS) if (slot := _slot(data, index)) is not None)
        rate = min(max(rate_ppm, 1), 1_000_000) / 1e6
        return PageView(rate, state, errors, memory, refused, reaped, gpus, slots)

    def write(self, gpu: int, block: AgentBlock) -> None:
        """Write the agent's block of one GPU; the sequence number is odd while it is being written.

        Args:
            gpu: Index of the section.
            block: What to say.

        Raises:
            WireError: If it was replaced.
            OSError: If it is gone.
        """
        with self._opened() as descriptor:
            self._write(descriptor, gpu, block)

    @staticmethod
    def _write(descriptor: int, gpu: int, block: AgentBlock) -> None:
        at = _HEADER_BYTES + gpu * _GPU_BYTES + _AGENT_OFFSET
        (sequence,) = _WORD.unpack(os.pread(descriptor, 8, at).ljust(8, b"\0"))
        odd = (sequence | 1) & _MASK
        body = _AGENT.pack(
            block.updated_ns,
            block.peers_last_active_ns,
            block.own_busy_ns,
            block.own_busy_from_ns,
            block.own_busy_until_ns,
            block.peers_active,
            block.period_ms,
            0,
        )
        os.pwrite(descriptor, _WORD.pack(odd), at)
        os.pwrite(descriptor, body, at + 8)
        # Never 0, which means that no agent was ever here.
        os.pwrite(descriptor, _WORD.pack(((odd + 1) & _MASK) or 2), at)


def _section(data: bytes, index: int) -> GpuSection | None:
    fields = _GPU.unpack_from(data, _HEADER_BYTES + index * _GPU_BYTES)
    uuid, claim, _, _, charged, _, measured, scale, _, _, _, launches, busy, throttled, _ = fields
    if claim != 2:
        return None
    return GpuSection(index, format_uuid(uuid), charged, measured, scale / 1e6, launches, busy, throttled)


def _slot(data: bytes, index: int) -> ProcessSlot | None:
    at = _HEADER_BYTES + GPUS * _GPU_BYTES + index * _SLOT_BYTES
    owner, ticks, _, outstanding, _, _, _, launches, graphs, busy, throttled, _, _, memory, _, refused, seen = (
        _SLOT.unpack_from(data, at)
    )
    gpu = (owner >> 32) - 1
    if owner == 0 or not 0 <= gpu < GPUS:
        return None
    pid = owner & 0xFFFF_FFFF
    return ProcessSlot(gpu, pid, ticks, outstanding, launches, graphs, busy, throttled, memory, refused, seen)


def format_uuid(raw: bytes) -> str:
    """Write the 16 bytes of a GPU's UUID as NVML does."""
    text = raw.hex()
    return f"GPU-{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
