"""What the simulated GPU itself saw: busy time per tenant, read through its shared file."""

from __future__ import annotations

import ctypes
import os
import tempfile
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sair.errors import NotFound

__all__ = ["BUILD", "GroundTruth"]

BUILD = Path(__file__).resolve().parents[1] / "build"
"""Where cuda_hook/Makefile puts what it builds."""

_COPIES = tempfile.TemporaryDirectory(prefix="sair-simgpu-")
_ENVIRONMENT = threading.Lock()


class GroundTruth:
    """One simulated GPU, as its own record shows it.

    The library maps one file per process, named by the environment when it is first used; each instance therefore loads a
    copy of its own.

    Args:
        path: The shared file of the simulated GPU.
        library: libsimgpu.so.
        settings: SAIR_SIMGPU_… variables that the file is created with, such as the arbiter.

    Raises:
        NotFound: If the library is not built.
    """

    def __init__(self, path: Path, *, library: Path | None = None, settings: dict[str, str] | None = None) -> None:
        library = library or BUILD / "driver" / "libsimgpu.so"
        if not library.exists():
            raise NotFound(f"{library} is not built; run: make hook")
        self.path = path
        self._library = self._load_private(library)
        self._library.simgpu_read_bins.argtypes = [
            ctypes.c_char_p,
            ctypes.c_int,
            ctypes.c_uint64,
            ctypes.c_uint32,
            ctypes.c_void_p,
        ]
        for name in ("simgpu_read_busy", "simgpu_read_memory"):
            getattr(self._library, name).argtypes = [ctypes.c_char_p, ctypes.c_int]
            getattr(self._library, name).restype = ctypes.c_uint64
        self._library.simgpu_read_kernels.argtypes = [ctypes.c_char_p]
        self._library.simgpu_read_kernels.restype = ctypes.c_uint64
        self._library.simgpu_attach.restype = ctypes.c_void_p
        self._library.simgpu_configure.argtypes = [ctypes.c_char_p, ctypes.c_int64]
        self._attach(settings or {})

    def _load_private(self, library: Path) -> ctypes.CDLL:
        # A copy is another library to the loader, with its own mapping; told apart by inode, so it has to stay in place.
        descriptor, name = tempfile.mkstemp(suffix=".so", dir=_COPIES.name)
        os.close(descriptor)
        Path(name).write_bytes(library.read_bytes())
        return ctypes.CDLL(name)

    def _attach(self, settings: dict[str, str]) -> None:
        wanted = {**settings, "SAIR_SIMGPU_PATH": str(self.path)}
        with _ENVIRONMENT:
            before = {name: os.environ.get(name) for name in wanted}
            os.environ.update(wanted)
            try:
                if not self._library.simgpu_attach():
                    raise NotFound(f"{self.path} cannot be mapped as a simulated GPU")
            finally:
                for name, value in before.items():
                    if value is None:
                        del os.environ[name]
                    else:
                        os.environ[name] = value

    def busy_bins(self, tenant: str, from_ns: int, until_ns: int, *, device: int = 0) -> NDArray[np.int64]:
        """Busy nanoseconds of a tenant in bins of 1 ms.

        Args:
            tenant: SAIR_SIMGPU_TENANT of its processes.
            from_ns: CLOCK_MONOTONIC time; the bin that holds it is the first.
            until_ns: Likewise; the bin that holds it is left out.
            device: Which GPU.
        """
        first, count = from_ns // 1_000_000, until_ns // 1_000_000 - from_ns // 1_000_000
        out = np.zeros(count, dtype=np.uint32)
        self._library.simgpu_read_bins(tenant.encode(), device, first, count, out.ctypes.data)
        return out.astype(np.int64)

    def busy_ns(self, tenant: str, *, device: int = 0) -> int:
        """All busy time of a tenant so far, in ns."""
        return int(self._library.simgpu_read_busy(tenant.encode(), device))

    def kernels(self, tenant: str) -> int:
        """Kernels of a tenant completed so far (adjacent kernels of one graph launch count as one)."""
        return int(self._library.simgpu_read_kernels(tenant.encode()))

    def memory_bytes(self, tenant: str, *, device: int = 0) -> int:
        """Device memory that living processes of a tenant hold."""
        return int(self._library.simgpu_read_memory(tenant.encode(), device))

    def processes(self) -> int:
        """Processes attached to the GPU and alive."""
        return int(self._library.simgpu_read_processes())

    def configure(self, name: str, value: int) -> None:
        """Change a setting of the running device, such as ``arbiter`` (0 FIFO, 1 round robin) or ``nvml_bias_permille``."""
        if self._library.simgpu_configure(name.encode(), value) != 0:
            raise NotFound(f"the simulated GPU has no setting {name}")
