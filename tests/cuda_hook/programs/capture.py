"""Programs that capture streams into graphs while the hook is limiting."""

from __future__ import annotations

import ctypes
import sys
import threading
import time

from tests.cuda_hook.cuda import GLOBAL, RELAXED, SUCCESS, Cuda, Handle, expect


def _node_count(cuda: Cuda, graph: Handle) -> int:
    count = ctypes.c_size_t()
    cuda("cuGraphGetNodes", graph, None, ctypes.byref(count))
    return count.value


def a_global_capture_survives_limited_launches_of_another_thread() -> None:
    """The other thread is throttled, measured and charged all the while; not one unsafe call of the hook may hit the capture."""
    cuda = Cuda()
    context, kernel, stop = Handle(), cuda.function("spin_us_500"), threading.Event()
    cuda("cuCtxGetCurrent", ctypes.byref(context))
    launched: list[int] = []

    def work() -> None:
        cuda("cuCtxSetCurrent", context)
        stream = cuda.stream()
        while not stop.is_set():
            cuda.launch(kernel, stream)
            launched.append(1)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        while len(launched) < 50:
            time.sleep(0.01)
        for _ in range(5):
            stream, graph = cuda.stream(), Handle()
            cuda("cuStreamBeginCapture_v2", stream, GLOBAL)
            for _ in range(20):
                cuda.launch(kernel, stream)
                time.sleep(0.002)
            expect(cuda.try_("cuStreamEndCapture", stream, ctypes.byref(graph)), SUCCESS)
            expect(_node_count(cuda, graph), 20)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def a_global_capture_may_begin_at_any_moment_of_another_threads_launch() -> None:
    """Between the hook's look for captures and its question about an event as well: hundreds of short ones."""
    cuda = Cuda()
    context, kernel, stop = Handle(), cuda.function("spin_us_20"), threading.Event()
    cuda("cuCtxGetCurrent", ctypes.byref(context))

    def work() -> None:
        cuda("cuCtxSetCurrent", context)
        stream = cuda.stream()
        while not stop.is_set():
            cuda.launch(kernel, stream)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        stream = cuda.stream()
        for _ in range(6000):
            graph = Handle()
            cuda("cuStreamBeginCapture_v2", stream, GLOBAL)
            cuda.launch(kernel, stream)
            expect(cuda.try_("cuStreamEndCapture", stream, ctypes.byref(graph)), SUCCESS)
            cuda("cuGraphDestroy", graph)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def the_twins_capture_too() -> None:
    """Through the _ptsz twins and into an existing graph; nothing of the hook's own is in the graph."""
    cuda = Cuda()
    kernel = cuda.function("spin_us_200")
    for begin, twin, handle in (
        ("cuStreamBeginCapture_v2", "", cuda.stream()),
        ("cuStreamBeginCapture_v2_ptsz", "_ptsz", None),
        ("cuStreamBeginCapture_v2_ptsz", "_ptsz", cuda.stream()),
    ):
        cuda.launch(kernel, handle, twin=twin)
        cuda(begin, handle, RELAXED)
        for _ in range(300):
            cuda.launch(kernel, handle, twin=twin)
        graph = cuda.make_last(f"cuStreamEndCapture{twin}", handle)
        expect((begin, _node_count(cuda, graph)), (begin, 300))
    cuda("cuCtxSynchronize")


def a_graph_is_charged_whenever_it_runs() -> None:
    """Ten launches of a graph of four kernels count as ten; capturing it counted as none."""
    cuda = Cuda()
    executable = cuda.make("cuGraphInstantiateWithFlags", cuda.graph([cuda.function("spin_us_100")] * 4), 0)
    stream = cuda.stream()
    for _ in range(10):
        cuda("cuGraphLaunch", executable, stream)
    cuda.synchronize(stream)
    sys.stdout.write("10\n")


def graphs_that_change_under_way() -> None:
    """Launches one executable graph for 1.5 s as 1 ms of work, then updated to 8 ms for 2.5 s."""
    cuda = Cuda()
    short, long = cuda.graph([cuda.function("spin_us_1000")]), cuda.graph([cuda.function("spin_us_8000")])
    executable = cuda.make("cuGraphInstantiateWithFlags", short, 0)
    stream, info = cuda.stream(), (ctypes.c_uint64 * 3)()
    for graph, seconds in ((short, 1.5), (long, 2.5)):
        cuda("cuGraphExecUpdate_v2", executable, graph, info)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            cuda("cuGraphLaunch", executable, stream)
    sys.stdout.write(f"{time.monotonic_ns()}\n")
