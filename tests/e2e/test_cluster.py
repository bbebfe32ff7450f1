"""The cluster itself: everything that the tests of SAIR take for granted is a real Kubernetes doing it."""

import json
import urllib.request

import pytest

from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.errors import ClusterError
from tests.e2e.pods import create, eventually, execute, pods, ready, rollout, service, web

pytestmark = pytest.mark.usefixtures("harness")


def test_two_nodes_are_ready_with_addresses_of_their_own(cluster: Cluster) -> None:
    nodes = json.loads(cluster.kubectl("get", "nodes", "--output=json"))["items"]

    assert [node["metadata"]["name"] for node in nodes] == ["node0", "node1"]
    assert all(ready(node) for node in nodes)
    assert len({node["status"]["addresses"][0]["address"] for node in nodes}) == 2
    assert {node["status"]["nodeInfo"]["kubeletVersion"] for node in nodes} == {"v1.34.4"}


def test_forty_pods_run_and_both_nodes_take_their_share(cluster: Cluster, namespace: str) -> None:
    create(cluster, namespace, web("many", replicas=40))

    eventually(lambda: sum(map(ready, pods(cluster, namespace, "many"))) == 40, 90, "40 pods Ready")

    homes = [pod["spec"]["nodeName"] for pod in pods(cluster, namespace, "many")]
    assert 10 <= homes.count("node0") <= 30


def test_logs_and_exec_reach_a_container_that_runs_as_nobody(cluster: Cluster, namespace: str) -> None:
    create(cluster, namespace, web("talker"))
    rollout(cluster, namespace, "talker")
    (pod,) = pods(cluster, namespace, "talker")
    name = pod["metadata"]["name"]

    identity = execute(cluster, namespace, name, "id", "--user")
    address = pod["status"]["podIP"]
    # The host is connected to the fabric and so reaches a pod by its address.
    with urllib.request.urlopen(f"http://{address}:8000/", timeout=10) as answer:
        assert answer.status == 200

    assert identity.strip() == "65532"
    eventually(lambda: "GET /" in cluster.kubectl("logs", name, f"--namespace={namespace}"), 10, "a line in the log")


def test_a_service_is_reached_by_name_from_another_node_and_from_its_own_pod(cluster: Cluster, namespace: str) -> None:
    create(cluster, namespace, web("shop", replicas=2, annotations={"colour": "red"}), service("shop"))
    rollout(cluster, namespace, "shop")
    fetch = f"import urllib.request as r; print(r.urlopen('http://shop.{namespace}.svc.cluster.local/colour').read())"

    for pod in pods(cluster, namespace, "shop"):
        # Often enough that every pod is answered by itself, by its neighbour, or by the other node.
        for _ in range(6):
            assert execute(cluster, namespace, pod["metadata"]["name"], "python3", "-c", fetch).strip() == "b'red'"


def test_a_changed_annotation_shows_in_the_container(cluster: Cluster, namespace: str) -> None:
    create(cluster, namespace, web("chameleon", annotations={"colour": "red"}))
    rollout(cluster, namespace, "chameleon")
    (pod,) = pods(cluster, namespace, "chameleon")
    name = pod["metadata"]["name"]
    assert execute(cluster, namespace, name, "cat", "/info/colour") == "red"

    cluster.kubectl("annotate", "pod", name, "colour=green", "--overwrite", f"--namespace={namespace}")

    eventually(lambda: execute(cluster, namespace, name, "cat", "/info/colour") == "green", 10, "the new annotation")


def test_a_pod_is_resized_in_place(cluster: Cluster, namespace: str) -> None:
    create(cluster, namespace, web("elastic"))
    rollout(cluster, namespace, "elastic")
    (pod,) = pods(cluster, namespace, "elastic")
    name = pod["metadata"]["name"]
    resources = {"limits": {"cpu": "500m"}, "requests": {"cpu": "100m"}}
    patch = json.dumps({"spec": {"containers": [{"name": "web", "resources": resources}]}})

    cluster.kubectl("patch", "pod", name, "--subresource=resize", f"--patch={patch}", f"--namespace={namespace}")

    def resized() -> bool:
        (pod,) = pods(cluster, namespace, "elastic")
        status = pod["status"]["containerStatuses"][0]
        assert status["restartCount"] == 0
        return bool(status["resources"]["limits"]["cpu"] == "500m")

    eventually(resized, 20, "the new limit in the pod's status")
    # Of the first or the second version of cgroups.
    quota = execute(
        cluster, namespace, name, "sh", "-c", "cat /sys/fs/cgroup/cpu.max /sys/fs/cgroup/cpu/cpu.cfs_quota_us || true"
    )
    assert quota.startswith("50000")


def test_a_pod_that_breaks_the_restricted_profile_is_refused(cluster: Cluster, namespace: str) -> None:
    with pytest.raises(ClusterError, match="violates PodSecurity"):
        cluster.kubectl("run", "root", "--image=any", f"--namespace={namespace}")


def test_pods_of_a_lost_node_come_back_on_the_other_one_and_the_node_returns(cluster: Cluster, namespace: str) -> None:
    create(cluster, namespace, web("nomad", replicas=2))
    rollout(cluster, namespace, "nomad")

    cluster.kill_node(1)
    try:
        eventually(lambda: "node1" not in _ready_nodes(cluster), 30, "node1 NotReady")
        eventually(lambda: _homes(cluster, namespace, "nomad") == ["node0", "node0"], 60, "both pods on node0")
    finally:
        cluster.start_node(1)
    eventually(lambda: "node1" in _ready_nodes(cluster), 60, "node1 Ready again")
    cluster.kubectl("scale", "deployment/nomad", "--replicas=6", f"--namespace={namespace}")
    eventually(lambda: "node1" in _homes(cluster, namespace, "nomad"), 60, "a pod on the node that came back")


def _ready_nodes(cluster: Cluster) -> list[str]:
    nodes = json.loads(cluster.kubectl("get", "nodes", "--output=json"))["items"]
    return [node["metadata"]["name"] for node in nodes if ready(node)]


def _homes(cluster: Cluster, namespace: str, app: str) -> list[str]:
    return sorted(pod["spec"].get("nodeName", "") for pod in pods(cluster, namespace, app) if ready(pod))
