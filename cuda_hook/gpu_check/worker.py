"""One tenant of the check: keeps the GPU busy in one shape and tells, from the kernels' own stamps, what share it had.

    python -m cuda_hook.gpu_check.worker KIND KERNEL_US GRID SYNC SECONDS RATE LEAD_MS

It prints one line of JSON. Stamps are the device's global timer, so the share owes nothing to the host's clocks.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time

import numpy as np
from numpy.typing import NDArray

from cuda_hook.accuracy.windows import share_error
from cuda_hook.gpu_check.device import Device, Launch

__all__ = ["busy_bins"]

_SLOTS = 1 << 18
_EMPTY = (1 << 64) - 1
_MIX = (20, 10_000)


def busy_bins(stamps: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Busy nanoseconds per bin of 1 ms from (first, last) instants: the union of the intervals.

    Args:
        stamps: Shape (kernels, 2), ns of the device's timer.
    """
    ordered = stamps[np.argsort(stamps[:, 0])].astype(np.int64)
    starts, ends = ordered[:, 0], np.maximum.accumulate(ordered[:, 1])
    # Where a kernel starts after everything before it has ended, a new busy interval begins.
    begins = np.flatnonzero(np.concatenate(([True], starts[1:] > ends[:-1])))
    lasts = np.concatenate((begins[1:] - 1, [len(ends) - 1]))
    origin = int(starts[0])
    edges = np.stack((starts[begins] - origin, ends[lasts] - origin), axis=1).ravel()
    busy_until = np.concatenate(([0], np.cumsum(np.where(np.arange(len(edges) - 1) % 2 == 0, np.diff(edges), 0))))
    grid = np.arange(0, int(edges[-1]) // 1_000_000 + 1) * 1_000_000
    return np.diff(np.interp(grid, edges, busy_until)).astype(np.int64)


class _Tenant:
    def __init__(self, device: Device, kind: str, kernel_us: int, grid: int) -> None:
        self._device, self._kind = device, kind
        self._streams = [device.stream() for _ in range(4)]
        log_head = np.zeros((1, 2), dtype=np.uint64)
        stamps = np.array([[_EMPTY, 0]] * _SLOTS, dtype=np.uint64)
        self._buffer = device.allocate(np.concatenate((log_head, stamps)).tobytes())
        self.launches = 0
        times = _MIX if kind == "mix" else (kernel_us,)
        # Blocks of one wave run side by side, waves one after another.
        waves = device.waves(grid)
        self._kernels = [Launch(device, us * 1000 // waves, grid, 0, device.kernel) for us in times]
        self._graph = self._capture(kernel_us * 1000 // waves, grid) if kind == "graph" else None

    def _capture(self, spin_ns: int, grid: int) -> ctypes.c_void_p:
        """A graph of four kernels."""
        part = Launch(self._device, spin_ns // 4, grid, self._buffer, self._device.logging_kernel)
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._device.call("cuStreamBeginCapture_v2", self._streams[0], 0)
        for _ in range(4):
            part(self._streams[0])
        self._device.call("cuStreamEndCapture", self._streams[0], ctypes.byref(graph))
        self._device.call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        return executable

    def launch(self) -> None:
        stream = self._streams[0]
        if self._graph is not None:
            self._device.call("cuGraphLaunch", self._graph, stream)
        else:
            kernel = self._kernels[1 if self._kind == "mix" and self.launches % 21 == 20 else 0]
            kernel.stamps.value = self._buffer + 16 * (1 + self.launches % _SLOTS)
            if self._kind == "cooperative":
                kernel(stream, "cuLaunchCooperativeKernel")
            elif self._kind == "ptsz":
                kernel(None, "cuLaunchKernel_ptsz")
            else:
                kernel(self._streams[self.launches % 4 if self._kind == "mix" else 0])
        self.launches += 1

    def wait(self) -> None:
        self._device.call("cuCtxSynchronize")

    def stamps(self) -> NDArray[np.uint64]:
        raw = self._device.read(self._buffer, 16 * (_SLOTS + 1))
        stamps = np.frombuffer(raw, dtype=np.uint64).reshape(-1, 2)[1:]
        return stamps[stamps[:, 1] > 0]


def main(kind: str, kernel_us: int, grid: int, sync: bool, seconds: float, rate: float, lead_ms: int) -> None:
    device = Device()
    tenant = _Tenant(device, kind, kernel_us, grid)
    start = time.monotonic()
    while time.monotonic() - start < seconds and tenant.launches < _SLOTS:
        tenant.launch()
        if sync:
            tenant.wait()
    tenant.wait()
    wall_s = time.monotonic() - start
    stamps = tenant.stamps()
    report: dict[str, float | int | str] = {"launches": tenant.launches, "wall_s": wall_s, "stamped": len(stamps)}
    if len(stamps) > 1:
        busy = busy_bins(stamps)[lead_ms:]
        report["share"] = float(busy.sum()) / max(1, len(busy)) / 1e6
        for width in (100, 1000):
            report[f"error_{width}_ms"] = share_error(busy, rate, width, step_ms=width // 10).mean_absolute
    print(json.dumps(report))


if __name__ == "__main__":
    _, kind_, kernel_us_, grid_, sync_, seconds_, rate_, lead_ms_ = sys.argv
    main(kind_, int(kernel_us_), int(grid_), sync_ == "1", float(seconds_), float(rate_), int(lead_ms_))
