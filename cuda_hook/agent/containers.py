"""The containers of this node that have a stats page: found, opened and let go."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cuda_hook.agent.page import Page, PageView
from sair.errors import WireError

__all__ = ["Containers", "Tenant"]

_EMPTY_DIR = "volumes/kubernetes.io~empty-dir"


@dataclass(frozen=True, slots=True)
class Tenant:
    """One page at one moment."""

    uid: str
    """The pod's UID, which is its folder's name."""
    page: Page
    view: PageView


class Containers:
    """All pages under kubelet's folder of pods.

    Args:
        root: kubelet's folder of pods.
        volume: Name of the volume that holds the page.
        file: The page in it.
    """

    def __init__(self, root: Path, volume: str, file: str) -> None:
        self._root = root
        self._place = Path(_EMPTY_DIR) / volume / file
        self._pages: dict[str, Page] = {}
        self.refused: dict[str, str] = {}
        """Pod UID → why its page is not read."""

    def discover(self) -> None:
        """Open new pages, close vanished ones, reopen those that were replaced."""
        try:
            uids = {entry.name for entry in self._root.iterdir()}
        except OSError:
            uids = set()
        self.refused = {}
        for uid in set(self._pages) - uids:
            self._drop(uid)
        for uid in uids:
            self._look_at(uid, self._root / uid / self._place)

    def _look_at(self, uid: str, path: Path) -> None:
        known = self._pages.get(uid)
        try:
            status = path.lstat()
        except OSError:
            if known:
                self._drop(uid)
            return
        if known and known.identity == (status.st_dev, status.st_ino):
            return
        if known:
            self._drop(uid)
        try:
            self._pages[uid] = Page(path)
        except (WireError, OSError) as error:
            self.refused[uid] = str(error)

    def _drop(self, uid: str) -> None:
        self._pages.pop(uid).close()

    def read(self) -> Iterator[Tenant]:
        """Read every page; one that turned bad is let go until the next discovery."""
        for uid, page in list(self._pages.items()):
            try:
                yield Tenant(uid, page, page.read())
            except (WireError, OSError) as error:
                self.refused[uid] = str(error)
                self._drop(uid)

    def close(self) -> None:
        """Close all pages."""
        for uid in list(self._pages):
            with contextlib.suppress(OSError):
                self._drop(uid)
