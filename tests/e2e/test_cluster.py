"""The cluster itself: everything that the tests of SAIR take for granted is a real Kubernetes doing it."""

import json
import urllib.request

import pytest

from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.errors import ClusterError
from tests.e2e.cluster.network import SERVICE_NETWORK
from tests.e2e.pods import create, eventually, execute, pods, ready, rollout, service, web
from tests.e2e.rest import fetched

pytestmark = pytest.mark.usefixtures("harness")


@pytest.fixture(scope="module")
def shop(cluster: Cluster, shared_namespace: str) -> str:
    """Namespace of a Deployment of two pods, one on each node, and a Service in front of them."""
    create(cluster, shared_namespace, web("shop", replicas=2, annotations={"colour": "red"}), service("shop"))
    rollout(cluster, shared_namespace, "shop")
    return shared_namespace


def test_two_nodes_are_ready_with_addresses_of_their_own(cluster: Cluster) -> None:
    nodes = fetched(cluster, "/api/v1/nodes")["items"]

    assert [node["metadata"]["name"] for node in nodes] == ["node0", "node1"]
    assert all(ready(node) for node in nodes)
    assert len({node["status"]["addresses"][0]["address"] for node in nodes}) == 2
    assert {node["status"]["nodeInfo"]["kubeletVersion"] for node in nodes} == {"v1.34.4"}


def test_logs_and_exec_reach_a_container_that_runs_as_nobody(cluster: Cluster, shop: str) -> None:
    pod, _ = pods(cluster, shop, "shop")
    name = pod["metadata"]["name"]

    identity = execute(cluster, shop, name, "id", "--user")
    # The host is connected to the fabric and so reaches a pod by its address.
    with urllib.request.urlopen(f"http://{pod['status']['podIP']}:8000/", timeout=10) as answer:
        assert answer.status == 200

    assert identity.strip() == "65532"
    eventually(lambda: "GET /" in cluster.kubectl("logs", name, f"--namespace={shop}"), 10, "a line in the log")


def test_a_service_is_reached_by_name_from_another_node_and_from_its_own_pod(cluster: Cluster, shop: str) -> None:
    found = pods(cluster, shop, "shop")
    assert {pod["spec"]["nodeName"] for pod in found} == {node.name for node in cluster.nodes}
    # Often enough that every pod is answered by itself, by its neighbour, or by the other node.
    fetch = (
        "import urllib.request as r\n"
        f"for _ in range(6): print(r.urlopen('http://shop.{shop}.svc.cluster.local/colour').read().decode())"
    )

    for pod in found:
        assert execute(cluster, shop, pod["metadata"]["name"], "python3", "-c", fetch).split() == ["red"] * 6


def test_a_connection_to_a_service_that_nobody_knows_fails_at_once(cluster: Cluster, shop: str) -> None:
    # As one that kube-proxy does not know yet. Lost on the way it would stay lost, and clients wait for it for half a minute.
    nobody = f"{SERVICE_NETWORK.removesuffix('.0.0/16')}.255.254"
    connect = f"import socket\ntry: socket.create_connection(('{nobody}', 443), 20)\nexcept OSError as e: print(type(e).__name__)"

    for pod in pods(cluster, shop, "shop"):
        found = execute(cluster, shop, pod["metadata"]["name"], "python3", "-c", connect)
        assert found.strip() == "ConnectionRefusedError"


def test_a_changed_annotation_shows_in_the_container(cluster: Cluster, shop: str) -> None:
    _, pod = pods(cluster, shop, "shop")
    name = pod["metadata"]["name"]
    assert execute(cluster, shop, name, "cat", "/info/colour") == "red"

    cluster.kubectl("annotate", "pod", name, "colour=green", "--overwrite", f"--namespace={shop}")

    eventually(lambda: execute(cluster, shop, name, "cat", "/info/colour") == "green", 10, "the new annotation")


def test_a_pod_is_resized_in_place(cluster: Cluster, shop: str) -> None:
    name = pods(cluster, shop, "shop")[0]["metadata"]["name"]
    resources = {"limits": {"cpu": "500m"}, "requests": {"cpu": "100m"}}
    patch = json.dumps({"spec": {"containers": [{"name": "web", "resources": resources}]}})

    cluster.kubectl("patch", "pod", name, "--subresource=resize", f"--patch={patch}", f"--namespace={shop}")

    def resized() -> bool:
        (pod,) = (one for one in pods(cluster, shop, "shop") if one["metadata"]["name"] == name)
        status = pod["status"]["containerStatuses"][0]
        assert status["restartCount"] == 0
        return bool(status["resources"]["limits"]["cpu"] == "500m")

    eventually(resized, 20, "the new limit in the pod's status")
    # Of the first or the second version of cgroups.
    read = "cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us || true"
    assert execute(cluster, shop, name, "sh", "-c", read).startswith("50000")


def test_a_pod_that_breaks_the_restricted_profile_is_refused(cluster: Cluster, namespace: str) -> None:
    with pytest.raises(ClusterError, match="violates PodSecurity"):
        cluster.kubectl("run", "root", "--image=any", f"--namespace={namespace}")
