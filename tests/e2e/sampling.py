"""What stages have while a test runs: their CPU, replicas and shares, looked at again and again."""

import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sair.annotations import GPU_GRANTED, STAGE
from sair.quantities import parse_cpu
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.errors import ClusterError
from tests.e2e.rest import ENDED, Rest

_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class Sample:
    """The pods of one namespace's stages at one moment.

    Attributes:
        at_s: Unix seconds.
        cores: CPU limit of all pods together, by stage.
        replicas: pods that run, by stage.
        shares: what is granted to all pods together, by stage.
        settings: CPU limit in cores and granted share of each pod, by uid.
        restarts: of all containers together.
    """

    at_s: float
    cores: Mapping[str, float]
    replicas: Mapping[str, int]
    shares: Mapping[str, float]
    settings: Mapping[str, tuple[float, str]]
    restarts: int


class Sampler:
    """Looks at the pods of some namespaces from a thread of its own; a context manager."""

    def __init__(self, cluster: Cluster, namespaces: Sequence[str]) -> None:
        """Nothing is looked at yet.

        Args:
            cluster: where the namespaces are.
            namespaces: whose stages.
        """
        # Not kubectl, which would take a tenth of a processor for its starts.
        self._rest = Rest(cluster)
        self._samples: dict[str, list[Sample]] = {namespace: [] for namespace in namespaces}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=30)

    def of(self, namespace: str) -> list[Sample]:
        """All samples of a namespace so far, oldest first."""
        return list(self._samples[namespace])

    def spent(self, namespace: str) -> tuple[float, float]:
        """Core-seconds and GPU-share-seconds that a namespace's stages had, used or not."""
        core_s = share_s = 0.0
        samples = self.of(namespace)
        for before, after in itertools.pairwise(samples):
            core_s += sum(before.cores.values()) * (after.at_s - before.at_s)
            share_s += sum(before.shares.values()) * (after.at_s - before.at_s)
        return core_s, share_s

    def _watch(self) -> None:
        while not self._stop.is_set():
            try:
                listed = self._rest.pods()
            except ClusterError:
                # The API server is busy or away; the sample before counts for longer. The next look connects anew.
                self._rest.close()
            else:
                now = time.time()
                for namespace, samples in self._samples.items():
                    samples.append(_sample(now, listed, namespace))
            self._stop.wait(_LOOK_S)
        self._rest.close()


def _sample(now: float, listed: Sequence[Mapping[str, Any]], namespace: str) -> Sample:
    cores: dict[str, float] = {}
    shares: dict[str, float] = {}
    replicas: dict[str, int] = {}
    settings, restarts = {}, 0
    for pod in listed:
        annotations = pod["metadata"].get("annotations", {})
        if pod["status"]["phase"] in ENDED:
            continue
        share = annotations.get(GPU_GRANTED, "0")
        stage = annotations.get(STAGE)
        if pod["metadata"]["namespace"] != namespace or stage is None or "nodeName" not in pod["spec"]:
            continue
        limit = parse_cpu(pod["spec"]["containers"][0]["resources"]["limits"]["cpu"]) / 1000
        cores[stage] = cores.get(stage, 0.0) + limit
        shares[stage] = shares.get(stage, 0.0) + float(share)
        replicas[stage] = replicas.get(stage, 0) + (pod["status"]["phase"] == "Running")
        settings[pod["metadata"]["uid"]] = (limit, share)
        restarts += sum(each["restartCount"] for each in pod["status"].get("containerStatuses", []))
    return Sample(now, cores, replicas, shares, settings, restarts)
