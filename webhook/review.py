"""AdmissionReview (``admission.k8s.io/v1``) at the wire, and the few fields of a pod that the mutation looks at."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec

from sair import wire
from sair.errors import WireError

__all__ = ["AdmissionRequest", "Container", "PodView", "Verdict", "answer", "parse_request", "view_pod"]

API_VERSION: Final = "admission.k8s.io/v1"
KIND: Final = "AdmissionReview"

Uid = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]

_MAX_MESSAGE = 1024
_MAX_WARNING = 256
"""The API server cuts longer warnings off."""


class _Raw(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """Camel case at the wire, unknown fields ignored."""


class _Resource(_Raw, frozen=True, kw_only=True):
    group: str = ""
    version: str = ""
    resource: str = ""


class AdmissionRequest(_Raw, frozen=True, kw_only=True):
    """One request for admission."""

    uid: Uid
    operation: str
    resource: _Resource = _Resource()
    sub_resource: str = ""
    namespace: str = ""
    name: str = ""
    dry_run: bool | None = False
    object: dict[str, Any] | None = None

    @property
    def creates_pod(self) -> bool:
        """Whether it is a pod's creation."""
        return (
            self.operation == "CREATE"
            and self.sub_resource == ""
            and self.resource.group == ""
            and self.resource.resource == "pods"
        )

    @property
    def writes_workload(self) -> bool:
        """Whether it is the creation or change of something whose pod template may be checked ahead of its pods."""
        return (
            self.operation in ("CREATE", "UPDATE")
            and self.sub_resource == ""
            and self.resource.group == "apps"
            and self.resource.resource in ("deployments", "statefulsets")
        )


class _Review(_Raw, frozen=True, kw_only=True):
    api_version: str
    kind: str
    request: AdmissionRequest


class Variable(_Raw, frozen=True, kw_only=True):
    """An environment variable."""

    name: str
    value: str | None = None
    value_from: dict[str, Any] | None = None


class Mount(_Raw, frozen=True, kw_only=True):
    """A volume mount."""

    name: str
    mount_path: str


class Resources(_Raw, frozen=True, kw_only=True):
    """Requests and limits by resource name."""

    requests: dict[str, str | int | float] | None = None
    limits: dict[str, str | int | float] | None = None


class Container(_Raw, frozen=True, kw_only=True):
    """A container or init container."""

    name: str
    env: list[Variable] | None = None
    volume_mounts: list[Mount] | None = None
    resources: Resources | None = None


class Volume(_Raw, frozen=True, kw_only=True):
    """A volume, whatever its source."""

    name: str


class _Metadata(_Raw, frozen=True, kw_only=True):
    name: str | None = None
    generate_name: str | None = None
    annotations: dict[str, str] | None = None


class _PodSpec(_Raw, frozen=True, kw_only=True):
    containers: list[Container]
    init_containers: list[Container] | None = None
    volumes: list[Volume] | None = None
    scheduler_name: str | None = None
    node_name: str | None = None
    runtime_class_name: str | None = None


class PodView(_Raw, frozen=True, kw_only=True):
    """A pod as far as the mutation reads it."""

    metadata: _Metadata = _Metadata()
    spec: _PodSpec

    @property
    def annotations(self) -> dict[str, str]:
        """The pod's annotations."""
        return self.metadata.annotations or {}


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the webhook answers.

    ``patch`` is a list of JSONPatch operations, empty for nothing to change; ``reason`` is why it is denied, None if allowed;
    ``code`` is the HTTP status a client of the API server sees with the denial.
    """

    patch: tuple[dict[str, Any], ...] = ()
    reason: str | None = None
    code: int = 422
    warnings: tuple[str, ...] = ()


def parse_request(body: bytes) -> AdmissionRequest:
    """Read an AdmissionReview.

    Raises:
        WireError: If it is no AdmissionReview of version v1 with a request; its ``uid`` attribute carries the request's uid
            if there is one, so that even a refusal can name what it refuses.
    """
    try:
        review = wire.decode(body, _Review, what=KIND)
        if (review.api_version, review.kind) != (API_VERSION, KIND):
            raise WireError(
                "AdmissionReview.apiVersion", f"{review.api_version} {review.kind}", f"{API_VERSION} {KIND}"
            )
    except WireError as error:
        raise MalformedReview(error, _uid(body)) from error
    return review.request


class MalformedReview(WireError):
    """An AdmissionReview that cannot be read; ``uid`` is that of its request, None if even that is missing."""

    def __init__(self, error: WireError, uid: str | None) -> None:
        super().__init__(error.field, error.value, error.allowed)
        self.uid = uid


def view_pod(raw: dict[str, Any]) -> PodView:
    """Check that the parts of a pod which the mutation touches have the shape Kubernetes gives them.

    Raises:
        WireError: Names the path of what has another shape.
    """
    return wire.convert(raw, PodView, what="Pod")


def answer(uid: str, verdict: Verdict) -> bytes:
    """Write the AdmissionReview that answers the request of this uid."""
    response: dict[str, Any] = {"uid": uid, "allowed": verdict.reason is None}
    if verdict.reason is not None:
        response["status"] = {"code": verdict.code, "message": verdict.reason[:_MAX_MESSAGE]}
    elif verdict.patch:
        response["patchType"] = "JSONPatch"
        response["patch"] = base64.b64encode(wire.encode(verdict.patch)).decode("ascii")
    if verdict.warnings:
        response["warnings"] = _short(verdict.warnings)
    return wire.encode({"apiVersion": API_VERSION, "kind": KIND, "response": response})


def _short(warnings: Sequence[str]) -> list[str]:
    return [warning[:_MAX_WARNING] for warning in warnings]


class _UidOnly(_Raw, frozen=True):
    uid: Uid


class _ReviewUidOnly(_Raw, frozen=True):
    request: _UidOnly


def _uid(body: bytes) -> str | None:
    try:
        return wire.decode(body, _ReviewUidOnly, what=KIND).request.uid
    except WireError:
        return None
