"""PyTorch under the hook: iterations per second of an eager or CUDA-graph loop, or how it meets its memory limit.

    python -m cuda_hook.gpu_check.torch_worker eager|graph|memory SECONDS

It prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time

import torch


def throughput(seconds: float, *, graphed: bool) -> dict[str, float]:
    """Run a stack of matrix products for some seconds.

    Args:
        seconds: Measured time, after half a second of settling.
        graphed: Replay it as a CUDA graph instead of launching kernel by kernel.

    Returns:
        ``iterations_per_s``.
    """
    x = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)
    weights = [torch.randn(4096, 4096, device="cuda", dtype=torch.float16) / 64 for _ in range(8)]

    def step() -> torch.Tensor:
        y = x
        for weight in weights:
            y = torch.relu(y @ weight)
        return y

    for _ in range(3):
        step()
    torch.cuda.synchronize()
    run = step
    if graphed:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        run = graph.replay
    # The first half second belongs to settling.
    for phase_s in (0.5, seconds):
        count, start = 0, time.monotonic()
        while time.monotonic() - start < phase_s:
            run()
            count += 1
            if count % 8 == 0:
                torch.cuda.synchronize()
        torch.cuda.synchronize()
        rate = count / (time.monotonic() - start)
    return {"iterations_per_s": rate}


def memory() -> dict[str, float | bool]:
    """Fill the memory the driver reports: half of it, past it (which has to fail), and most of it again.

    Returns:
        ``total_mib`` and ``free_mib`` as reported at first, and whether going past the total was ``refused_over_limit``.
    """
    available, total = torch.cuda.mem_get_info()
    held = torch.empty(int(0.5 * total), dtype=torch.uint8, device="cuda")
    refused = False
    try:
        torch.empty(int(0.9 * total), dtype=torch.uint8, device="cuda")
    except torch.cuda.OutOfMemoryError:
        refused = True
    del held
    torch.cuda.empty_cache()
    torch.empty(int(0.8 * total), dtype=torch.uint8, device="cuda")
    return {"total_mib": total / 2**20, "free_mib": available / 2**20, "refused_over_limit": refused}


if __name__ == "__main__":
    mode, duration_s = sys.argv[1], float(sys.argv[2])
    print(json.dumps(memory() if mode == "memory" else throughput(duration_s, graphed=mode == "graph")))
