"""The manifests as kustomize renders them."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.controlplane import give_up
from tests.e2e.cluster import binaries
from tests.e2e.cluster.errors import Unavailable

DEPLOY = Path(__file__).parents[2] / "deploy"
INSTALLATIONS = ("base", "overlays/development", "overlays/high-availability", "overlays/thousand-pipelines")
EXAMPLES = ("examples/image-classification", "examples/overlays/development")


@dataclass(frozen=True, slots=True)
class Workload:
    """A manifest that makes pods."""

    kind: str
    name: str
    namespace: str
    template: dict[str, Any]

    @property
    def pod(self) -> dict[str, Any]:
        """Its pods' spec."""
        spec: dict[str, Any] = self.template["spec"]
        return spec

    def containers(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """All containers with a name to show."""
        for field in ("initContainers", "containers"):
            for container in self.pod.get(field, ()):
                yield f"{self.kind}/{self.name} {container['name']}", container


@functools.cache
def render(folder: str) -> tuple[dict[str, Any], ...]:
    """Render one folder below ``deploy/``."""
    kubectl = shutil.which("kubectl") or binaries.find("kubectl")
    if kubectl is None:
        give_up(Unavailable("no kubectl to render manifests with"))
    done = subprocess.run(
        [kubectl, "kustomize", DEPLOY / folder], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return tuple(yaml.safe_load_all(done.stdout))


def of_kind(folder: str, *kinds: str) -> list[dict[str, Any]]:
    """The rendered objects of these kinds."""
    return [one for one in render(folder) if one["kind"] in kinds]


def named(folder: str, kind: str, name: str) -> dict[str, Any]:
    """The one object of that kind and name."""
    (found,) = (one for one in of_kind(folder, kind) if one["metadata"]["name"] == name)
    return found


def workloads(folder: str) -> list[Workload]:
    """Everything that makes pods."""
    kinds = ("Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob")
    return [
        Workload(one["kind"], one["metadata"]["name"], one["metadata"].get("namespace", ""), one["spec"]["template"])
        for one in of_kind(folder, *kinds)
    ]
