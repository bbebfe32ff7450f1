"""SAIR on the cluster: a kustomization applied with images built from this checkout."""

import functools
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.e2e.cluster import images
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.errors import ClusterError
from tests.e2e.cluster.probes import wait_until

DEVELOPMENT = images.REPOSITORY / "deploy" / "overlays" / "development"
"""The overlay for a cluster on one machine, whose images are built there."""

EXAMPLE = images.REPOSITORY / "deploy" / "examples" / "overlays" / "development"
"""The example pipeline, likewise."""

KUSTOMIZATION = "SAIR_E2E_KUSTOMIZATION"
"""Another overlay for the tests to install, such as one that names a registry of one's own."""

_WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet")


def kustomization(environment: Mapping[str, str]) -> Path:
    """The overlay that the tests install."""
    return Path(environment.get(KUSTOMIZATION) or DEVELOPMENT).absolute()


def archives(cluster: Cluster, *kustomizations: Path) -> list[Path]:
    """Archives of all images that these name, each built if it is not in the cache; the cluster need not be up.

    Raises:
        Unavailable: what builds them is missing.
        ClusterError: one does not build.
    """
    rendered = "".join(cluster.kubectl("kustomize", str(each)) for each in kustomizations)
    return [images.archive(recipe(name)) for name, recipe in images.named_in(rendered).items()]


class Installation:
    """One kustomization on one cluster."""

    def __init__(self, cluster: Cluster, kustomization: Path = DEVELOPMENT) -> None:
        """Render the kustomization; nothing is applied yet.

        Args:
            cluster: where it goes.
            kustomization: the directory.
        """
        self.cluster = cluster
        self.kustomization = kustomization
        rendered, as_json = _rendered(cluster, kustomization)
        self._images = images.named_in(rendered)
        self.objects = _documents(as_json)
        """What the kustomization renders to."""
        self._applied_s = 0.0

    def load_images(self) -> None:
        """Build every image that it names and import it into every node, unless the nodes get them elsewhere."""
        if self.cluster.takes_images:
            self._load(self._images)

    def apply(self) -> str:
        """Apply it; returns what kubectl said of each object."""
        self._applied_s = time.monotonic()
        return self.cluster.kubectl("apply", f"--kustomize={self.kustomization}", timeout_s=120)

    def wait(self, timeout_s: float = 120.0) -> float:
        """Return once every workload of it is complete: the seconds since it was applied.

        Raises:
            ClusterError: one is not in time; the note says what its pods and events look like.
        """
        deadline_s = time.monotonic() + timeout_s
        for workload in self.workloads():
            self.cluster.wait_for(*workload, max(0.0, deadline_s - time.monotonic()))
        return time.monotonic() - self._applied_s

    def delete(self) -> None:
        """Delete everything of it and wait until it is gone."""
        # kubectl's own waiting goes on for seconds after that.
        self.cluster.kubectl("delete", f"--kustomize={self.kustomization}", "--ignore-not-found", "--wait=false")
        wait_until(lambda: self.remains() == "", 180.0, self.remains)

    def workloads(self) -> list[tuple[str, str, str]]:
        """Kind, namespace and name of everything of it that runs pods."""
        return [
            (item["kind"], item["metadata"]["namespace"], item["metadata"]["name"])
            for item in self.objects
            if item["kind"] in _WORKLOADS
        ]

    def versions(self) -> dict[str, str]:
        """Generation of every object on the cluster, by kind and name; it rises when the specification changes."""
        live = self.cluster.kubectl("get", f"--kustomize={self.kustomization}", "--output=json")
        return {
            f"{item['kind']} {item['metadata'].get('namespace', '')}/{item['metadata']['name']}": str(
                item["metadata"].get("generation", item["metadata"]["uid"])
            )
            for item in _documents(live)
        }

    def remains(self) -> str:
        """What of it is still on the cluster, one object a line."""
        command = ["get", f"--kustomize={self.kustomization}", "--ignore-not-found", "--output=name"]
        try:
            return self.cluster.kubectl(*command)
        except ClusterError as error:
            # Once its CustomResourceDefinition is gone, the server no longer knows that kind at all.
            if "no matches for kind" in str(error):
                return ""
            raise

    def _load(self, names: Iterable[str]) -> None:
        for name in names:
            self.cluster.load(self._images[name](name))


@functools.cache
def _rendered(cluster: Cluster, kustomization: Path) -> tuple[str, str]:
    """The YAML that a kustomization renders to, and the same as JSON."""
    rendered = cluster.kubectl("kustomize", str(kustomization))
    # kubectl turns it into JSON without asking the server for anything.
    offline = ["create", "--dry-run=client", "--validate=false", "--output=json", "--filename=-"]
    return rendered, cluster.kubectl(*offline, stdin=rendered)


def _documents(output: str) -> list[dict[str, Any]]:
    """The objects in kubectl's JSON: one, a List of them, or several written after each other."""
    decoder = json.JSONDecoder()
    found: list[dict[str, Any]] = []
    position = 0
    while position < len(output.rstrip()):
        document, position = decoder.raw_decode(output, position)
        found += document["items"] if document["kind"] == "List" else [document]
        position += len(output[position:]) - len(output[position:].lstrip())
    return found
