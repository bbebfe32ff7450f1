"""Programs whose streams, threads and contexts come and go; they look into their own stats page."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.cuda_hook.cuda import GLOBAL, SUCCESS, Cuda, Handle, counted, expect, in_fork


def warm(cuda: Cuda, kernel: Handle, stream: Handle | None = None, *, twin: str = "") -> None:
    """Let the kernel's cost be known."""
    for _ in range(4):
        cuda.launch(kernel, stream, twin=twin)
        cuda(f"cuStreamSynchronize{twin}", stream)


def open_batch(cuda: Cuda, kernel: Handle, stream: Handle | None = None) -> int:
    """Launch once, so that a batch is open; returns how many launches were counted before."""
    for _ in range(20):
        launched = counted("launches")
        cuda.launch(kernel, stream)
        if counted("launches") == launched:
            return launched
        # On a slow machine the kernel was not measured for 100 ms: this launch was measured by itself, and its batch is closed.
        cuda("cuStreamSynchronize", stream)
    raise AssertionError("every launch was measured by itself")


def _span(start_ns: int) -> None:
    sys.stdout.write(f"{start_ns} {time.monotonic_ns()}\n")


def current(cuda: Cuda) -> Handle:
    return cuda.make("cuCtxGetCurrent")


def held_back(cuda: Cuda, stream: Handle, held: threading.Event) -> object:
    """What is queued on the stream from now on waits for the event; keep what is returned until then."""
    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: held.wait(30) and None)
    cuda("cuLaunchHostFunc", stream, ctypes.cast(callback, Handle), None)
    return callback


def executable_graph(cuda: Cuda, kernels: list[Handle]) -> tuple[Handle, Handle]:
    graph = cuda.graph(kernels)
    return graph, cuda.make("cuGraphInstantiateWithFlags", graph, 0)


def _short_threads(cuda: Cuda, kernel: Handle, *, second_context: bool) -> None:
    """400 threads, each launching 1.2 ms of work into its own default stream and ending without waiting for it."""
    context = current(cuda)

    def work() -> None:
        cuda("cuCtxSetCurrent", context)
        for _ in range(3):
            cuda.launch(kernel, twin="_ptsz")

    for number in range(400):
        if second_context and number == 200:
            other = cuda.make("cuCtxCreate_v2", 0, 0)
            cuda("cuCtxPopCurrent_v2", ctypes.byref(other))
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()


def threads_end_without_waiting() -> None:
    """Prints when it started and ended; nothing is left outstanding."""
    cuda = Cuda()
    kernel = cuda.function("spin_us_400")
    warm(cuda, kernel)
    start = time.monotonic_ns()
    _short_threads(cuda, kernel, second_context=False)
    cuda.synchronize()
    cuda("cuCtxSynchronize")
    _span(start)
    expect(counted("outstanding_ns"), 0)
    expect(counted("launches"), 1204)


def threads_end_and_a_second_context_appears() -> None:
    """Likewise."""
    cuda = Cuda()
    kernel = cuda.function("spin_us_400")
    warm(cuda, kernel)
    start = time.monotonic_ns()
    _short_threads(cuda, kernel, second_context=True)
    cuda("cuCtxSynchronize")
    _span(start)
    expect(counted("outstanding_ns"), 0)
    expect(counted("launches"), 1204)


def a_batch_of_the_legacy_stream_is_closed_though_contexts_appear() -> None:
    """Of the first context's as of the second's, whichever is current when the program waits."""
    cuda = Cuda()
    kernel, first = cuda.function("spin_us_300"), current(cuda)
    warm(cuda, kernel)
    launched = open_batch(cuda, kernel)
    cuda.launch(kernel)
    second, module = cuda.make("cuCtxCreate_v2", 0, 0), Handle()
    cuda("cuCtxSynchronize")
    expect(counted("launches"), launched + 2)
    cuda("cuModuleLoadData", ctypes.byref(module), b"\x7fELF simulated")
    other = cuda.make("cuModuleGetFunction", module, b"spin_us_300")
    warm(cuda, other)
    launched = counted("launches")
    cuda.launch(other)
    cuda("cuCtxSetCurrent", first)
    cuda.launch(kernel)
    cuda("cuCtxSynchronize")
    expect(counted("launches"), launched + 2)
    cuda("cuCtxSetCurrent", second)
    cuda("cuCtxSynchronize")
    expect(counted("outstanding_ns"), 0)


def destroyed_at_rate_1() -> None:
    """A stream with an open batch, destroyed after the grant became 1: its batch is closed and settled."""
    cuda = Cuda()
    kernel, stream, other = cuda.function("spin_us_300"), cuda.stream(), cuda.stream()
    warm(cuda, kernel, stream)
    open_batch(cuda, kernel, stream)
    Path(os.environ["SAIR_GRANT_FILE"]).write_text("1")
    for _ in range(30):
        time.sleep(0.01)
        cuda.launch(kernel, other)  # looks at the grant; at rate 1 it is counted at once
    before = counted("launches")
    cuda("cuStreamDestroy_v2", stream)
    expect(counted("launches"), before + 1)
    Path(os.environ["SAIR_GRANT_FILE"]).write_text("0.5")
    time.sleep(0.15)
    cuda.launch(kernel, other)
    cuda("cuCtxSynchronize")
    expect(counted("outstanding_ns"), 0)


def threads_submit_to_one_stream() -> None:
    """Four at once, more than the driver queues, so that they block inside it; nothing is left outstanding."""
    cuda = Cuda()
    context, stream, kernel, free = current(cuda), cuda.stream(), cuda.function("spin_ns_500"), threading.Event()
    warm(cuda, kernel, stream)
    keep = held_back(cuda, stream, free)

    def work() -> None:
        cuda("cuCtxSetCurrent", context)
        for _ in range(600):
            cuda.launch(kernel, stream)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    free.set()
    for thread in threads:
        thread.join()
    cuda.synchronize(stream)
    expect((counted("outstanding_ns"), counted("launches")), (0, 2404))
    expect(keep is not None, True)


def more_kernels_than_can_be_known() -> None:
    """6000 launch shapes, then 3 s of ever new ones of 2 ms; prints when those began and ended."""
    cuda = Cuda()
    quick, kernel, stream = cuda.function("spin_ns_2000"), cuda.function("spin_us_2000"), cuda.stream()
    for grid in range(1, 6001):
        cuda.launch(quick, stream, grid=grid)
    cuda.synchronize(stream)
    start, grid = time.monotonic_ns(), 0
    while time.monotonic_ns() < start + 3_000_000_000:
        grid += 1
        cuda.launch(kernel, stream, grid=grid)
    _span(start)


def more_streams_than_can_be_known() -> None:
    """300 streams in turn, each launch of a shape of its own, for 3 s."""
    cuda = Cuda()
    kernel, streams = cuda.function("spin_us_2000"), [cuda.stream() for _ in range(300)]
    start, number = time.monotonic_ns(), 0
    while time.monotonic_ns() < start + 3_000_000_000:
        number += 1
        cuda.launch(kernel, streams[number % 300], grid=number)
    _span(start)
    expect(counted("unmeasurable"), 0)


def unknown_kernels_beside_a_long_capture() -> None:
    """One thread captures in global mode for 3 s, another launches ever new shapes of 2 ms."""
    cuda = Cuda()
    context, kernel = current(cuda), cuda.function("spin_us_2000")
    capturing, stream, graph = cuda.stream(), cuda.stream(), Handle()
    warm(cuda, kernel, stream)
    spans: list[int] = []
    cuda("cuStreamBeginCapture_v2", capturing, GLOBAL)

    def work() -> None:
        cuda("cuCtxSetCurrent", context)
        start, grid = time.monotonic_ns(), 1000
        while time.monotonic_ns() < start + 3_000_000_000:
            grid += 1
            cuda.launch(kernel, stream, grid=grid)
        spans.append(start)

    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        cuda.launch(kernel, capturing)
        time.sleep(0.005)
    thread.join()
    _span(spans[0])
    expect(cuda.try_("cuStreamEndCapture", capturing, ctypes.byref(graph)), SUCCESS)
    expect(counted("unmeasurable"), 0)


def forks_beside_threads_that_launch() -> None:
    """300 times, while four threads open and close batches all the time."""
    cuda = Cuda()
    context, kernel, stop = current(cuda), cuda.function("spin_us_1"), threading.Event()

    def work() -> None:
        cuda("cuCtxSetCurrent", context)
        streams = [cuda.stream(), cuda.stream()]
        while not stop.is_set():
            for stream in streams:
                cuda.launch(kernel, stream)
                cuda.synchronize(stream)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        expect([in_fork(lambda: None, timeout_s=10) for _ in range(300)], [0] * 300)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def captures_into_existing_graphs() -> None:
    """What is captured into a graph is neither charged nor held up, and measuring goes on when it has ended."""
    cuda = Cuda()
    kernel, stream, work = cuda.function("spin_us_200"), cuda.stream(), cuda.stream()
    warm(cuda, kernel, work)
    graph = cuda.make("cuGraphCreate", 0)
    begins: list[tuple[str, tuple[object, ...]]] = [
        ("cuStreamBeginCaptureToGraph", (graph, None, None, 0, GLOBAL)),
        ("cuStreamBeginRecaptureToGraph", (GLOBAL, graph, None, None)),
    ]
    for name, arguments in begins:
        for twin, handle in (("", stream), ("_ptsz", stream), ("_ptsz", None)):
            before = counted("launches")
            cuda(name + twin, handle, *arguments)
            for _ in range(300):
                cuda.launch(kernel, handle, twin=twin)
            expect((name, cuda.try_(f"cuStreamEndCapture{twin}", handle, ctypes.byref(Handle()))), (name, SUCCESS))
            expect((name, twin, counted("launches")), (name, twin, before))
    executable = cuda.make("cuGraphInstantiateWithFlags", graph, 0)
    batches = counted("batches")
    cuda("cuGraphLaunch", executable, work)
    cuda.synchronize(work)
    expect(counted("batches"), batches + 1)


def work_in_other_contexts_is_measured() -> None:
    """Streams of a green context, and of one whose stream is used while another context is current."""
    cuda = Cuda()
    first, library = current(cuda), Handle()
    cuda("cuLibraryLoadData", ctypes.byref(library), b"\x7fELF simulated", None, None, 0, None, None, 0)
    kernel = cuda.make("cuLibraryGetKernel", library, b"spin_us_300")
    green = cuda.make("cuGreenCtxCreate", None, 0, 1)
    context, stream = cuda.make("cuCtxFromGreenCtx", green), Handle()
    cuda("cuGreenCtxStreamCreate", ctypes.byref(stream), green, 1, 0)
    expect(current(cuda).value, first.value)
    for number in range(1, 40):
        cuda.launch(kernel, stream, grid=number)
        cuda.synchronize(stream)
    expect((counted("batches"), counted("unmeasurable")), (39, 0))
    busy = counted("busy_ns")
    if not 39 * 290_000 < busy < 39 * 360_000:
        raise AssertionError(f"39 launches of 300 us measured as {busy} ns")
    cuda("cuCtxSetCurrent", context)
    for _ in range(10):
        cuda.launch(kernel)
    cuda("cuCtxSetCurrent", first)
    cuda("cuGreenCtxDestroy", green)
    expect(counted("outstanding_ns"), 0)
    # What its contexts' events were must not be met again.
    for _ in range(5):
        green = cuda.make("cuGreenCtxCreate", None, 0, 1)
        cuda("cuCtxSetCurrent", cuda.make("cuCtxFromGreenCtx", green))
        for number in range(20):
            cuda.launch(kernel, grid=1000 + number)
            cuda("cuCtxSynchronize")
        cuda("cuCtxSetCurrent", first)
        cuda("cuGreenCtxDestroy", green)
    expect(counted("unmeasurable"), 0)


def a_context_that_is_detached() -> None:
    """The last detach ends it, as a destroy would; one before does not."""
    cuda = Cuda()
    for _ in range(5):
        context, module = cuda.make("cuCtxCreate_v2", 0, 0), Handle()
        cuda("cuModuleLoadData", ctypes.byref(module), b"\x7fELF simulated")
        kernel = cuda.make("cuModuleGetFunction", module, b"spin_us_100")
        cuda("cuCtxAttach", ctypes.byref(context), 0)
        cuda("cuCtxDetach", context)
        for number in range(20):
            cuda.launch(kernel, grid=1 + number)
        cuda("cuCtxDetach", context)
        expect((counted("outstanding_ns"), counted("unmeasurable")), (0, 0))


def _contexts_of_two_devices(cuda: Cuda) -> tuple[list[Handle], list[Handle]]:
    contexts, streams = [], []
    for device in range(2):
        context = cuda.make("cuDevicePrimaryCtxRetain", device)
        cuda("cuCtxSetCurrent", context)
        contexts.append(context)
        streams.append(cuda.stream())
    return contexts, streams


def kernels_run_on_the_streams_device() -> None:
    """The second device's streams are used while the first's context is current, for 3 s; kernels take 2 ms there."""
    cuda = Cuda()
    contexts, streams = _contexts_of_two_devices(cuda)
    cuda("cuCtxSetCurrent", contexts[0])
    library = Handle()
    cuda("cuLibraryLoadData", ctypes.byref(library), b"\x7fELF simulated", None, None, 0, None, None, 0)
    kernel = cuda.make("cuLibraryGetKernel", library, b"spin_us_2000")
    _, executable = executable_graph(cuda, [kernel])
    work: list[Callable[[Handle], None]] = [
        lambda stream: cuda.launch(kernel, stream),
        lambda stream: cuda("cuGraphLaunch", executable, stream),
    ]
    start, number = time.monotonic_ns(), 0
    while time.monotonic_ns() < start + 3_000_000_000:
        work[number % 2](streams[1])
        if number % 10 == 0:
            work[0](streams[0])
        number += 1
    _span(start)
