"""Whose cluster it is: a lock on a file, which the kernel lets go of when its owner ends, however it ends."""

import fcntl
import os
from pathlib import Path
from typing import TextIO

from tests.e2e.cluster.errors import ClusterError

_HELD: dict[Path, TextIO] = {}
"""What this process owns; the lock would go with the file object, and so it is kept here."""


class Ownership:
    """The right to a cluster that one process at a time has."""

    def __init__(self, path: Path) -> None:
        """Name it; nobody owns it yet.

        Args:
            path: of the file that is locked; it stays.
        """
        self._path = path

    def take(self) -> None:
        """Own it until `release` or the end of this process; to own it already is fine.

        Raises:
            ClusterError: a process that is alive owns it.
        """
        if self._path in _HELD:
            return
        try:
            file = self._path.open("a+")
        except OSError as error:
            raise ClusterError(f"cannot own {self._path.stem}: {error}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise ClusterError(f"{self._path.stem} is in use by process {self._path.read_text()}") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        _HELD[self._path] = file

    def release(self) -> None:
        """Own it no longer; not to own it is fine."""
        if file := _HELD.pop(self._path, None):
            file.close()
