"""GPU work through the CUDA driver API: a kernel that spins for so many nanoseconds, on a card or on the simulated driver."""

from __future__ import annotations

import ctypes

__all__ = ["Device", "DeviceError"]

_BLOCKS = 132
_THREADS = 32
_LAYER_S = 0.001

# Every block watches the card's nanosecond timer until its time is up.
_PTX = b"""
.version 6.0
.target sm_50
.address_size 64
.visible .entry spin_arg(.param .u64 duration)
{
    .reg .pred %p;
    .reg .u64 %want, %start, %now, %gone;
    ld.param.u64 %want, [duration];
    mov.u64 %start, %globaltimer;
again:
    mov.u64 %now, %globaltimer;
    sub.u64 %gone, %now, %start;
    setp.lt.u64 %p, %gone, %want;
    @%p bra again;
    ret;
}
"""


class DeviceError(RuntimeError):
    """The driver refused a call."""


class Device:
    """The first GPU that the container sees.

    Args:
        library: Name or path of the driver; the simulated one where there is no card.
    """

    def __init__(self, library: str = "libcuda.so.1") -> None:
        self._cuda = ctypes.CDLL(library)
        handle, context, module, function = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuInit", ctypes.c_uint(0))
        self._call("cuDeviceGet", ctypes.byref(handle), ctypes.c_int(0))
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
        self._call("cuCtxSetCurrent", context)
        self._call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(_PTX))
        self._call("cuModuleGetFunction", ctypes.byref(function), module, ctypes.c_char_p(b"spin_arg"))
        self._function = function

    def work(self, seconds: float) -> None:
        """Keep the whole card busy for so long, in kernels as short as a network's layers, and wait until it is done."""
        layers = max(1, round(seconds / _LAYER_S))
        duration = ctypes.c_uint64(round(seconds / layers * 1e9))
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(duration))
        shape = [ctypes.c_uint(n) for n in (_BLOCKS, 1, 1, _THREADS, 1, 1)]
        for _ in range(layers):
            self._call("cuLaunchKernel", self._function, *shape, ctypes.c_uint(0), None, parameters, None)
        self._call("cuCtxSynchronize")

    def _call(self, name: str, *arguments: object) -> None:
        status = getattr(self._cuda, name)(*arguments)
        if status != 0:
            raise DeviceError(f"{name} answered {status}")
