"""Programs about device memory; SAIR_GPU_MEMORY_MIB in their environment is the limit they meet."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable

from tests.cuda_hook.cuda import OUT_OF_MEMORY, SUCCESS, Cuda, Handle, expect

MIB = 2**20


class _Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _AllocationProp(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location", _Location),
        ("win32", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
    )


class _Array3D(ctypes.Structure):
    _fields_ = (
        ("width", ctypes.c_size_t),
        ("height", ctypes.c_size_t),
        ("depth", ctypes.c_size_t),
        ("format", ctypes.c_int),
        ("channels", ctypes.c_uint),
        ("flags", ctypes.c_uint),
    )


class _OldArray3D(ctypes.Structure):
    """Of CUDA 2 and 3.0."""

    _fields_ = (
        ("width", ctypes.c_uint),
        ("height", ctypes.c_uint),
        ("depth", ctypes.c_uint),
        ("format", ctypes.c_int),
        ("channels", ctypes.c_uint),
        ("flags", ctypes.c_uint),
    )


class _PoolProps(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location", _Location),
        ("rest", ctypes.c_uint64 * 9),
    )


class _ArrayMap(ctypes.Structure):
    _fields_ = (
        ("resource_type", ctypes.c_int),
        ("resource", ctypes.c_uint64),
        ("subresource_type", ctypes.c_int),
        ("subresource", ctypes.c_uint64 * 4),
        ("operation", ctypes.c_int),
        ("handle_type", ctypes.c_int),
        ("handle", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("devices", ctypes.c_uint),
        ("flags", ctypes.c_uint),
        ("reserved", ctypes.c_uint * 2),
    )


class _AllocNode(ctypes.Structure):
    _fields_ = (
        ("pool", _PoolProps),
        ("access", ctypes.c_void_p),
        ("access_count", ctypes.c_size_t),
        ("bytes", ctypes.c_size_t),
        ("pointer", ctypes.c_uint64),
    )


class _Node(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("reserved", ctypes.c_int * 3),
        ("alloc", _AllocNode),
        ("rest", ctypes.c_uint64 * 15),
    )


class _External(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("handle", ctypes.c_uint64 * 2),
        ("size", ctypes.c_ulonglong),
        ("flags", ctypes.c_uint),
        ("reserved", ctypes.c_uint * 16),
    )


class _Record:
    """What the simulated device itself says this container holds, in MiB."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libsimgpu.so")
        self._library.simgpu_attach()
        self._library.simgpu_read_memory.restype = ctypes.c_uint64

    def __call__(self, device: int = 0) -> float:
        held: int = self._library.simgpu_read_memory(os.environ["SAIR_SIMGPU_TENANT"].encode(), device)
        return held / MIB


class _Paths:
    """Every way to allocate: each gives the driver's answer, and remembers how to free."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._free: Callable[[], None] = lambda: None

    def free(self) -> None:
        self._free()

    def _pooled(self, code: int, pointer: ctypes.c_uint64) -> int:
        """Freed when its stream gets there; the pool lets go of it at the next synchronisation."""

        def free() -> None:
            self._cuda("cuMemFreeAsync", pointer, None)
            self._cuda.synchronize()

        self._free = free
        return code

    def _linear(self, code: int, pointer: ctypes.c_uint64, release: str, *rest: object) -> int:
        self._free = lambda: self._cuda(release, pointer, *rest)
        return code

    def plain(self, size: int) -> int:
        pointer = ctypes.c_uint64()
        return self._linear(self._cuda.try_("cuMemAlloc_v2", ctypes.byref(pointer), size), pointer, "cuMemFree_v2")

    def managed(self, size: int) -> int:
        pointer = ctypes.c_uint64()
        code = self._cuda.try_("cuMemAllocManaged", ctypes.byref(pointer), size, 1)
        return self._linear(code, pointer, "cuMemFree_v2")

    def pitched(self, size: int) -> int:
        pointer, pitch = ctypes.c_uint64(), ctypes.c_size_t()
        code = self._cuda.try_("cuMemAllocPitch_v2", ctypes.byref(pointer), ctypes.byref(pitch), 4096, size // 4096, 4)
        return self._linear(code, pointer, "cuMemFree_v2")

    def stream_ordered(self, size: int) -> int:
        pointer = ctypes.c_uint64()
        return self._pooled(self._cuda.try_("cuMemAllocAsync", ctypes.byref(pointer), size, None), pointer)

    def from_pool(self, size: int) -> int:
        pointer, pool = ctypes.c_uint64(), self._cuda.make("cuDeviceGetDefaultMemPool", 0)
        code = self._cuda.try_("cuMemAllocFromPoolAsync", ctypes.byref(pointer), size, pool, None)
        return self._pooled(code, pointer)

    def virtual(self, size: int) -> int:
        prop, handle = _AllocationProp(1, 0, _Location(1, 0), None, 0), ctypes.c_uint64()
        code = self._cuda.try_("cuMemCreate", ctypes.byref(handle), size, ctypes.byref(prop), 0)
        self._free = lambda: self._cuda("cuMemRelease", handle)
        return code

    def mapped_virtual(self, size: int) -> int:
        """Released while mapped: the memory goes with the last mapping."""
        code = self.virtual(size)
        if code != SUCCESS:
            return code
        address, release = ctypes.c_uint64(), self._free
        prop, handle = _AllocationProp(1, 0, _Location(1, 0), None, 0), ctypes.c_uint64()
        release()
        code = self._cuda.try_("cuMemCreate", ctypes.byref(handle), size, ctypes.byref(prop), 0)
        self._cuda("cuMemAddressReserve", ctypes.byref(address), size, 0, 0, 0)
        self._cuda("cuMemMap", address, size, 0, handle, 0)
        self._cuda("cuMemRelease", handle)
        self._free = lambda: self._cuda("cuMemUnmap", address, size)
        return code

    def array(self, size: int) -> int:
        descriptor, handle = _Array3D(size // 4096, 1024, 0, 0x20, 1, 0), Handle()
        code = self._cuda.try_("cuArray3DCreate_v2", ctypes.byref(handle), ctypes.byref(descriptor))
        self._free = lambda: self._cuda("cuArrayDestroy", handle)
        return code

    def old_linear(self, size: int) -> int:
        pointer = ctypes.c_uint()
        code = self._cuda.try_("cuMemAlloc", ctypes.byref(pointer), size)
        self._free = lambda: self._cuda("cuMemFree", pointer.value)
        return code

    def old_array(self, size: int) -> int:
        descriptor, handle = _OldArray3D(size // 4096, 1024, 0, 0x20, 1, 0), Handle()
        code = self._cuda.try_("cuArray3DCreate", ctypes.byref(handle), ctypes.byref(descriptor))
        self._free = lambda: self._cuda("cuArrayDestroy", handle)
        return code

    def mipmapped(self, size: int) -> int:
        descriptor, handle = _Array3D(size // 4096, 1024, 0, 0x20, 1, 0), Handle()
        code = self._cuda.try_("cuMipmappedArrayCreate", ctypes.byref(handle), ctypes.byref(descriptor), 1)
        self._free = lambda: self._cuda("cuMipmappedArrayDestroy", handle)
        return code

    def external(self, size: int) -> int:
        descriptor, handle = _External(1, (ctypes.c_uint64 * 2)(), size, 0), Handle()
        code = self._cuda.try_("cuImportExternalMemory", ctypes.byref(handle), ctypes.byref(descriptor))
        self._free = lambda: self._cuda("cuDestroyExternalMemory", handle)
        return code


PATHS = (
    "plain",
    "managed",
    "pitched",
    "stream_ordered",
    "from_pool",
    "virtual",
    "mapped_virtual",
    "old_linear",
    "array",
    "old_array",
    "mipmapped",
    "external",
)


def every_path_counts_and_gives_back_exactly() -> None:
    cuda = Cuda()
    before, _ = cuda.memory()
    for name in PATHS:
        paths = _Paths(cuda)
        expect((name, getattr(paths, name)(64 * MIB)), (name, SUCCESS))
        expect((name, before - cuda.memory()[0]), (name, 64 * MIB))
        paths.free()
        expect((name, cuda.memory()[0]), (name, before))


def no_path_exceeds_the_limit() -> None:
    """Under a limit of 256 MiB: 200 fit, 57 more do not by any path, 56 do."""
    cuda, record = Cuda(), _Record()
    held = _Paths(cuda)
    expect(held.plain(200 * MIB), SUCCESS)
    for name in PATHS:
        paths = _Paths(cuda)
        expect((name, getattr(paths, name)(58 * MIB)), (name, OUT_OF_MEMORY))
        expect((name, getattr(paths, name)(56 * MIB)), (name, SUCCESS))
        expect((name, cuda.memory(), record()), (name, (0, 256 * MIB), 256))
        paths.free()
    held.free()
    expect(cuda.memory(), (256 * MIB, 256 * MIB))


def _held(cuda: Cuda) -> int:
    return 256 * MIB - cuda.memory()[0]


def graphs_count_what_they_allocate_until_they_are_destroyed() -> None:
    """Under a limit of 256 MiB: nodes that allocate count from their creation on, however the graph was made."""
    cuda = Cuda()
    props = _PoolProps(1, 0, _Location(1, 0))
    graph, node = cuda.make("cuGraphCreate", 0), Handle()
    params = _AllocNode(pool=props, bytes=64 * MIB)
    cuda("cuGraphAddMemAllocNode", ctypes.byref(node), graph, None, 0, ctypes.byref(params))
    expect(_held(cuda), 64 * MIB)
    for name, edges, held in (("cuGraphAddNode", (), 128), ("cuGraphAddNode_v2", (None,), 192)):
        described = _Node(type=10, alloc=_AllocNode(pool=props, bytes=64 * MIB))
        cuda(name, ctypes.byref(node), graph, None, *edges, 0, ctypes.byref(described))
        expect((name, _held(cuda)), (name, held * MIB))
    described = _Node(type=10, alloc=_AllocNode(pool=props, bytes=65 * MIB))
    expect(cuda.try_("cuGraphAddNode", ctypes.byref(node), graph, None, 0, ctypes.byref(described)), OUT_OF_MEMORY)
    host = _AllocNode(pool=_PoolProps(1, 0, _Location(2, 0)), bytes=65 * MIB)
    cuda("cuGraphAddMemAllocNode", ctypes.byref(node), graph, None, 0, ctypes.byref(host))
    executable = cuda.make("cuGraphInstantiateWithFlags", graph, 0)
    cuda("cuGraphDestroy", graph)
    expect(_held(cuda), 192 * MIB)
    cuda("cuGraphExecDestroy", executable)
    expect(_held(cuda), 0)


def captures_the_same_again_and_again() -> None:
    """Under a limit of 256 MiB: a graph that allocates and frees 64 MiB, captured anew a hundred times."""
    cuda, record = Cuda(), _Record()
    stream, pointer = cuda.stream(), ctypes.c_uint64()
    for turn in range(100):
        twin = "_ptsz" if turn % 2 else ""
        cuda(f"cuStreamBeginCapture_v2{twin}", stream, 2)
        cuda(f"cuMemAllocAsync{twin}", ctypes.byref(pointer), 64 * MIB, stream)
        cuda(f"cuMemFreeAsync{twin}", pointer, stream)
        graph = cuda.make_last(f"cuStreamEndCapture{twin}", stream)
        expect((turn, _held(cuda)), (turn, 64 * MIB))
        executable = cuda.make("cuGraphInstantiateWithFlags", graph, 0)
        cuda("cuGraphDestroy", graph)
        for _ in range(2):
            cuda("cuGraphLaunch", executable, stream)
        cuda.synchronize(stream)
        expect((turn, _held(cuda), record()), (turn, 64 * MIB, 64))
        cuda("cuGraphExecDestroy", executable)
    expect((_held(cuda), record()), (0, 0))


def what_a_pool_keeps_counts() -> None:
    """Under a limit of 256 MiB: memory freed into a pool is the process's until the pool lets it go."""
    cuda, record = Cuda(), _Record()
    pool, pointer = cuda.make("cuDeviceGetDefaultMemPool", 0), ctypes.c_uint64()
    cuda("cuMemPoolSetAttribute", pool, Handle(4), ctypes.byref(ctypes.c_uint64(2**63)))
    for _ in range(5):
        cuda("cuMemAllocAsync", ctypes.byref(pointer), 200 * MIB, None)
        cuda("cuMemFreeAsync", pointer, None)
        cuda.synchronize()
        expect((_held(cuda), record()), (200 * MIB, 200))
    other = _Paths(cuda)
    expect(other.plain(56 * MIB), SUCCESS)
    expect((_held(cuda), record()), (256 * MIB, 256))
    other.free()
    # What is lacking is taken from the pool.
    expect(other.plain(200 * MIB), SUCCESS)
    expect((_held(cuda), record()), (200 * MIB, 200))
    expect(cuda.try_("cuMemAllocAsync", ctypes.byref(pointer), 200 * MIB, None), OUT_OF_MEMORY)
    other.free()


def a_pool_that_grows_by_more_than_fits_is_refused() -> None:
    """Under a limit of 256 MiB, with a driver whose pools grow by 64 MiB at a time."""
    cuda, record = Cuda(), _Record()
    pointer, second = ctypes.c_uint64(), ctypes.c_uint64()
    cuda("cuMemAllocAsync", ctypes.byref(pointer), 10 * MIB, None)
    expect((_held(cuda), record()), (64 * MIB, 64))
    held = _Paths(cuda)
    expect(held.plain(192 * MIB), SUCCESS)
    cuda("cuMemAllocAsync", ctypes.byref(second), 54 * MIB, None)
    cuda("cuMemFreeAsync", second, None)
    held.free()
    expect(held.plain(150 * MIB), SUCCESS)
    expect(_Paths(cuda).plain(10 * MIB), SUCCESS)
    cuda("cuMemFreeAsync", pointer, None)
    cuda.synchronize()
    expect(held.plain(40 * MIB), SUCCESS)
    expect((_held(cuda), record()), (200 * MIB, 200))
    expect(cuda.try_("cuMemAllocAsync", ctypes.byref(pointer), 10 * MIB, None), OUT_OF_MEMORY)
    expect((_held(cuda), record()), (200 * MIB, 200))


def many_threads_use_pools() -> None:
    """Under a limit of 256 MiB, of which eight threads with up to 48 MiB each could take more."""
    cuda, record = Cuda(), _Record()
    context, standard = Handle(), cuda.make("cuDeviceGetDefaultMemPool", 0)
    cuda("cuCtxGetCurrent", ctypes.byref(context))
    failures: list[BaseException] = []

    def work(number: int) -> None:
        cuda("cuCtxSetCurrent", context)
        stream, own = cuda.stream(), Handle()
        for turn in range(60):
            if turn % 10 == 0:
                cuda("cuMemPoolCreate", ctypes.byref(own), ctypes.byref(_PoolProps(1, 0, _Location(1, 0))))
            pointers = [ctypes.c_uint64() for _ in range(3)]
            size = (1 + (turn * 7 + number * 5) % 16) * MIB
            made = [
                cuda.try_("cuMemAllocAsync", ctypes.byref(pointers[0]), size, stream),
                cuda.try_("cuMemAllocFromPoolAsync", ctypes.byref(pointers[1]), size, own, stream),
                cuda.try_("cuMemAllocFromPoolAsync", ctypes.byref(pointers[2]), size, standard, stream),
            ]
            if not set(made) <= {SUCCESS, OUT_OF_MEMORY}:
                raise AssertionError(made)
            if turn % 10 == 9:
                cuda("cuMemPoolDestroy", own)
            for code, pointer in zip(made, pointers, strict=True):
                if code == SUCCESS:
                    cuda("cuMemFreeAsync", pointer, stream)
            if turn % 4 == 0:
                cuda.synchronize(stream)

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    highest = 0.0
    while any(thread.is_alive() for thread in threads):
        highest = max(highest, record())
    expect(failures, [])
    if not 0 < highest <= 256:
        raise AssertionError(f"{highest} MiB at most")
    cuda("cuCtxSynchronize")
    expect((_held(cuda), record()), (0, 0))


def counts_where_it_lies() -> None:
    """On two devices, the current one being the first."""
    cuda, record = Cuda(), _Record()
    first, second, pointer = Handle(), Handle(), ctypes.c_uint64()
    cuda("cuCtxGetCurrent", ctypes.byref(first))
    cuda("cuDevicePrimaryCtxRetain", ctypes.byref(second), 1)
    cuda("cuCtxSetCurrent", second)
    stream = cuda.stream()
    cuda("cuCtxSetCurrent", first)

    def held() -> tuple[int, int]:
        sizes = []
        for context in (second, first):
            cuda("cuCtxSetCurrent", context)
            sizes.append(_held(cuda) // MIB)
        return sizes[1], sizes[0]

    cuda("cuMemAllocAsync", ctypes.byref(pointer), 64 * MIB, stream)
    expect((held(), record(0), record(1)), ((0, 64), 0, 64))
    cuda("cuMemFreeAsync", pointer, stream)
    cuda.synchronize(stream)
    expect((held(), record(0), record(1)), ((0, 0), 0, 0))
    for location, counted in ((_Location(1, 1), (0, 64)), (_Location(2, 0), (0, 0)), (_Location(3, 0), (0, 0))):
        pool = cuda.make("cuMemPoolCreate", ctypes.byref(_PoolProps(1, 0, location)))
        cuda("cuMemAllocFromPoolAsync", ctypes.byref(pointer), 64 * MIB, pool, None)
        expect((location.type, held(), record(0), record(1)), (location.type, counted, *map(float, counted)))
        cuda("cuMemFreeAsync", pointer, None)
        cuda("cuMemPoolDestroy", pool)
        expect((location.type, held(), record(0), record(1)), (location.type, (0, 0), 0, 0))
    for device, counted in ((0, (64, 0)), (1, (0, 64))):
        pool = cuda.make("cuDeviceGetDefaultMemPool", device)
        cuda("cuMemAllocFromPoolAsync", ctypes.byref(pointer), 64 * MIB, pool, None)
        expect((held(), record(0), record(1)), (counted, *map(float, counted)))
        cuda("cuMemFreeAsync", pointer, None)
        cuda.synchronize()


def physical_memory_counts_while_anything_uses_it() -> None:
    """A handle that is released lives on in a sparse array, in a multicast object, and in whatever imports it."""
    cuda, record = Cuda(), _Record()

    def physical() -> ctypes.c_uint64:
        prop, handle = _AllocationProp(1, 0, _Location(1, 0), None, 0), ctypes.c_uint64()
        cuda("cuMemCreate", ctypes.byref(handle), 64 * MIB, ctypes.byref(prop), 0)
        return handle

    handle, array = physical(), Handle()
    cuda("cuArray3DCreate_v2", ctypes.byref(array), ctypes.byref(_Array3D(16384, 1024, 0, 0x20, 1, 0x40)))
    described = _ArrayMap(resource=array.value, operation=1, handle=handle.value)
    cuda("cuMemMapArrayAsync", ctypes.byref(described), 1, None)
    cuda("cuMemRelease", handle)
    expect((_held(cuda), record()), (64 * MIB, 64))
    cuda("cuArrayDestroy", array)
    expect((_held(cuda), record()), (0, 0))

    multicast, address = ctypes.c_uint64(), ctypes.c_uint64()
    cuda("cuMulticastCreate", ctypes.byref(multicast), ctypes.byref(ctypes.c_uint64()))
    handle = physical()
    cuda("cuMulticastBindMem", multicast, 0, handle, 0, 64 * MIB, 0)
    cuda("cuMemRelease", handle)
    expect((_held(cuda), record()), (64 * MIB, 64))
    cuda("cuMulticastUnbind", multicast, 0, 0, 64 * MIB)
    expect((_held(cuda), record()), (0, 0))

    handle = physical()
    cuda("cuMemAddressReserve", ctypes.byref(address), 64 * MIB, 0, 0, 0)
    cuda("cuMemMap", address, 64 * MIB, 0, handle, 0)
    cuda("cuMulticastBindAddr", multicast, 0, address, 64 * MIB, 0)
    cuda("cuMemRelease", handle)
    cuda("cuMemUnmap", address, 64 * MIB)
    expect((_held(cuda), record()), (64 * MIB, 64))
    cuda("cuMulticastUnbind", multicast, 0, 0, 64 * MIB)
    expect((_held(cuda), record()), (0, 0))

    handle = physical()
    cuda("cuMemExportToShareableHandle", ctypes.byref(ctypes.c_int()), handle, 1, 0)
    cuda("cuMemRelease", handle)
    expect((_held(cuda), record()), (64 * MIB, 64))


def counts_what_the_card_gives_out() -> None:
    """Rows as wide as the driver makes them, and small allocations in blocks of 2 MiB that they share."""
    cuda, record = Cuda(), _Record()
    pointer, pitch = ctypes.c_uint64(), ctypes.c_size_t()
    arguments = ctypes.byref(pointer), ctypes.byref(pitch), 8, 128 * 1024, 4
    cuda("cuMemAllocPitch_v2", *arguments)
    expect((_held(cuda), record()), (128 * MIB, 128))
    hole = _Paths(cuda)
    expect(hole.plain(30 * MIB), SUCCESS)
    expect(cuda.try_("cuMemAllocPitch_v2", *arguments), OUT_OF_MEMORY)
    expect((_held(cuda), record()), (158 * MIB, 158))
    small = [_Paths(cuda) for _ in range(5000)]
    for one in small:
        expect(one.plain(1), SUCCESS)
    expect((_held(cuda), record()), (162 * MIB, 162))
    for one in small:
        one.free()
    expect((_held(cuda), record()), (158 * MIB, 158))
    expect(_Paths(cuda).plain(3 * MIB), SUCCESS)
    expect((_held(cuda), record()), (162 * MIB, 162))


def pools_belong_to_the_device() -> None:
    """What came from a pool outlives the context that was current, and the pool; it is given back when it is freed."""
    cuda = Cuda()
    context, pointer = Handle(), ctypes.c_uint64()
    cuda("cuCtxCreate_v2", ctypes.byref(context), 0, 0)
    cuda("cuMemAllocAsync", ctypes.byref(pointer), 64 * MIB, None)
    cuda("cuCtxDestroy_v2", context)
    expect(_held(cuda), 64 * MIB)
    cuda("cuMemFreeAsync", pointer, None)
    cuda.synchronize()
    expect(_held(cuda), 0)
    pool = cuda.make("cuMemPoolCreate", ctypes.byref(_PoolProps(1, 0, _Location(1, 0))))
    cuda("cuMemAllocFromPoolAsync", ctypes.byref(pointer), 64 * MIB, pool, None)
    cuda("cuMemPoolDestroy", pool)
    expect(_held(cuda), 64 * MIB)
    cuda("cuMemFreeAsync", pointer, None)
    expect(_held(cuda), 0)


def the_limit_is_what_the_device_reports() -> None:
    cuda = Cuda()
    total = ctypes.c_size_t()
    cuda("cuDeviceTotalMem_v2", ctypes.byref(total), 0)
    expect(total.value, 256 * MIB)
    expect(cuda.memory(), (256 * MIB, 256 * MIB))
    old_total, old_free = ctypes.c_uint(), ctypes.c_uint()
    cuda("cuDeviceTotalMem", ctypes.byref(old_total), Handle(0))
    expect(old_total.value, 256 * MIB)
    cuda("cuMemGetInfo", ctypes.byref(old_free), ctypes.byref(old_total))
    expect((old_free.value, old_total.value), (256 * MIB, 256 * MIB))
    # "Use 90 % of the card" has to work.
    expect(_Paths(cuda).plain(int(0.9 * total.value)), SUCCESS)


class _NvmlMemory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _NvmlMemoryV2(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint),
        *((name, ctypes.c_ulonglong) for name in ("total", "reserved", "free", "used")),
    )


def _by_nvml(index: int = 0) -> tuple[int, int, int]:
    """Total, free and used memory in MiB; both versions of the call say the same."""
    nvml = ctypes.CDLL("libnvidia-ml.so.1")
    expect(nvml.nvmlInit_v2(), 0)
    device, memory, newer = Handle(), _NvmlMemory(), _NvmlMemoryV2(version=ctypes.sizeof(_NvmlMemoryV2) | 2 << 24)
    expect(nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)), 0)
    expect(nvml.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory)), 0)
    expect(nvml.nvmlDeviceGetMemoryInfo_v2(device, ctypes.byref(newer)), 0)
    expect((newer.total, newer.free, newer.used), (memory.total, memory.free, memory.used))
    return memory.total // MIB, memory.free // MIB, memory.used // MIB


def nvml_reports_the_limit_as_well() -> None:
    cuda = Cuda()
    expect(_Paths(cuda).plain(56 * MIB), SUCCESS)
    expect(_by_nvml(), (256, 200, 56))


def nvml_reports_the_device_that_is_asked_about() -> None:
    """Of two; the second is not in use at first."""
    cuda = Cuda()
    expect(_Paths(cuda).plain(56 * MIB), SUCCESS)
    expect((_by_nvml(0), _by_nvml(1)), ((256, 200, 56), (256, 256, 0)))
    second = Handle()
    cuda("cuDevicePrimaryCtxRetain", ctypes.byref(second), 1)
    cuda("cuCtxSetCurrent", second)
    expect(_Paths(cuda).plain(100 * MIB), SUCCESS)
    expect((_by_nvml(0), _by_nvml(1)), ((256, 200, 56), (256, 156, 100)))


def queries_leave_out_a_sibling_that_died() -> None:
    cuda = Cuda()
    expect(_Paths(cuda).plain(56 * MIB), SUCCESS)
    queries: tuple[Callable[[], int], ...] = (lambda: cuda.memory()[0] // MIB, lambda: _by_nvml()[1])
    for query in queries:
        code = "from tests.cuda_hook.programs.memory import holds_memory_and_dies as program; program()"
        expect(subprocess.run([sys.executable, "-c", code], check=False, timeout=50).returncode, -9)
        expect(query(), 200)


def a_destroyed_context_gives_its_memory_back() -> None:
    cuda = Cuda()
    before = cuda.memory()
    context = Handle()
    cuda("cuCtxCreate_v2", ctypes.byref(context), 0, 0)
    expect(_Paths(cuda).plain(100 * MIB), SUCCESS)
    expect(_Paths(cuda).array(64 * MIB), SUCCESS)
    expect(before[0] - cuda.memory()[0], 164 * MIB)
    cuda("cuCtxDestroy_v2", context)
    expect(cuda.memory(), before)


def holds_memory_and_dies() -> None:
    cuda = Cuda()
    expect(_Paths(cuda).plain(200 * MIB), SUCCESS)
    os.kill(os.getpid(), 9)


def has_the_whole_limit() -> None:
    cuda = Cuda()
    expect(_Paths(cuda).plain(256 * MIB), SUCCESS)
