"""Programs that show what the driver API promises. They hold on the simulated driver alone and under the hook."""

from __future__ import annotations

import ctypes
import os
import threading
import time

from tests.cuda_hook.cuda import (
    CAPTURE_IMPLICIT,
    CAPTURE_INVALIDATED,
    CAPTURE_UNJOINED,
    CAPTURE_UNSUPPORTED,
    COOPERATIVE_TOO_LARGE,
    GLOBAL,
    LEGACY,
    NOT_INITIALIZED,
    NOT_READY,
    PER_THREAD,
    RELAXED,
    SUCCESS,
    THREAD_LOCAL,
    Cuda,
    Handle,
    expect,
    in_fork,
    wait_for,
)


def events_measure_the_kernels_between_them() -> None:
    cuda = Cuda()
    stream, start, end = cuda.stream(), cuda.event(), cuda.event()
    kernel = cuda.function("spin_us_2000")
    cuda("cuEventRecord", start, stream)
    for _ in range(3):
        cuda.launch(kernel, stream)
    cuda("cuEventRecord", end, stream)
    expect(cuda.try_("cuEventQuery", end), NOT_READY)
    cuda("cuEventSynchronize", end)
    took = cuda.elapsed_ms(start, end)
    # The first kernel may be submitted a little after the event; the three together take 6 ms.
    if not 5.99 < took < 26.0:
        raise AssertionError(took)


def a_wait_for_an_event_orders_two_streams() -> None:
    cuda = Cuda()
    first, second, done = cuda.stream(), cuda.stream(), cuda.event()
    cuda.launch(cuda.function("spin_us_10000"), first)
    cuda("cuEventRecord", done, first)
    cuda("cuStreamWaitEvent", second, done, 0)
    behind = cuda.event()
    cuda("cuEventRecord", behind, second)
    expect(cuda.try_("cuEventQuery", behind), NOT_READY)
    cuda.synchronize(second)
    expect(cuda.try_("cuEventQuery", done), SUCCESS)


def the_legacy_stream_waits_for_blocking_streams_only() -> None:
    cuda = Cuda()
    blocking, free = cuda.stream(0), cuda.stream(1)
    kernel = cuda.function("spin_us_20000")
    marker = cuda.event()
    cuda.launch(kernel, blocking)
    cuda("cuEventRecord", marker, None)
    expect(cuda.try_("cuEventQuery", marker), NOT_READY)
    cuda.synchronize(blocking)
    cuda.launch(kernel, free)
    cuda("cuEventRecord", marker, None)
    expect(cuda.try_("cuEventQuery", marker), SUCCESS)
    expect(cuda.try_("cuStreamQuery", free), NOT_READY)


def the_twins_mean_different_default_streams() -> None:
    cuda = Cuda()
    cuda.launch(cuda.function("spin_us_30000"), None, twin="_ptsz")
    expect(cuda.try_("cuStreamQuery_ptsz", None), NOT_READY)
    expect(cuda.try_("cuStreamQuery", Handle(PER_THREAD)), NOT_READY)
    seen: list[int] = []
    context = Handle()
    cuda("cuCtxGetCurrent", ctypes.byref(context))

    def other_thread() -> None:
        cuda("cuCtxSetCurrent", context)
        seen.append(cuda.try_("cuStreamQuery_ptsz", None))

    thread = threading.Thread(target=other_thread)
    thread.start()
    thread.join()
    expect(seen, [SUCCESS])
    cuda("cuStreamSynchronize_ptsz", None)
    cuda.launch(cuda.function("spin_us_30000"), None)
    expect(cuda.try_("cuStreamQuery", None), NOT_READY)
    expect(cuda.try_("cuStreamQuery_ptsz", None), SUCCESS)
    expect(cuda.try_("cuStreamQuery_ptsz", Handle(LEGACY)), NOT_READY)
    cuda.synchronize()


def a_captured_graph_runs_only_when_launched() -> None:
    cuda = Cuda()
    kernel = cuda.function("spin_us_3000")
    graph = cuda.graph([kernel] * 4)
    count = ctypes.c_size_t()
    cuda("cuGraphGetNodes", graph, None, ctypes.byref(count))
    expect(count.value, 4)
    executable = cuda.make("cuGraphInstantiateWithFlags", graph, 0)
    stream, start, end = cuda.stream(), cuda.event(), cuda.event()
    cuda("cuEventRecord", start, stream)
    cuda("cuGraphLaunch", executable, stream)
    cuda("cuEventRecord", end, stream)
    cuda("cuEventSynchronize", end)
    if not 11.9 < cuda.elapsed_ms(start, end) < 40.0:
        raise AssertionError(cuda.elapsed_ms(start, end))
    cuda("cuGraphExecDestroy", executable)


def an_updated_graph_takes_its_new_kernels_time() -> None:
    cuda = Cuda()
    short, long = cuda.graph([cuda.function("spin_us_100")]), cuda.graph([cuda.function("spin_us_9000")])
    executable = cuda.make("cuGraphInstantiateWithFlags", short, 0)
    stream, start, end = cuda.stream(), cuda.event(), cuda.event()
    info = (ctypes.c_uint64 * 3)()
    cuda("cuGraphExecUpdate_v2", executable, long, info)
    cuda("cuEventRecord", start, stream)
    cuda("cuGraphLaunch", executable, stream)
    cuda("cuEventRecord", end, stream)
    cuda("cuEventSynchronize", end)
    if cuda.elapsed_ms(start, end) < 8.9:
        raise AssertionError(cuda.elapsed_ms(start, end))
    other = cuda.graph([cuda.function("spin_us_1")] * 2)
    expect(cuda.try_("cuGraphExecUpdate_v2", executable, other, info), 910)


def an_unsafe_call_of_any_thread_breaks_a_global_capture() -> None:
    cuda = Cuda()
    stream, event = cuda.stream(), cuda.event()
    cuda("cuEventRecord", event, stream)
    for mode, answer, end in (
        (GLOBAL, CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED),
        (THREAD_LOCAL, SUCCESS, SUCCESS),
        (RELAXED, SUCCESS, SUCCESS),
    ):
        cuda("cuStreamBeginCapture_v2", stream, mode)
        seen: list[int] = []
        thread = threading.Thread(target=lambda: seen.append(cuda.try_("cuEventQuery", event)))  # noqa: B023
        thread.start()
        thread.join()
        expect(seen, [answer])
        graph = Handle()
        expect(cuda.try_("cuStreamEndCapture", stream, ctypes.byref(graph)), end)


def work_on_the_legacy_stream_beside_a_capture_is_refused() -> None:
    cuda = Cuda()
    stream, kernel, status = cuda.stream(0), cuda.function("spin_us_10"), ctypes.c_int()
    cuda("cuStreamBeginCapture_v2", stream, RELAXED)
    expect(cuda.try_("cuStreamIsCapturing", None, ctypes.byref(status)), CAPTURE_IMPLICIT)
    cuda.launch(kernel, stream)
    cuda("cuStreamIsCapturing", stream, ctypes.byref(status))
    expect(status.value, 1)
    graph = cuda.make_last("cuStreamEndCapture", stream)
    expect(bool(graph), True)
    cuda("cuStreamBeginCapture_v2", stream, RELAXED)
    code = cuda.try_("cuLaunchKernel", kernel, 1, 1, 1, 1, 1, 1, 0, None, None, None)
    expect(code, CAPTURE_IMPLICIT)
    expect(cuda.try_("cuStreamEndCapture", stream, ctypes.byref(Handle())), CAPTURE_INVALIDATED)


def a_capture_forks_and_has_to_join_again() -> None:
    cuda = Cuda()
    main, side, fork, join = cuda.stream(), cuda.stream(), cuda.event(), cuda.event()
    kernel = cuda.function("spin_us_10")
    for joins, answer in ((False, CAPTURE_UNJOINED), (True, SUCCESS)):
        cuda("cuStreamBeginCapture_v2", main, GLOBAL)
        cuda.launch(kernel, main)
        cuda("cuEventRecord", fork, main)
        cuda("cuStreamWaitEvent", side, fork, 0)
        cuda.launch(kernel, side)
        if joins:
            cuda("cuEventRecord", join, side)
            cuda("cuStreamWaitEvent", main, join, 0)
        cuda.launch(kernel, main)
        expect(cuda.try_("cuStreamEndCapture", main, ctypes.byref(Handle())), answer)


def synchronising_a_capturing_stream_is_refused() -> None:
    cuda = Cuda()
    stream = cuda.stream()
    cuda("cuStreamBeginCapture_v2", stream, RELAXED)
    expect(cuda.try_("cuStreamSynchronize", stream), CAPTURE_UNSUPPORTED)
    expect(cuda.try_("cuStreamEndCapture", stream, ctypes.byref(Handle())), CAPTURE_INVALIDATED)
    expect(cuda.try_("cuStreamSynchronize", stream), SUCCESS)


def host_functions_run_between_the_work_around_them() -> None:
    cuda = Cuda()
    stream = cuda.stream()
    seen: list[int] = []
    before, after = cuda.event(), cuda.event()
    cuda.launch(cuda.function("spin_us_5000"), stream)
    cuda("cuEventRecord", before, stream)

    def note(value: int) -> None:
        time.sleep(0.01)
        seen.append(value)

    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(note)
    cuda("cuLaunchHostFunc", stream, ctypes.cast(callback, Handle), Handle(7))
    cuda("cuEventRecord", after, stream)
    cuda.synchronize(stream)
    expect(seen, [7])
    if cuda.elapsed_ms(before, after) < 9.0:
        raise AssertionError(cuda.elapsed_ms(before, after))


def a_cooperative_grid_must_fit_the_device() -> None:
    cuda = Cuda()
    kernel, stream = cuda.function("spin_us_10"), cuda.stream()
    cuda("cuLaunchCooperativeKernel", kernel, 132, 1, 1, 128, 1, 1, 0, stream, None)
    code = cuda.try_("cuLaunchCooperativeKernel", kernel, 1_000_000, 1, 1, 128, 1, 1, 0, stream, None)
    expect(code, COOPERATIVE_TOO_LARGE)
    cuda.synchronize(stream)


def a_full_queue_blocks_the_launch() -> None:
    cuda = Cuda()
    kernel, stream = cuda.function("spin_us_100"), cuda.stream()
    start = time.monotonic()
    for _ in range(2048):
        cuda.launch(kernel, stream)
    # 1,024 of them have to be done, which takes 102 ms, before the last one is taken.
    if time.monotonic() - start < 0.1:
        raise AssertionError("2,048 launches were taken at once")
    expect(cuda.try_("cuStreamQuery", stream), NOT_READY)
    cuda.synchronize(stream)


def bytes_copied_there_come_back() -> None:
    cuda = Cuda()
    pointer = ctypes.c_uint64()
    cuda("cuMemAlloc_v2", ctypes.byref(pointer), 4096)
    data, back = os.urandom(4096), ctypes.create_string_buffer(4096)
    cuda("cuMemcpyHtoD_v2", pointer, data, 4096)
    cuda("cuMemcpyDtoH_v2", back, pointer, 4096)
    expect(back.raw, data)
    cuda("cuMemFree_v2", pointer)


def a_forked_child_cannot_use_its_parents_driver() -> None:
    cuda = Cuda()
    cuda.launch(cuda.function("spin_us_10"))

    def child() -> None:
        expect(cuda.try_("cuInit", 0), NOT_INITIALIZED)
        expect(cuda.try_("cuCtxSynchronize"), NOT_INITIALIZED)

    expect(in_fork(child), 0)
    cuda.synchronize()


def a_child_forked_before_the_first_call_starts_afresh() -> None:
    ctypes.CDLL("libcuda.so.1")

    def child() -> None:
        cuda = Cuda()
        cuda.launch(cuda.function("spin_us_100"))
        cuda.synchronize()

    expect(in_fork(child), 0)
    child()


def _address(cuda: Cuda, name: str, version: int, flags: int = 0) -> tuple[int, int]:
    pointer, status = Handle(), ctypes.c_int(-1)
    cuda("cuGetProcAddress_v2", name.encode(), ctypes.byref(pointer), version, flags, ctypes.byref(status))
    return pointer.value or 0, status.value


def procedure_addresses_follow_version_and_stream_flag() -> None:
    cuda = Cuda()

    def exported(name: str) -> int:
        return ctypes.cast(cuda.library[name], Handle).value or 0

    expect(_address(cuda, "cuMemAlloc", 3000)[0], exported("cuMemAlloc"))
    expect(_address(cuda, "cuMemAlloc", 12000)[0], exported("cuMemAlloc_v2"))
    expect(_address(cuda, "cuLaunchKernel", 12000)[0], exported("cuLaunchKernel"))
    expect(_address(cuda, "cuLaunchKernel", 12000, 1)[0], exported("cuLaunchKernel"))
    expect(_address(cuda, "cuLaunchKernel", 12000, 2)[0], exported("cuLaunchKernel_ptsz"))
    expect(_address(cuda, "cuStreamBeginCapture", 10000)[0], exported("cuStreamBeginCapture"))
    expect(_address(cuda, "cuStreamBeginCapture", 12000, 2)[0], exported("cuStreamBeginCapture_v2_ptsz"))
    expect(_address(cuda, "cuGetProcAddress", 11080)[0], exported("cuGetProcAddress"))
    expect(_address(cuda, "cuGetProcAddress", 12000)[0], exported("cuGetProcAddress_v2"))
    expect(_address(cuda, "cuGraphLaunch", 9000), (0, 2))
    expect(_address(cuda, "cuDoesNotExist", 12000), (0, 1))


def streams_of_one_context_overlap_where_blocks_fit() -> None:
    cuda = Cuda()
    kernel, streams = cuda.function("spin_us_20000"), [cuda.stream() for _ in range(4)]
    start = time.monotonic()
    for stream in streams:
        cuda.launch(kernel, stream, grid=132)
    cuda("cuCtxSynchronize")
    if time.monotonic() - start > 0.075:
        raise AssertionError(f"four kernels of 20 ms took {time.monotonic() - start:.3f} s: they did not overlap")


def a_stream_destroyed_with_work_in_flight_finishes_it() -> None:
    cuda = Cuda()
    stream, event = cuda.stream(), cuda.event()
    cuda.launch(cuda.function("spin_us_10000"), stream)
    cuda("cuEventRecord", event, stream)
    cuda("cuStreamDestroy_v2", stream)
    wait_for(lambda: cuda.try_("cuEventQuery", event) == SUCCESS)
