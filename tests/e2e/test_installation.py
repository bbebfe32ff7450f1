"""`kubectl apply -k` brings SAIR up, in time, and changes nothing when repeated."""

import pytest

from tests.e2e.bars import Bars
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


# A duration: for `make e2e` on a quiet machine, not for `make test` on any.
@pytest.mark.long
@pytest.mark.usefixtures("installation")
@pytest.mark.parametrize("name", ["cluster Ready", "SAIR Ready"])
def test_it_is_there_in_time(bars: Bars, name: str) -> None:
    if name not in bars:
        # `make cluster-up` brought it up, or somebody's cluster is used: nobody measured how long that took.
        pytest.skip("the cluster was up before these tests began")
    bars[name].judge()


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
