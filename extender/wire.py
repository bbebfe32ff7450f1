"""The messages between kube-scheduler and its extender, version v1.

The Go types (k8s.io/kube-scheduler/extender/v1) carry no JSON tags, so on the wire fields have their Go names, capitalised; the Pod
inside is the usual lower-camel-case object. Reference: kube-scheduler v0.34 ``extender/v1/types.go``. Unknown fields are ignored.
"""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["MAX_PRIORITY", "BindingArgs", "BindingResult", "ExtenderArgs", "FilterResult", "HostPriority"]

MAX_PRIORITY = 10
"""``MaxExtenderPriority``; kube-scheduler stretches it to its own 100."""


class _Message(msgspec.Struct, frozen=True, rename="pascal", kw_only=True):
    """Go field names on the wire."""


class ExtenderArgs(_Message, frozen=True):
    """A filter or prioritize request. With ``nodeCacheCapable`` only names come; whole nodes are not read."""

    pod: dict[str, Any]
    """The pod, raw."""
    node_names: list[str] | None = None


class FilterResult(_Message, frozen=True):
    """Which nodes are left and why the others are not.

    Go distinguishes nodes for which preemption cannot help (``failed_and_unresolvable_nodes``) from the rest (``failed_nodes``). A
    non-empty error fails the scheduling attempt as a whole: the pod is tried again later.
    """

    node_names: list[str] | None = None
    failed_nodes: dict[str, str] = {}
    failed_and_unresolvable_nodes: dict[str, str] = {}
    error: str = ""


class HostPriority(_Message, frozen=True):
    """A node's score, 0 to 10."""

    host: str
    score: int


class BindingArgs(_Message, frozen=True):
    """A bind request."""

    pod_name: str
    pod_namespace: str
    pod_uid: str = msgspec.field(name="PodUID")
    node: str


class BindingResult(_Message, frozen=True):
    """Whether the pod was bound: the error is empty then."""

    error: str = ""
