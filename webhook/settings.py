"""What can be set about the webhook, read from ``SAIR_WEBHOOK_…``."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Annotated

import msgspec

from sair.errors import SettingsError
from sair.logs import LogLevel
from sair.quantities import parse_cpu, parse_memory
from sair.settings import settings

__all__ = ["WebhookSettings"]

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]

# What the downward API, LD_PRELOAD and the annotation can carry without quoting.
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,254}", re.ASCII)


@settings("SAIR_WEBHOOK_")
class WebhookSettings:
    """Settings of the webhook."""

    hook_image: str
    """Image of the init container that brings ``libsair_cuda.so``."""
    hook_image_pull_policy: str = ""
    """imagePullPolicy of that container: Always, IfNotPresent or Never; unset leaves it to Kubernetes."""
    hook_version: str = version("sair")
    """Written into ``sair.dev/injected``, so that one can see which pods still run an older hook."""
    hook_cpu: str = "50m"
    """CPU request and limit of the init container; equal, so that a Guaranteed pod stays Guaranteed."""
    hook_memory: str = "32Mi"
    """Memory request and limit of the init container."""
    hook_user: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)] = 65532
    """User id the init container runs as."""
    scheduler_name: str = "sair-scheduler"
    """schedulerName of pods that want a share of a GPU."""
    runtime_class: str = ""
    """runtimeClassName given to those pods if they name none, where GPUs need one (often ``nvidia``); unset adds none."""

    listen_host: str = "0.0.0.0"  # noqa: S104  # the API server comes from another machine
    """Address to listen on."""
    listen_port: Port = 8443
    """Port of the TLS endpoint ``/mutate``; 0 takes any free one."""
    metrics_port: Port = 8080
    """Plain port of ``/healthz``, ``/readyz`` and ``/metrics``; 0 takes any free one."""
    body_timeout_s: Seconds = 5.0
    """Seconds a client has to send its request."""
    max_body_bytes: Annotated[int, msgspec.Meta(ge=65536)] = 8 * 2**20
    """Longest request accepted, in bytes; the API server accepts objects of up to 3 MiB and sends at most two of them."""

    namespace: str = "sair-system"
    """Namespace of the webhook's Service and Secret."""
    service: str = "sair-webhook"
    """Name of the Service, and of the certificate."""
    secret: str = "sair-webhook-tls"  # noqa: S105  # a name
    """Secret that keeps the certificate authority and the serving certificate."""
    configuration: str = "sair-webhook"
    """MutatingWebhookConfiguration whose caBundle the webhook keeps in order."""
    certificate_days: Annotated[int, msgspec.Meta(ge=1, le=825)] = 90
    """Life of a serving certificate, in days; it is replaced when a third of it is left."""
    authority_days: Annotated[int, msgspec.Meta(ge=2, le=7300)] = 3650
    """Life of the certificate authority, in days; it is replaced when a tenth of it is left."""
    certificate_check_s: Seconds = 5.0
    """Seconds between looks at the Secret and at the caBundle."""
    trust_delay_s: Annotated[float, msgspec.Meta(ge=0, le=600)] = 10.0
    """Seconds between announcing a new authority to the API servers and serving a certificate of it."""

    kubeconfig: str = ""
    """Kubeconfig file; unset uses the pod's service account, or $KUBECONFIG outside a cluster."""
    log_level: LogLevel = "info"
    """Least severe level that is logged: debug, info, warning or error."""

    def __post_init__(self) -> None:
        if not _IMAGE.fullmatch(self.hook_image):
            raise SettingsError("SAIR_WEBHOOK_HOOK_IMAGE", self.hook_image, "an image reference")
        if not _IMAGE.fullmatch(self.hook_version):
            raise SettingsError("SAIR_WEBHOOK_HOOK_VERSION", self.hook_version, "a version such as 0.1.0")
        if self.hook_image_pull_policy not in ("", "Always", "IfNotPresent", "Never"):
            allowed = "Always, IfNotPresent or Never"
            raise SettingsError("SAIR_WEBHOOK_HOOK_IMAGE_PULL_POLICY", self.hook_image_pull_policy, allowed)
        parse_cpu(self.hook_cpu, field="SAIR_WEBHOOK_HOOK_CPU")
        parse_memory(self.hook_memory, field="SAIR_WEBHOOK_HOOK_MEMORY")
        if self.certificate_days >= self.authority_days:
            allowed = f"less than SAIR_WEBHOOK_AUTHORITY_DAYS, which is {self.authority_days}"
            raise SettingsError("SAIR_WEBHOOK_CERTIFICATE_DAYS", self.certificate_days, allowed)
