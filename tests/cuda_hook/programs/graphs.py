"""Programs whose executable graphs change."""

from __future__ import annotations

import ctypes
import os
import threading

from tests.cuda_hook.cuda import GLOBAL, Cuda, Handle, counted, expect
from tests.cuda_hook.programs.copies import Copy3D
from tests.cuda_hook.programs.streams import executable_graph, held_back


def _nodes(cuda: Cuda, graph: Handle) -> list[Handle]:
    count = ctypes.c_size_t(16)
    nodes = (ctypes.c_void_p * 16)()
    cuda("cuGraphGetNodes", graph, nodes, ctypes.byref(count))
    return [Handle(node) for node in nodes[: count.value]]


class _KernelNode(ctypes.Structure):
    _fields_ = (
        ("function", ctypes.c_void_p),
        ("sizes", ctypes.c_uint * 7),
        ("params", ctypes.c_void_p),
        ("extra", ctypes.c_void_p),
        ("kernel", ctypes.c_void_p),
        ("context", ctypes.c_void_p),
    )


class _NodeParams(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("reserved", ctypes.c_int * 3),
        ("kernel", _KernelNode),
        ("rest", ctypes.c_char * (256 - 16 - ctypes.sizeof(_KernelNode))),
    )


def _sizes() -> ctypes.Array[ctypes.c_uint]:
    return (ctypes.c_uint * 7)(132, 1, 1, 128, 1, 1, 0)


def graphs_changed_in_every_way() -> None:
    """After each change the graph's cost is unknown again, also where one of before the change was still under way."""
    cuda = Cuda()
    short, long = cuda.function("spin_us_100"), cuda.function("spin_us_300")
    stream, memory = cuda.stream(), ctypes.c_uint64()
    cuda("cuMemAlloc_v2", ctypes.byref(memory), 8192)
    graph, executable = executable_graph(cuda, [short])
    kernel_node = _nodes(cuda, graph)[0]
    child, parent, child_node = cuda.graph([short]), cuda.make("cuGraphCreate", 0), Handle()
    cuda("cuGraphAddChildGraphNode", ctypes.byref(child_node), parent, None, None, child)
    nested = cuda.make("cuGraphInstantiateWithFlags", parent, 0)
    cuda("cuStreamBeginCapture_v2", stream, GLOBAL)
    cuda("cuMemcpyDtoDAsync_v2", memory, memory.value + 4096, 64, stream)
    copying_graph = cuda.make_last("cuStreamEndCapture", stream)
    copying, copy_node = cuda.make("cuGraphInstantiateWithFlags", copying_graph, 0), _nodes(cuda, copying_graph)[0]
    changed = _KernelNode(long, _sizes())
    described = _NodeParams(type=0, kernel=changed)
    copy = Copy3D(width=64, height=2, depth=1)
    fill = (ctypes.c_uint64 * 6)(memory.value, 0, 1 << 32, 128, 1, 0)
    info = (ctypes.c_uint64 * 3)()
    changes: list[tuple[str, Handle, tuple[object, ...]]] = [
        ("cuGraphExecUpdate_v2", executable, (cuda.graph([long]), info)),
        ("cuGraphExecUpdate", executable, (graph, None, None)),
        ("cuGraphExecKernelNodeSetParams", executable, (kernel_node, ctypes.byref(changed))),
        ("cuGraphExecKernelNodeSetParams_v2", executable, (kernel_node, ctypes.byref(changed))),
        ("cuGraphExecNodeSetParams", executable, (kernel_node, ctypes.byref(described))),
        ("cuGraphNodeSetEnabled", executable, (kernel_node, 1)),
        ("cuGraphExecChildGraphNodeSetParams", nested, (child_node, cuda.graph([long]))),
        ("cuGraphExecMemcpyNodeSetParams", copying, (copy_node, ctypes.byref(copy), None)),
        ("cuGraphExecMemsetNodeSetParams", copying, (copy_node, fill, None)),
    ]
    for name, which, arguments in changes:
        for _ in range(3):
            cuda("cuGraphLaunch", which, stream)
            cuda.synchronize(stream)
        known = counted("unmeasured")
        held = threading.Event()
        callback = held_back(cuda, stream, held)
        cuda("cuGraphLaunch", which, stream)
        expect((name, counted("unmeasured")), (name, known))
        cuda(name, which, *arguments)
        held.set()
        cuda.synchronize(stream)
        expect(callback is not None, True)
        cuda("cuGraphLaunch", which, stream)
        cuda.synchronize(stream)
        expect((name, counted("unmeasured")), (name, known + 1))


def an_executable_graph_at_an_address_used_before() -> None:
    """Destroyed and made anew until the address is the same: it is unknown."""
    cuda = Cuda()
    stream, graph = cuda.stream(), cuda.graph([cuda.function("spin_us_100")])
    seen: set[int | None] = set()
    for _ in range(50):
        executable = cuda.make("cuGraphInstantiateWithFlags", graph, 0)
        again = executable.value in seen
        before = counted("unmeasured")
        cuda("cuGraphLaunch", executable, stream)
        cuda.synchronize(stream)
        expect(counted("unmeasured"), before + 1)
        if again:
            return
        seen.add(executable.value)
        cuda("cuGraphExecDestroy", executable)
    if "libasan" not in os.environ["LD_PRELOAD"]:  # which keeps what was freed from being used again
        raise AssertionError("no address came again")
