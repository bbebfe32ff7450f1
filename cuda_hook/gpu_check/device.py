"""A CUDA driver client in ctypes: a kernel in PTX that the driver compiles itself, so that no toolkit is needed."""

from __future__ import annotations

import ctypes
import math
from typing import Any, Final

from sair.errors import MetricsUnavailable

__all__ = ["PTX", "Device", "Launch"]


def _spinning(name: str, output: str, registers: int, body: str) -> str:
    """PTX of a kernel whose blocks spin for p_ns, from %rd3 to %rd4 by the global timer, and then do something with it."""
    return f"""
.visible .entry {name}(.param .u64 p_ns, .param .u64 {output})
{{
    .reg .pred %p<4>;
    .reg .b32 %r<4>;
    .reg .b64 %rd<{registers}>;
    ld.param.u64 %rd1, [p_ns];
    ld.param.u64 %rd2, [{output}];
    mov.u64 %rd3, %globaltimer;
SPIN:
    mov.u64 %rd4, %globaltimer;
    sub.u64 %rd5, %rd4, %rd3;
    setp.lt.u64 %p1, %rd5, %rd1;
    @%p1 bra SPIN;
{body}
DONE:
    ret;
}}
"""


_TO_STAMPS = """\
    setp.eq.u64 %p2, %rd2, 0;
    @%p2 bra DONE;
    mov.u32 %r1, %tid.x;
    setp.ne.u32 %p3, %r1, 0;
    @%p3 bra DONE;
    cvta.to.global.u64 %rd6, %rd2;
    atom.global.min.u64 %rd7, [%rd6], %rd3;
    atom.global.max.u64 %rd8, [%rd6+8], %rd4;"""

_TO_LOG = """\
    mov.u32 %r1, %tid.x;
    mov.u32 %r2, %ctaid.x;
    or.b32 %r3, %r1, %r2;
    setp.ne.u32 %p2, %r3, 0;
    @%p2 bra DONE;
    cvta.to.global.u64 %rd6, %rd2;
    atom.global.add.u64 %rd7, [%rd6], 1;
    and.b64 %rd8, %rd7, 262143;
    shl.b64 %rd9, %rd8, 4;
    add.u64 %rd10, %rd6, %rd9;
    st.global.u64 [%rd10+16], %rd3;
    st.global.u64 [%rd10+24], %rd4;"""

PTX: Final = (
    "\n.version 6.0\n.target sm_60\n.address_size 64\n"
    + _spinning("spin_arg", "p_stamps", 9, _TO_STAMPS)
    + _spinning("spin_arg_log", "p_log", 11, _TO_LOG)
).encode()
"""In both, every block spins for p_ns by the device's own clock.

spin_arg: the first and last instants of the grid go to p_stamps. spin_arg_log: block 0 appends its own two instants to a
log at p_log (a counter, then pairs from byte 16 on), so that a graph, whose arguments stay the same, can be launched again.
"""

_SIZES: Final[dict[str, list[Any]]] = {
    "cuMemAlloc_v2": [ctypes.c_void_p, ctypes.c_size_t],
    "cuMemcpyHtoD_v2": [ctypes.c_uint64, ctypes.c_void_p, ctypes.c_size_t],
    "cuMemcpyDtoH_v2": [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_size_t],
}


class Device:
    """The first GPU the process may use, with the kernel loaded.

    Raises:
        MetricsUnavailable: If there is no driver, no GPU, or the driver refuses.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise MetricsUnavailable(f"no CUDA driver on this machine: {error}") from error
        self._functions: dict[str, Any] = {}
        self.call("cuInit", ctypes.c_uint(0))
        device = ctypes.c_int()
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self._device = device.value
        context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self.call("cuCtxSetCurrent", context)
        module = ctypes.c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(module), PTX)
        self.kernel, self.logging_kernel = ctypes.c_void_p(), ctypes.c_void_p()
        self.call("cuModuleGetFunction", ctypes.byref(self.kernel), module, b"spin_arg")
        self.call("cuModuleGetFunction", ctypes.byref(self.logging_kernel), module, b"spin_arg_log")

    def call(self, name: str, *arguments: Any) -> None:
        """Call a driver function.

        Raises:
            MetricsUnavailable: If it returns an error.
        """
        if name not in self._functions:
            # Looked up once: a symbol lookup for every launch would be part of what is measured.
            function = self._library[name]
            if name in _SIZES:
                function.argtypes = _SIZES[name]
            self._functions[name] = function
        code = self._functions[name](*arguments)
        if code != 0:
            text = ctypes.c_char_p()
            self._library.cuGetErrorName(code, ctypes.byref(text))
            raise MetricsUnavailable(f"{name}: {(text.value or b'unknown error').decode()} ({code})")

    def describe(self) -> str:
        """Name, multiprocessors and driver version of the GPU."""
        name = ctypes.create_string_buffer(128)
        self.call("cuDeviceGetName", name, 128, self._device)
        version = ctypes.c_int()
        self.call("cuDriverGetVersion", ctypes.byref(version))
        count = self.multiprocessors()
        return f"{name.value.decode()}, {count} SM, CUDA driver {version.value // 1000}.{version.value % 1000 // 10}"

    def multiprocessors(self) -> int:
        """How many multiprocessors the GPU has."""
        count = ctypes.c_int()
        self.call("cuDeviceGetAttribute", ctypes.byref(count), 16, self._device)
        return count.value

    def waves(self, grid: int) -> int:
        """How many rounds a grid of 128 threads a block takes on this GPU."""
        blocks = ctypes.c_int()
        name = "cuOccupancyMaxActiveBlocksPerMultiprocessor"
        self.call(name, ctypes.byref(blocks), self.kernel, 128, ctypes.c_size_t(0))
        return math.ceil(grid / (self.multiprocessors() * max(1, blocks.value)))

    def stream(self) -> ctypes.c_void_p:
        """Make a stream that does not wait for the legacy one."""
        stream = ctypes.c_void_p()
        self.call("cuStreamCreate", ctypes.byref(stream), 1)
        return stream

    def allocate(self, data: bytes) -> int:
        """Copy bytes into new device memory; its address."""
        pointer = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(pointer), len(data))
        self.call("cuMemcpyHtoD_v2", pointer, data, len(data))
        return pointer.value

    def read(self, pointer: int, size: int) -> bytes:
        """Copy bytes back."""
        data = ctypes.create_string_buffer(size)
        self.call("cuMemcpyDtoH_v2", data, pointer, size)
        return data.raw


class Launch:
    """The arguments of one launch of the kernel, kept alive as long as this is.

    Args:
        device: The GPU.
        ns: How long each block spins.
        grid: Blocks.
        stamps: Where the instants go; 0 for nowhere.
        kernel: Which of the device's kernels.
    """

    def __init__(self, device: Device, ns: int, grid: int, stamps: int, kernel: ctypes.c_void_p) -> None:
        self._device, self._kernel = device, kernel
        self._grid = grid
        self._ns, self.stamps = ctypes.c_uint64(ns), ctypes.c_uint64(stamps)
        self._parameters = (ctypes.c_void_p * 2)(ctypes.addressof(self._ns), ctypes.addressof(self.stamps))

    def __call__(self, stream: ctypes.c_void_p | None, function: str = "cuLaunchKernel") -> None:
        """Launch through one of the driver's entry points."""
        tail = (self._parameters,) if "Cooperative" in function else (self._parameters, None)
        self._device.call(function, self._kernel, self._grid, 1, 1, 128, 1, 1, 0, stream, *tail)
