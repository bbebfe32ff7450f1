"""What becomes of a pod on its way into the cluster, with the webhook and the policies in it."""

from collections.abc import Iterator

import pytest

from tests.e2e import gpu_pods
from tests.e2e.cluster import images
from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.errors import ClusterError
from tests.e2e.controller import NAMESPACE, metric
from tests.e2e.pods import create, eventually, execute, labelled, pods, rollout, web
from tests.e2e.stages import give_gpus, replica, stage

pytestmark = pytest.mark.usefixtures("installation")


@pytest.fixture
def _a_gpu(cluster: Cluster) -> Iterator[None]:
    give_gpus(cluster, per_node=1)
    yield
    give_gpus(cluster, per_node=0)


@pytest.mark.usefixtures("_a_gpu")
def test_a_deployments_annotated_pod_comes_up_with_all_that_the_hook_needs(cluster: Cluster, namespace: str) -> None:
    gpu_pods.prepare(cluster, namespace)
    create(cluster, namespace, gpu_pods.busy_stage("infer", "0.3", memory="2Gi"))
    gpu_pods.addresses(cluster, namespace, ["infer"])
    (pod,) = pods(cluster, namespace, "infer")
    name, annotations = pod["metadata"]["name"], pod["metadata"]["annotations"]

    assert pod["spec"]["schedulerName"] == "sair-scheduler"
    assert annotations["sair.dev/gpu-granted"] == "0.3"
    assert annotations["sair.dev/gpu-index"] == "0"
    assert "sair.dev/injected" in annotations
    # And in the container itself.
    inside = dict(line.split("=", 1) for line in execute(cluster, namespace, name, "env").splitlines() if "=" in line)
    assert inside["NVIDIA_VISIBLE_DEVICES"] == annotations["sair.dev/gpu-index"]
    assert inside["SAIR_GPU_MEMORY_MIB"] == "2048"
    assert execute(cluster, namespace, name, "cat", "/etc/sair/gpu-granted") == annotations["sair.dev/gpu-granted"]
    # It is mapped into the program that runs, not only named.
    assert inside["LD_PRELOAD"] in execute(cluster, namespace, name, "cat", "/proc/1/maps")
    out_of_memory = 2
    assert gpu_pods.allocate(cluster, namespace, name, 1024) == 0
    assert gpu_pods.allocate(cluster, namespace, name, 2049) == out_of_memory


def test_a_pod_without_annotations_never_reaches_the_webhook(cluster: Cluster, namespace: str) -> None:
    before = _requests(cluster)

    create(cluster, namespace, web("bystander"))
    rollout(cluster, namespace, "bystander")

    assert _requests(cluster) == before
    (pod,) = pods(cluster, namespace, "bystander")
    assert pod["spec"]["schedulerName"] == "default-scheduler"
    # The counter does move for a pod that opts in.
    create(cluster, namespace, stage("member", {}))
    eventually(lambda: _requests(cluster) > before, 30, "the webhook's counter")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("gpu-rate", "1.5", "a decimal number in (0, 1] with at most three decimals, such as 0.35"),
        ("gpu-rate", "a lot", "a decimal number in (0, 1] with at most three decimals, such as 0.35"),
        ("gpu-memory", "2 gigs", "a Kubernetes quantity"),
        ("slo-p99", "soon", "a positive duration"),
        ("after", "Not_A_Label", "a DNS label"),
    ],
)
def test_a_malformed_annotation_is_refused_when_the_workload_is_applied(
    cluster: Cluster, shared_namespace: str, key: str, value: str, expected: str
) -> None:
    with pytest.raises(ClusterError) as refusal:
        create(cluster, shared_namespace, stage("wrong", {"gpu-rate": "0.3"} | {key: value}))

    # As docs/webhook.md says that every message reads.
    assert f"sair.dev/{key}: '{value}' is not allowed; expected {expected}" in str(refusal.value)


def test_a_namespace_with_pod_security_restricted_takes_injected_pods_and_nothing_laxer(
    cluster: Cluster, namespace: str
) -> None:
    create(cluster, namespace, replica("strict", "0.1"))
    (pod,) = pods(cluster, namespace, "strict")
    assert [one["name"] for one in pod["spec"]["initContainers"]] == ["sair-hook"]

    lax = replica("lax", "0.1")
    lax["spec"]["containers"][0]["securityContext"] = {"privileged": True}
    with pytest.raises(ClusterError, match='violates PodSecurity "restricted'):
        create(cluster, namespace, lax)


@pytest.mark.parametrize(
    ("annotation", "says"),
    [
        ("sair.dev/gpu-granted=1", "only the extender of sair-scheduler grants shares"),
        ("sair.dev/gpu-rate=1", "may not change it on a live pod"),
    ],
)
def test_nobody_but_the_extender_writes_shares_onto_live_pods(
    cluster: Cluster, shared_namespace: str, annotation: str, says: str
) -> None:
    create(cluster, shared_namespace, replica("greedy", "0.3"))

    with pytest.raises(ClusterError, match=says):
        cluster.kubectl("annotate", "pod", "greedy", annotation, "--overwrite", f"--namespace={shared_namespace}")


def test_what_every_pod_pulls_for_the_hook_is_a_few_hundred_kilobytes() -> None:
    # An archive of one layer, not compressed; the library and the program that copies it are all there is.
    assert images.archive(images.hook("localhost/sair-hook:development")).stat().st_size < 300_000


def _requests(cluster: Cluster) -> float:
    """Admission requests that all replicas of the webhook have answered."""
    found = labelled(cluster, NAMESPACE, "app.kubernetes.io/component=webhook")
    return sum(metric(pod["status"]["podIP"], "sair_webhook_requests_total") for pod in found)
