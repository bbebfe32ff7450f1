"""`kubectl delete -k` takes everything away again; the last of these tests, because nothing is left for others afterwards."""

from tests.e2e.cluster.cluster import Cluster
from tests.e2e.cluster.installation import Installation

_KINDS = (
    "namespaces,clusterroles,clusterrolebindings,mutatingwebhookconfigurations,validatingadmissionpolicies,"
    "validatingadmissionpolicybindings,priorityclasses,crds"
)


def test_deleting_it_removes_everything(cluster: Cluster, installation: Installation) -> None:
    assert "sair" in cluster.kubectl("get", _KINDS, "--output=name")

    installation.delete()

    assert installation.remains() == ""
    assert "sair" not in cluster.kubectl("get", _KINDS, "--output=name")
