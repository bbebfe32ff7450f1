"""Text for terminals: stored text is somebody else's, and must not steer the terminal that shows it."""

from __future__ import annotations

from sair.quantities import MILLI_PER_GPU, GpuRate

__all__ = ["knob_value", "printable"]

_LONGEST_TEXT = 600


def printable(text: str) -> str:
    """Without control characters, and not longer than a paragraph."""
    shown = "".join(character if character.isprintable() else "�" for character in text)
    return shown if len(shown) <= _LONGEST_TEXT else shown[:_LONGEST_TEXT] + "…"


def knob_value(knob: str, value: int) -> str:
    """A knob's value with its unit, as annotations and the Pipeline have it.

    Args:
        knob: replicas, cpu, memory or gpu_rate.
        value: A number, millicores, MiB or thousandths of a GPU.
    """
    if knob == "cpu":
        return f"{value}m"
    if knob == "memory":
        return f"{value}Mi"
    if knob == "gpu_rate":
        return str(GpuRate(value)) if 0 < value <= MILLI_PER_GPU else "none" if value == 0 else f"{value}/1000"
    return str(value)
