"""What is put into a pod so that the hook runs in it: volumes, mounts, variables and the init container. Pure."""

from __future__ import annotations

from typing import Any, Final

from sair.annotations import GPU_GRANTED, GPU_INDEX
from sair.quantities import Mebibytes
from webhook.settings import WebhookSettings

__all__ = [
    "CAPABILITIES",
    "GRANT_VOLUME",
    "HOOK_CONTAINER",
    "HOOK_VOLUME",
    "LIBRARY",
    "PRELOAD",
    "RESERVED_PATHS",
    "RESERVED_VARIABLES",
    "RESERVED_VOLUMES",
    "VISIBLE_DEVICES",
    "init_container",
    "mounts",
    "preload",
    "variables",
    "volumes",
]

HOOK_CONTAINER: Final = "sair-hook"
HOOK_VOLUME: Final = "sair-hook"
GRANT_VOLUME: Final = "sair-grant"
STATS_VOLUME: Final = "sair-stats"
HOOK_PATH: Final = "/opt/sair"
GRANT_PATH: Final = "/etc/sair"
STATS_PATH: Final = "/run/sair"
LIBRARY: Final = f"{HOOK_PATH}/libsair_cuda.so"
GRANT_FILE: Final = "gpu-granted"

PRELOAD: Final = "LD_PRELOAD"
VISIBLE_DEVICES: Final = "NVIDIA_VISIBLE_DEVICES"
CAPABILITIES: Final = "NVIDIA_DRIVER_CAPABILITIES"
MEMORY: Final = "SAIR_GPU_MEMORY_MIB"

RESERVED_VOLUMES: Final = frozenset((HOOK_VOLUME, GRANT_VOLUME, STATS_VOLUME))
RESERVED_PATHS: Final = (HOOK_PATH, GRANT_PATH, STATS_PATH)
RESERVED_VARIABLES: Final = frozenset(("SAIR_GRANT_FILE", "SAIR_STATS_PATH", MEMORY, VISIBLE_DEVICES))
"""Variables of the hooked container that nobody but the webhook sets."""

_HOOK_SIZE: Final = "16Mi"
_STATS_SIZE: Final = "1Mi"
"""The stats page takes about 100 KiB. It lives in memory and so counts towards the container's own memory."""


def volumes() -> list[dict[str, Any]]:
    """The library's folder, the live view of the grant, and the stats page the node agent reads."""
    grant = {"path": GRANT_FILE, "fieldRef": _annotation(GPU_GRANTED)}
    return [
        {"name": HOOK_VOLUME, "emptyDir": {"sizeLimit": _HOOK_SIZE}},
        {"name": GRANT_VOLUME, "downwardAPI": {"items": [grant]}},
        {"name": STATS_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": _STATS_SIZE}},
    ]


def mounts() -> list[dict[str, Any]]:
    """Where the hooked container sees these volumes; a subPath would freeze the grant, so there is none."""
    return [
        {"name": HOOK_VOLUME, "mountPath": HOOK_PATH, "readOnly": True},
        {"name": GRANT_VOLUME, "mountPath": GRANT_PATH, "readOnly": True},
        {"name": STATS_VOLUME, "mountPath": STATS_PATH},
    ]


def variables(memory: Mebibytes | None) -> list[dict[str, Any]]:
    """The reserved variables of the hooked container.

    Args:
        memory: Limit of the GPU's memory in MiB, None for no limit.
    """
    limit = [{"name": MEMORY, "value": str(memory)}] if memory is not None else []
    return [
        {"name": "SAIR_GRANT_FILE", "value": f"{GRANT_PATH}/{GRANT_FILE}"},
        {"name": "SAIR_STATS_PATH", "value": f"{STATS_PATH}/stats"},
        *limit,
        {"name": VISIBLE_DEVICES, "valueFrom": {"fieldRef": _annotation(GPU_INDEX)}},
    ]


def preload(before: str) -> str:
    """Put the library in front of what is preloaded already; once."""
    first = before.replace(":", " ").split(" ")[0]
    if first == LIBRARY:
        return before
    return f"{LIBRARY}:{before}" if before else LIBRARY


def init_container(settings: WebhookSettings) -> dict[str, Any]:
    """The container that copies the library into the pod; fits the Pod Security profile "restricted"."""
    amounts = {"cpu": settings.hook_cpu, "memory": settings.hook_memory}
    pull = {"imagePullPolicy": settings.hook_image_pull_policy} if settings.hook_image_pull_policy else {}
    return {
        "name": HOOK_CONTAINER,
        "image": settings.hook_image,
        **pull,
        "args": [LIBRARY],
        "resources": {"requests": amounts, "limits": dict(amounts)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsGroup": settings.hook_user,
            "runAsNonRoot": True,
            "runAsUser": settings.hook_user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [{"name": HOOK_VOLUME, "mountPath": HOOK_PATH}],
    }


def _annotation(key: str) -> dict[str, str]:
    return {"apiVersion": "v1", "fieldPath": f"metadata.annotations['{key}']"}
