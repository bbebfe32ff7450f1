"""Programs that wait for the device in every way there is."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tests.cuda_hook.cuda import NOT_READY, Cuda, Handle, counted, expect
from tests.cuda_hook.programs.streams import current, held_back, open_batch, warm


class _Side2D(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_size_t),
        ("y", ctypes.c_size_t),
        ("kind", ctypes.c_int),
        ("host", ctypes.c_void_p),
        ("device", ctypes.c_uint64),
        ("array", ctypes.c_void_p),
        ("pitch", ctypes.c_size_t),
    )


class _Copy2D(ctypes.Structure):
    _fields_ = (("source", _Side2D), ("to", _Side2D), ("width", ctypes.c_size_t), ("height", ctypes.c_size_t))


class _Side3D(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_size_t),
        ("y", ctypes.c_size_t),
        ("z", ctypes.c_size_t),
        ("lod", ctypes.c_size_t),
        ("kind", ctypes.c_int),
        ("host", ctypes.c_void_p),
        ("device", ctypes.c_uint64),
        ("array", ctypes.c_void_p),
        ("reserved", ctypes.c_void_p),
        ("pitch", ctypes.c_size_t),
        ("height", ctypes.c_size_t),
    )


class Copy3D(ctypes.Structure):
    _fields_ = (
        ("source", _Side3D),
        ("to", _Side3D),
        ("width", ctypes.c_size_t),
        ("height", ctypes.c_size_t),
        ("depth", ctypes.c_size_t),
    )


@contextmanager
def _closes(cuda: Cuda, kernel: Handle, stream: Handle, name: str) -> Iterator[None]:
    """What happens inside closes the batch that was open before."""
    launched = open_batch(cuda, kernel, stream)
    yield
    expect((name, counted("launches")), (name, launched + 1))
    cuda.synchronize(stream)


def every_call_that_waits_closes_the_batch() -> None:
    """Copies of every kind, frees, and asking again and again."""
    cuda = Cuda()
    kernel, stream, context = cuda.function("spin_us_200"), cuda.stream(), current(cuda)
    warm(cuda, kernel, stream)
    device, other = ctypes.c_uint64(), ctypes.c_uint64()
    for pointer in (device, other):
        cuda("cuMemAlloc_v2", ctypes.byref(pointer), 4096)
    host = ctypes.create_string_buffer(os.urandom(4096), 4096)
    back = ctypes.create_string_buffer(4096)
    flat = _Copy2D(
        _Side2D(kind=1, host=ctypes.addressof(host), pitch=64), _Side2D(kind=2, device=device.value, pitch=64), 64, 64
    )
    deep = Copy3D(
        _Side3D(kind=2, device=device.value, pitch=64, height=8),
        _Side3D(kind=1, host=ctypes.addressof(back), pitch=64, height=8),
        64,
        8,
        8,
    )
    event = cuda.event()
    calls: dict[str, tuple[object, ...]] = {
        "cuMemcpyHtoD_v2": (device, host, 4096),
        "cuMemcpyDtoD_v2": (other, device, 4096),
        "cuMemcpy": (other, device, 4096),
        "cuMemcpyPeer": (other, context, device, context, 4096),
        "cuMemcpyDtoH_v2": (back, other, 4096),
        "cuMemcpy2D_v2": (ctypes.byref(flat),),
        "cuMemcpy2DUnaligned_v2": (ctypes.byref(flat),),
        "cuMemcpy3D_v2": (ctypes.byref(deep),),
    }
    for name, arguments in calls.items():
        for twin in ("", "_ptds"):
            with _closes(cuda, kernel, stream, name + twin):
                cuda(name + twin, *arguments)
    expect(back.raw, host.raw)
    with _closes(cuda, kernel, stream, "cuMemFree_v2"):
        cuda("cuMemFree_v2", other)
    for name, handle in (("cuStreamQuery", stream), ("cuStreamQuery_ptsz", stream), ("cuEventQuery", event)):
        with _closes(cuda, kernel, stream, name):
            launched, held = counted("launches"), threading.Event()
            callback = held_back(cuda, stream, held)
            cuda("cuEventRecord", event, stream)
            expect(cuda.try_(name, handle), NOT_READY)
            expect((name, counted("launches")), (name, launched))  # a program may ask once between two launches
            expect(cuda.try_(name, handle), NOT_READY)
            expect((name, counted("launches")), (name, launched + 1))
            held.set()
            cuda.synchronize(stream)
            expect(callback is not None, True)
