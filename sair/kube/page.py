"""One page of a list, whose items stay undecoded bytes until somebody wants them."""

from __future__ import annotations

import msgspec

from sair.errors import ApiUnavailable

__all__ = ["Head", "HeadMetadata", "Page", "PageMetadata", "decode_page"]


class PageMetadata(msgspec.Struct, frozen=True, rename="camel"):
    """Of the list itself."""

    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")
    """Token of the next page; empty on the last."""


class Page(msgspec.Struct, frozen=True):
    """A part of a list.

    Decoding a page of whole objects at once fills the heap with containers and has the garbage collector walk them again and again;
    decoded one at a time, each is freed before the next.
    """

    metadata: PageMetadata = PageMetadata()
    items: list[msgspec.Raw] | None = None


class HeadMetadata(msgspec.Struct, frozen=True, rename="camel"):
    """What names an object and its version."""

    name: str
    resource_version: str
    namespace: str = ""
    uid: str = ""

    @property
    def key(self) -> str:
        """``namespace/name``, or the bare name."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class Head(msgspec.Struct, frozen=True):
    """The part of an object that says whether it must be read at all."""

    metadata: HeadMetadata


def decode_page(body: bytes, what: str) -> Page:
    """Decode a page; a list may call its items null.

    Raises:
        ApiUnavailable: If it is no list; a proxy's page or a cut answer says nothing about the request.
    """
    try:
        return msgspec.json.decode(body, type=Page)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ApiUnavailable(f"{what}: the answer is no JSON list: {error}: {body[:300]!r}") from error
