"""The hook in a container on the cluster: what the GPU itself saw of it."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e import gpu_pods
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.installation import Installation
from tests.e2e.gpu_pods import BIN_NS, PIPELINE_NAME
from tests.e2e.pods import create, eventually
from tests.e2e.rest import CONTROLLER, Rest
from tests.e2e.stages import give_gpus

_SECONDS = 5
_POINTS = 0.03
_SETTLED_S = 1.0
_LOOKS = 3
"""A program that a busy machine does not let run gets less than it is granted: it is looked at again. More is never forgiven."""


@pytest.fixture(autouse=True)
def _a_gpu(cluster: Cluster, installation: Installation) -> Iterator[None]:
    give_gpus(cluster, per_node=1)
    yield
    give_gpus(cluster, per_node=0)


def test_a_container_gets_the_share_it_is_granted_and_no_more(cluster: Cluster, namespace: str) -> None:
    gpu_pods.prepare(cluster, namespace)
    deployed = gpu_pods.busy_stage("deployed", "0.2", memory="2Gi")
    held, free = gpu_pods.busy_pod("held", "0.3"), gpu_pods.busy_pod("free", None)
    create(cluster, namespace, deployed, gpu_pods.pipeline(), held, free)
    addresses = gpu_pods.addresses(cluster, namespace, ["deployed", "held", "free"])

    with ThreadPoolExecutor() as pool:
        deployed_share, held_share, free_share = pool.map(_share, addresses.values(), (0.2, 0.3, 1.0))
    assert deployed_share == pytest.approx(0.2, abs=_POINTS)
    assert held_share == pytest.approx(0.3, abs=_POINTS)
    # The same program in a pod of no pipeline, on a GPU of its own: it would take all there is.
    assert free_share > 0.9

    controller = Rest(cluster, user=CONTROLLER)
    try:
        controller.wish(namespace, PIPELINE_NAME, {"held": "0.6"})
    finally:
        controller.close()
    eventually(lambda: gpu_pods.changes(addresses["held"])[-1].rate == "0.6", 100, "0.6 in the file")

    assert _share(addresses["held"], 0.6) == pytest.approx(0.6, abs=_POINTS)


def _share(address: str, granted: float) -> float:
    """Part of five seconds in which the GPU was busy, once that is what is granted or more; else what it was at the last of the looks."""
    share = 0.0
    for _ in range(_LOOKS):
        time.sleep(_SETTLED_S)
        begin_ns = gpu_pods.now_ns(address)
        time.sleep(_SECONDS)
        count = _SECONDS * 1_000_000_000 // BIN_NS
        share = sum(gpu_pods.busy(address, begin_ns, count)) / (count * BIN_NS)
        if share >= granted - _POINTS:
            break
    return share
