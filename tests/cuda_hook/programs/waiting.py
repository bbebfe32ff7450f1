"""Programs whose work waits for other work of theirs: whoever is held back must not be held back for ever."""

from __future__ import annotations

import ctypes
import sys
import threading
import time

from tests.cuda_hook.cuda import Cuda, Handle, expect


def _blocked(cuda: Cuda, stream: Handle, released: threading.Event) -> object:
    """Everything queued on the stream from now on waits for the event."""
    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: released.wait(30) and None)
    cuda("cuLaunchHostFunc", stream, ctypes.cast(callback, Handle), None)
    return callback


def a_launch_does_not_wait_for_ever_for_one_that_cannot_run() -> None:
    """As between ranks: the first stream's kernel runs only after the second stream's has, and both are of unknown cost."""
    cuda = Cuda()
    kernel, first, second, released = cuda.function("spin_us_300"), cuda.stream(), cuda.stream(), threading.Event()
    keep = _blocked(cuda, first, released)
    cuda.launch(kernel, first)
    start = time.monotonic()
    for _ in range(3):
        cuda.launch(kernel, second)
    cuda.synchronize(second)
    took = time.monotonic() - start
    released.set()
    cuda.synchronize(first)
    expect(keep is not None, True)
    if took > 2.0:
        raise AssertionError(f"three launches took {took:.1f} s")


def known_work_that_cannot_run_does_not_use_up_the_room() -> None:
    """Hundreds of milliseconds of known work are queued behind a wait; another stream still gets on."""
    cuda = Cuda()
    kernel, first, second, released = cuda.function("spin_us_2000"), cuda.stream(), cuda.stream(), threading.Event()
    for _ in range(20):
        cuda.launch(kernel, second)
    cuda.synchronize(second)
    keep = _blocked(cuda, first, released)
    start = time.monotonic()
    for _ in range(8):
        cuda.launch(kernel, first)
    for _ in range(8):
        cuda.launch(kernel, second)
    cuda.synchronize(second)
    took = time.monotonic() - start
    released.set()
    cuda.synchronize(first)
    expect(keep is not None, True)
    if took > 5.0:
        raise AssertionError(f"sixteen launches took {took:.1f} s")


def contexts_come_and_go_with_work_in_flight() -> None:
    """Twenty contexts, each destroyed while batches of its streams are open and unharvested; prints the launches."""
    cuda = Cuda()
    launches = 0
    for _ in range(20):
        context, module = Handle(), Handle()
        cuda("cuCtxCreate_v2", ctypes.byref(context), 0, 0)
        cuda("cuModuleLoadData", ctypes.byref(module), b"\x7fELF simulated")
        kernel, stream = cuda.make("cuModuleGetFunction", module, b"spin_us_100"), cuda.stream()
        for _ in range(30):
            cuda.launch(kernel, stream)
            cuda.launch(kernel, None)
            launches += 2
        cuda("cuCtxDestroy_v2", context)
    kernel, stream = cuda.function("spin_us_100"), cuda.stream()
    for _ in range(100):
        cuda.launch(kernel, stream)
    cuda.synchronize(stream)
    sys.stdout.write(f"{launches + 100}\n")


class _Part(ctypes.Structure):
    _fields_ = (
        ("function", ctypes.c_void_p),
        ("sizes", ctypes.c_uint * 7),
        ("stream", ctypes.c_void_p),
        ("parameters", ctypes.c_void_p),
    )


def one_cooperative_launch_on_two_devices() -> None:
    """Launches kernels of 5 ms on two devices by single calls for 3 s; prints when it ended."""
    cuda = Cuda()
    parts = (_Part * 2)()
    keep = []
    for device in range(2):
        context, module = Handle(), Handle()
        cuda("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        cuda("cuCtxSetCurrent", context)
        cuda("cuModuleLoadData", ctypes.byref(module), b"\x7fELF simulated")
        kernel, stream = cuda.make("cuModuleGetFunction", module, b"spin_us_5000"), cuda.stream()
        keep += [kernel, stream]
        sizes = (ctypes.c_uint * 7)(132, 1, 1, 128, 1, 1, 0)
        parts[device] = _Part(kernel, sizes, stream, None)
    until = time.monotonic() + 3.0
    while time.monotonic() < until:
        cuda("cuLaunchCooperativeKernelMultiDevice", ctypes.byref(parts), 2, 0)
    sys.stdout.write(f"{time.monotonic_ns()}\n")
