"""A CUDA client in ctypes, for the programs that the tests run in processes of their own. Imports nothing heavy."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SUCCESS, INVALID_VALUE, OUT_OF_MEMORY, NOT_INITIALIZED = 0, 1, 2, 3
NOT_FOUND, NOT_READY = 500, 600
CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED, CAPTURE_UNJOINED, CAPTURE_IMPLICIT = 900, 901, 904, 906
COOPERATIVE_TOO_LARGE = 720
GLOBAL, THREAD_LOCAL, RELAXED = 0, 1, 2
LEGACY, PER_THREAD = 1, 2

Handle = ctypes.c_void_p

_ARGUMENTS: dict[str, list[Any]] = {
    "cuLaunchKernel": [Handle, *[ctypes.c_uint] * 7, Handle, Handle, Handle],
    "cuLaunchCooperativeKernel": [Handle, *[ctypes.c_uint] * 7, Handle, Handle],
    "cuMemAlloc_v2": [Handle, ctypes.c_size_t],
    "cuMemFree_v2": [ctypes.c_uint64],
    "cuMemAllocManaged": [Handle, ctypes.c_size_t, ctypes.c_uint],
    "cuMemAllocPitch_v2": [Handle, Handle, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_uint],
    "cuMemAllocAsync": [Handle, ctypes.c_size_t, Handle],
    "cuMemFreeAsync": [ctypes.c_uint64, Handle],
    "cuMemAllocFromPoolAsync": [Handle, ctypes.c_size_t, Handle, Handle],
    "cuMemCreate": [Handle, ctypes.c_size_t, Handle, ctypes.c_ulonglong],
    "cuMemRelease": [ctypes.c_uint64],
    "cuMemAddressReserve": [Handle, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_uint64, ctypes.c_ulonglong],
    "cuMemMap": [ctypes.c_uint64, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_uint64, ctypes.c_ulonglong],
    "cuMemUnmap": [ctypes.c_uint64, ctypes.c_size_t],
    "cuMemMapArrayAsync": [Handle, ctypes.c_uint, Handle],
    "cuMemExportToShareableHandle": [Handle, ctypes.c_uint64, ctypes.c_int, ctypes.c_ulonglong],
    "cuMulticastBindMem": [
        *(ctypes.c_uint64, ctypes.c_size_t, ctypes.c_uint64),
        *(ctypes.c_size_t, ctypes.c_size_t, ctypes.c_ulonglong),
    ],
    "cuMulticastBindAddr": [ctypes.c_uint64, ctypes.c_size_t, ctypes.c_uint64, ctypes.c_size_t, ctypes.c_ulonglong],
    "cuMulticastUnbind": [ctypes.c_uint64, ctypes.c_int, ctypes.c_size_t, ctypes.c_size_t],
    "cuMemcpyHtoD_v2": [ctypes.c_uint64, Handle, ctypes.c_size_t],
    "cuMemcpyDtoH_v2": [Handle, ctypes.c_uint64, ctypes.c_size_t],
    "cuMemcpyDtoD_v2": [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_size_t],
    "cuMemcpyDtoDAsync_v2": [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_size_t, Handle],
    "cuMemcpy": [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_size_t],
    "cuMemcpyPeer": [ctypes.c_uint64, Handle, ctypes.c_uint64, Handle, ctypes.c_size_t],
    "cuGetProcAddress": [ctypes.c_char_p, Handle, ctypes.c_int, ctypes.c_uint64],
    "cuGetProcAddress_v2": [ctypes.c_char_p, Handle, ctypes.c_int, ctypes.c_uint64, Handle],
    "cuMipmappedArrayCreate": [Handle, Handle, ctypes.c_uint],
    "cuStreamBeginCapture_v2": [Handle, ctypes.c_int],
    "cuStreamBeginCaptureToGraph": [Handle, Handle, Handle, Handle, ctypes.c_size_t, ctypes.c_int],
    "cuStreamBeginRecaptureToGraph": [Handle, ctypes.c_int, Handle, Handle, Handle],
    "cuStreamCreate": [Handle, ctypes.c_uint],
    "cuEventCreate": [Handle, ctypes.c_uint],
    "cuStreamWaitEvent": [Handle, Handle, ctypes.c_uint],
    "cuGraphInstantiateWithFlags": [Handle, Handle, ctypes.c_ulonglong],
    "cuGraphExecUpdate_v2": [Handle, Handle, Handle],
    "cuLaunchHostFunc": [Handle, Handle, Handle],
    "cuInit": [ctypes.c_uint],
    "cuDevicePrimaryCtxRetain": [Handle, ctypes.c_int],
    "cuGraphNodeSetEnabled": [Handle, Handle, ctypes.c_uint],
    "cuGraphCreate": [Handle, ctypes.c_uint],
    "cuGreenCtxCreate": [Handle, Handle, ctypes.c_int, ctypes.c_uint],
    "cuGreenCtxStreamCreate": [Handle, Handle, ctypes.c_uint, ctypes.c_int],
    "cuCtxAttach": [Handle, ctypes.c_uint],
    "cuCtxCreate_v2": [Handle, ctypes.c_uint, ctypes.c_int],
    "cuDeviceTotalMem_v2": [Handle, ctypes.c_int],
    "cuDeviceGetDefaultMemPool": [Handle, ctypes.c_int],
}


class CudaError(Exception):
    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name} returned {code}")
        self.code = code


class Cuda:
    """libcuda.so.1 with a primary context on device 0; calls raise CudaError, ``try_`` gives the code instead."""

    def __init__(self, *, context: bool = True) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")
        self.module = Handle()
        if context:
            self("cuInit", 0)
            current = Handle()
            self("cuDevicePrimaryCtxRetain", ctypes.byref(current), 0)
            self("cuCtxSetCurrent", current)
            self("cuModuleLoadData", ctypes.byref(self.module), b"\x7fELF simulated")

    def try_(self, name: str, *arguments: Any) -> int:
        function = self.library[name]
        base = name.removesuffix("_ptsz").removesuffix("_ptds")
        function.argtypes = _ARGUMENTS.get(base) or [Handle] * len(arguments)
        return int(function(*arguments))

    def __call__(self, name: str, *arguments: Any) -> None:
        code = self.try_(name, *arguments)
        if code != SUCCESS:
            raise CudaError(name, code)

    def make(self, name: str, *arguments: Any) -> Handle:
        """Call a constructor whose first argument is where the handle goes."""
        handle = Handle()
        self(name, ctypes.byref(handle), *arguments)
        return handle

    def function(self, name: str) -> Handle:
        return self.make("cuModuleGetFunction", self.module, name.encode())

    def stream(self, flags: int = 1) -> Handle:
        return self.make("cuStreamCreate", flags)

    def event(self) -> Handle:
        return self.make("cuEventCreate", 0)

    def launch(self, function: Handle, stream: Any = None, *, grid: int = 132, twin: str = "") -> None:
        self(f"cuLaunchKernel{twin}", function, grid, 1, 1, 128, 1, 1, 0, stream, None, None)

    def synchronize(self, stream: Any = None) -> None:
        self("cuStreamSynchronize", stream)

    def elapsed_ms(self, start: Handle, end: Handle) -> float:
        took = ctypes.c_float()
        self("cuEventElapsedTime", ctypes.byref(took), start, end)
        return took.value

    def memory(self) -> tuple[int, int]:
        available, total = ctypes.c_size_t(), ctypes.c_size_t()
        self("cuMemGetInfo_v2", ctypes.byref(available), ctypes.byref(total))
        return available.value, total.value

    def graph(self, kernels: list[Handle], *, mode: int = GLOBAL) -> Handle:
        """Capture kernels into a graph."""
        stream = self.stream()
        self("cuStreamBeginCapture_v2", stream, mode)
        for kernel in kernels:
            self.launch(kernel, stream)
        return self.make_last("cuStreamEndCapture", stream)

    def make_last(self, name: str, *arguments: Any) -> Handle:
        """Call a constructor whose last argument is where the handle goes."""
        handle = Handle()
        self(name, *arguments, ctypes.byref(handle))
        return handle


def expect(found: object, wanted: object) -> None:
    """assert that also says what it found, without pytest's rewriting."""
    if found != wanted:
        raise AssertionError(f"{found!r}, expected {wanted!r}")


_SLOTS_OFFSET, _SLOT_BYTES, _SLOTS = 128 + 4 * 16632, 256, 128
_COUNTERS = {"outstanding_ns": 24, "launches": 56, "busy_ns": 72, "batches": 88, "unmeasured": 96, "unmeasurable": 248}


def counted(name: str) -> int:
    """A counter of the stats page, summed over the processes of the container this one runs in."""
    at, page = _COUNTERS[name], Path(os.environ["SAIR_STATS_PATH"]).read_bytes()
    return sum(
        int.from_bytes(page[_SLOTS_OFFSET + slot * _SLOT_BYTES + at :][:8], "little", signed=True)
        for slot in range(_SLOTS)
    )


def wait_for(condition: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError("waited in vain")
        time.sleep(0.001)


def in_fork(work: Callable[[], None], *, timeout_s: int = 20) -> int:
    """Run work in a forked child; its exit status, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(timeout_s)
        try:
            work()
            os._exit(0)
        except BaseException as error:  # the child must not run its parent's code
            os.write(2, f"in the child: {error!r}\n".encode())
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
