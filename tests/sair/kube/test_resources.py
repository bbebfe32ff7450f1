from __future__ import annotations

import pytest

from sair.errors import InvalidInput
from sair.kube.resources import DEPLOYMENTS, LEASES, NODES, PIPELINES, PODS, SCALEDOBJECTS, Resource


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (PODS.path(), "/api/v1/pods"),
        (PODS.path("ns"), "/api/v1/namespaces/ns/pods"),
        (PODS.path("ns", "a", "binding"), "/api/v1/namespaces/ns/pods/a/binding"),
        (NODES.path(None, "n1", "status"), "/api/v1/nodes/n1/status"),
        (DEPLOYMENTS.path("ns", "a", "scale"), "/apis/apps/v1/namespaces/ns/deployments/a/scale"),
        (PIPELINES.path("ns", "p"), "/apis/sair.dev/v1alpha1/namespaces/ns/pipelines/p"),
        (SCALEDOBJECTS.path(), "/apis/keda.sh/v1alpha1/scaledobjects"),
        (PODS.path("ns", "a b?c"), "/api/v1/namespaces/ns/pods/a%20b%3Fc"),
    ],
)
def test_paths_are_those_of_the_api_server(path: str, expected: str) -> None:
    assert path == expected


@pytest.mark.parametrize(
    ("resource", "namespace", "name", "subresource", "field"),
    [
        (NODES, "ns", "a", None, "namespace"),
        (PODS, None, "a", None, "namespace"),
        (PODS, "ns", None, "status", "name"),
        (PODS, "ns", "", None, "name"),
        (PODS, "ns", "..", None, "name"),
        (PODS, "../../secrets", "a", None, "namespace"),
        (PODS, "ns", "a", "a/b", "subresource"),
    ],
)
def test_a_path_that_would_lead_elsewhere_is_refused(
    resource: Resource, namespace: str | None, name: str | None, subresource: str | None, field: str
) -> None:
    with pytest.raises(InvalidInput) as refusal:
        resource.path(namespace, name, subresource)
    assert refusal.value.field == field


def test_the_core_group_has_no_name_in_an_api_version() -> None:
    assert (PODS.api_version, LEASES.api_version) == ("v1", "coordination.k8s.io/v1")


def test_keys_name_objects_as_stores_do() -> None:
    assert (PODS.key("ns", "a"), NODES.key(None, "n1")) == ("ns/a", "n1")
