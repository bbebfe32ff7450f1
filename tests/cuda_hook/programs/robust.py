"""Programs that are hard on the hook."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.cuda_hook.cuda import NOT_INITIALIZED, SUCCESS, Cuda, Handle, expect, in_fork


def many_threads_launch_on_streams_of_their_own() -> None:
    cuda = Cuda()
    context, kernel = Handle(), cuda.function("spin_us_50")
    cuda("cuCtxGetCurrent", ctypes.byref(context))
    codes: list[int] = []

    def work() -> None:
        cuda("cuCtxSetCurrent", context)
        stream = cuda.stream()
        for _ in range(50):
            cuda.launch(kernel, stream)
        codes.append(cuda.try_("cuStreamSynchronize", stream))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expect(codes, [SUCCESS] * 8)


def forks_and_the_child_works_when_the_parent_had_not_begun() -> None:
    def child() -> None:
        cuda = Cuda()
        kernel, stream = cuda.function("spin_us_500"), cuda.stream()
        for _ in range(40):
            cuda.launch(kernel, stream)
        cuda.synchronize(stream)

    expect([in_fork(child) for _ in range(3)], [0, 0, 0])
    child()


def forks_while_other_threads_launch() -> None:
    cuda = Cuda()
    context, kernel, stop = Handle(), cuda.function("spin_us_100"), threading.Event()
    cuda("cuCtxGetCurrent", ctypes.byref(context))

    def work() -> None:
        cuda("cuCtxSetCurrent", context)
        stream = cuda.stream()
        while not stop.is_set():
            cuda.launch(kernel, stream)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        expect([in_fork(lambda: None) for _ in range(20)], [0] * 20)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    cuda("cuCtxSynchronize")


def forks_while_another_thread_starts_the_hook() -> None:
    """The test holds the page's lock, so that the start takes 50 ms. The child cannot use CUDA, but must not hang."""
    cuda = Cuda()
    sizes = ctypes.byref(ctypes.c_size_t()), ctypes.byref(ctypes.c_size_t())
    thread = threading.Thread(target=cuda.try_, args=("cuMemGetInfo_v2", *sizes))
    thread.start()
    time.sleep(0.01)
    try:
        expect(in_fork(lambda: expect(cuda.try_("cuMemGetInfo_v2", *sizes), NOT_INITIALIZED)), 0)
    finally:
        thread.join()


def starts_another_program_that_launches() -> None:
    cuda = Cuda()
    cuda.launch(cuda.function("spin_us_100"))
    code = "from tests.cuda_hook.programs.robust import many_threads_launch_on_streams_of_their_own as run; run()"
    expect(subprocess.run([sys.executable, "-c", code], check=False, timeout=50).returncode, 0)
    cuda.synchronize()


def overwrites_its_environment_before_the_grant_changes() -> None:
    """As programs do that set their title; then the grant becomes 0.6."""
    cuda = Cuda()
    kernel, grant = cuda.function("spin_us_10"), Path(os.environ["SAIR_GRANT_FILE"])
    cuda.launch(kernel)
    libc = ctypes.CDLL(None)
    libc.getenv.restype, libc.getenv.argtypes = Handle, [ctypes.c_char_p]
    places = {name: libc.getenv(name.encode()) for name in ("SAIR_GRANT_FILE", "SAIR_STATS_PATH")}
    for name, place in places.items():
        ctypes.memset(place, ord("x"), len(os.environ[name]))
    grant.with_name("fresh").write_text("0.6")
    grant.with_name("fresh").rename(grant)
    time.sleep(0.15)
    cuda.launch(kernel)
    cuda.synchronize()


def dies_with_work_in_flight() -> None:
    cuda = Cuda()
    kernel, stream = cuda.function("spin_us_5000"), cuda.stream()
    for _ in range(3):
        cuda.launch(kernel, stream)
    os.kill(os.getpid(), signal.SIGKILL)


def opens_and_closes_the_driver_again_and_again() -> None:
    libc = ctypes.CDLL(None)
    libc.dlclose.argtypes = [Handle]
    for _ in range(20):
        library = ctypes.CDLL("libcuda.so.1")
        libc.dlclose(library._handle)
    Cuda().launch(Cuda(context=True).function("spin_us_10"))


def launches_through_every_lookup() -> None:
    """Each way to find cuLaunchKernel; the test counts the launches in the stats page."""
    ctypes.CDLL("libcuda.so.1", mode=ctypes.RTLD_GLOBAL)  # RTLD_DEFAULT finds what was opened globally
    cuda = Cuda()
    libc = ctypes.CDLL(None)
    stream, kernel = cuda.stream(), cuda.function("spin_us_100")
    prototype = ctypes.CFUNCTYPE(ctypes.c_int, Handle, *[ctypes.c_uint] * 7, Handle, Handle, Handle)
    found: dict[str, int | None] = {"ctypes": ctypes.cast(cuda.library.cuLaunchKernel, Handle).value}
    for name, handle in (("RTLD_DEFAULT", 0), ("handle", cuda.library._handle)):
        libc.dlsym.restype, libc.dlsym.argtypes = Handle, [Handle, ctypes.c_char_p]
        found[f"dlsym {name}"] = libc.dlsym(handle, b"cuLaunchKernel")
    address, status = Handle(), ctypes.c_int()
    for lookup, version in (("cuGetProcAddress", 11030), ("cuGetProcAddress_v2", 12000)):
        tail = (ctypes.byref(status),) if lookup.endswith("v2") else ()
        cuda(lookup, b"cuLaunchKernel", ctypes.byref(address), version, 0, *tail)
        found[lookup] = address.value
    cuda("cuGetProcAddress_v2", b"cuGetProcAddress", ctypes.byref(address), 12000, 0, ctypes.byref(status))
    nested = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, Handle, ctypes.c_int, ctypes.c_uint64, Handle)(
        address.value or 0
    )
    expect(nested(b"cuLaunchKernel", ctypes.byref(address), 12000, 0, ctypes.byref(status)), 0)
    found["nested cuGetProcAddress"] = address.value
    for name, pointer in found.items():
        if not pointer:
            raise AssertionError(f"{name} found nothing")
        expect((name, prototype(pointer)(kernel, 1, 1, 1, 32, 1, 1, 0, stream, None, None)), (name, SUCCESS))
    cuda.synchronize(stream)
    sys.stdout.write(f"{len(found)}\n")


def launches_by_every_kind_of_call() -> None:
    """One launch by each entry point that starts work; prints how many."""
    cuda = Cuda()
    kernel, stream = cuda.function("spin_us_100"), cuda.stream()

    class Config(ctypes.Structure):
        _fields_ = (("sizes", ctypes.c_uint * 7), ("stream", Handle), ("attributes", Handle), ("count", ctypes.c_uint))

    config = Config((ctypes.c_uint * 7)(1, 1, 1, 32, 1, 1, 0), stream, None, 0)
    executable = cuda.make("cuGraphInstantiateWithFlags", cuda.graph([kernel]), 0)
    calls = 0
    for twin in ("", "_ptsz"):
        cuda.launch(kernel, stream, twin=twin)
        cuda(f"cuLaunchKernelEx{twin}", ctypes.byref(config), kernel, None, None)
        cuda(f"cuLaunchCooperativeKernel{twin}", kernel, 1, 1, 1, 32, 1, 1, 0, stream, None)
        cuda(f"cuGraphLaunch{twin}", executable, stream)
        calls += 4
    cuda("cuLaunchGrid", kernel, 1, 1)
    cuda("cuLaunchGridAsync", kernel, 1, 1, stream)
    cuda("cuLaunch", kernel)
    calls += 3
    cuda("cuCtxSynchronize")
    sys.stdout.write(f"{calls}\n")
