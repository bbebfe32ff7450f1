"""What NVML knows: the cards, their memory, and how busy each process kept them."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import pynvml

from sair.errors import MetricsUnavailable
from sair.quantities import Mebibytes

__all__ = ["Gpu", "GpuMemory", "Nvml", "UtilizationSample"]


@dataclass(frozen=True, slots=True)
class Gpu:
    """One card."""

    index: int
    uuid: str
    model: str
    memory: Mebibytes
    """Of the whole card."""


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Memory of a card right now, in bytes."""

    used: int
    total: int


@dataclass(frozen=True, slots=True)
class UtilizationSample:
    """How busy one process kept a card over the sample that ended at a time."""

    pid: int
    """As the host counts."""
    end_us: int
    """Microseconds since the epoch."""
    busy: float
    """Share of the sample, in [0, 1]; NVML's resolution is 0.01."""


class Nvml:
    """An open NVML.

    Args:
        library: A name that the loader finds, or a path.

    Raises:
        MetricsUnavailable: If the library or the driver is missing.
    """

    def __init__(self, library: str = "libnvidia-ml.so.1") -> None:
        try:
            # pynvml asks the loader for the library by its soname, which what is loaded already satisfies.
            ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
            pynvml.nvmlInit()
        except (OSError, pynvml.NVMLError) as error:
            raise MetricsUnavailable(f"NVML ({library}): {error}") from error

    def close(self) -> None:
        """Let NVML go."""
        pynvml.nvmlShutdown()

    def gpus(self) -> tuple[Gpu, ...]:
        """List the cards in NVML's order.

        Raises:
            MetricsUnavailable: If NVML fails.
        """
        try:
            return tuple(self._gpu(index) for index in range(pynvml.nvmlDeviceGetCount()))
        except pynvml.NVMLError as error:
            raise MetricsUnavailable(f"NVML: {error}") from error

    def _gpu(self, index: int) -> Gpu:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        return Gpu(
            index,
            _text(pynvml.nvmlDeviceGetUUID(handle)),
            _text(pynvml.nvmlDeviceGetName(handle)),
            Mebibytes(memory.total // 2**20),
        )

    def memory(self, index: int) -> GpuMemory:
        """Memory of one card.

        Raises:
            MetricsUnavailable: If NVML fails.
        """
        try:
            memory = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(index))
        except pynvml.NVMLError as error:
            raise MetricsUnavailable(f"NVML: {error}") from error
        return GpuMemory(int(memory.used), int(memory.total))

    def process_utilization(self, index: int, since_us: int) -> tuple[UtilizationSample, ...]:
        """Samples of every process on a card that ended after a time; idle ones are not among them.

        Args:
            index: The card.
            since_us: Microseconds since the epoch.

        Raises:
            MetricsUnavailable: If NVML fails; cards in MIG mode and some virtual ones do not tell.
        """
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            samples = pynvml.nvmlDeviceGetProcessUtilization(handle, since_us)
        except pynvml.NVMLError_NotFound:
            return ()
        except pynvml.NVMLError as error:
            raise MetricsUnavailable(f"NVML: {error}") from error
        return tuple(
            UtilizationSample(int(s.pid), int(s.timeStamp), s.smUtil / 100) for s in samples if s.timeStamp > 0
        )


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
