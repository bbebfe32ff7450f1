"""`kubectl apply -k` brings SAIR up, changes nothing when repeated, and takes everything away again."""

from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.installation import Installation


def test_every_component_becomes_ready(installation: Installation) -> None:
    # The fixture applied it to a cluster that knew nothing of SAIR, and waited.
    assert {name for _, _, name in installation.workloads()} == {
        "sair-agent",
        "sair-controller",
        "sair-redis",
        "sair-scheduler",
        "sair-webhook",
    }


def test_no_container_of_sair_runs_as_more_than_it_needs(installation: Installation) -> None:
    pods = [item["spec"]["template"]["spec"] for item in installation.objects if "template" in item.get("spec", {})]
    containers = [container for pod in pods for container in (*pod.get("initContainers", ()), *pod["containers"])]

    assert containers
    assert all(container["securityContext"]["readOnlyRootFilesystem"] for container in containers)
    assert all(not container["securityContext"]["allowPrivilegeEscalation"] for container in containers)


def test_applying_it_again_changes_nothing(cluster: Cluster, installation: Installation) -> None:
    before = installation.versions()

    said = installation.apply()

    # kubectl replaces the selector of a PodDisruptionBudget by itself each time and calls that configured.
    changed = [line for line in said.splitlines() if not line.endswith(" unchanged")]
    assert [line for line in changed if not line.startswith("poddisruptionbudget.policy/")] == []
    assert installation.versions() == before
    # Fails, and prints the differences, where the server would hold anything else than what was applied.
    assert cluster.kubectl("diff", f"--kustomize={installation.kustomization}") == ""


def test_deleting_it_removes_everything_and_it_can_be_installed_anew(
    cluster: Cluster, installation: Installation
) -> None:
    installation.delete()

    assert installation.remains() == ""
    assert "sair" not in cluster.kubectl("get", "namespaces,clusterroles,clusterrolebindings", "--output=name")
    assert "sair" not in cluster.kubectl(
        "get", "mutatingwebhookconfigurations,validatingadmissionpolicies,priorityclasses,crds", "--output=name"
    )

    installation.apply()
    installation.wait()
    assert installation.ready_after_s is not None
    # The bar on an idle machine, images loaded, is 60 s.
    assert installation.ready_after_s < 90
