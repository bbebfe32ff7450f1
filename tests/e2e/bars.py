"""How long things may take, what they took here, and whether the machine was quiet enough to judge that."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

SUITE_S: Final = 600.0
"""All tests of this folder together, on two cores with warm caches."""
TOO_BUSY: Final = 0.8
"""Share of the processors' time. Beyond it whatever is measured waits for them, and says nothing of what is tested."""
_LOOK_S: Final = 0.5


class Processors:
    """The processors of this machine since this was made."""

    def __init__(self) -> None:
        self._before = self._ticks()

    @property
    def busy(self) -> float:
        """Share of their time that was neither idle nor spent waiting for a disk."""
        spent = [late - early for early, late in zip(self._before, self._ticks(), strict=True)]
        return 1 - (spent[3] + spent[4]) / max(1, sum(spent))

    @staticmethod
    def _ticks() -> list[int]:
        """Processor time since the machine started, by what it was spent on."""
        return [int(each) for each in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]


def busy_with_others() -> float:
    """How busy the processors are now, before that begins which is to be measured."""
    processors = Processors()
    time.sleep(_LOOK_S)
    return processors.busy


def judged(busy: float, too_busy: float = TOO_BUSY) -> None:
    """Go on if a measurement at that share of busy processors says something; else say that it is not judged, loudly."""
    if busy >= too_busy:
        # A figure of a machine that others kept busy is theirs.
        pytest.skip(f"NOT JUDGED: the processors were busy to {busy:.0%}")


def in_ci() -> bool:
    """Whether what could not be judged is tried once more."""
    return os.environ.get("CI") == "true"


@dataclass(frozen=True, slots=True)
class Bar:
    """One duration.

    Attributes:
        limit_s: what it may be on a quiet machine.
        took_s: what it was.
        others: share of the processors' time that others took just before.
    """

    limit_s: float
    took_s: float
    others: float

    def judge(self) -> None:
        """Fail if it took too long on a quiet machine; skip if the machine was not quiet."""
        judged(self.others)
        assert self.took_s <= self.limit_s

    def __str__(self) -> str:
        verdict = "not judged" if self.others >= TOO_BUSY else "met" if self.took_s <= self.limit_s else "MISSED"
        return f"{self.took_s:.1f} s of {self.limit_s:g} s, {verdict} (others' share before: {self.others:.0%})"


Bars = dict[str, Bar]
BARS: Final = pytest.StashKey[Bars]()
"""What this session measured, by name."""
