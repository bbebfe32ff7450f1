"""Every right of every component, in one table: adding one means adding a row here."""

from __future__ import annotations

from typing import Any

import pytest

from tests.deploy.rendered import INSTALLATIONS, of_kind

READ = "get list watch"

CLUSTER: dict[str, dict[str, str]] = {
    "sair-webhook": {
        "sair.dev/pipelines": "list watch",
        "admissionregistration.k8s.io/mutatingwebhookconfigurations[sair-webhook]": "get patch",
    },
    "sair-extender": {
        "nodes": "list watch",
        "pods": f"{READ} patch",
        "sair.dev/pipelines": "list watch",
        "pods/binding": "create",
        "events.k8s.io/events": "create patch",
    },
    "sair-controller": {
        "sair.dev/pipelines": f"{READ} create",
        "sair.dev/pipelines/status": "patch",
        "apps/deployments": READ,
        "apps/statefulsets": READ,
        "nodes": READ,
        "autoscaling/horizontalpodautoscalers": "list watch",
        "keda.sh/scaledobjects": "list watch",
        "pods": READ,
        "pods/resize": "patch",
        "apps/deployments/scale": "get patch",
        "apps/statefulsets/scale": "get patch",
        "events.k8s.io/events": "create patch",
    },
    "sair-agent": {"pods": "list watch", "nodes": "patch"},
}

SHARDED = ["sair-controller", *(f"sair-controller-{shard}" for shard in range(16))]
"""As many as SAIR_CONTROLLER_SHARDS may be; the common one besides."""

NAMESPACED: dict[str, dict[str, str]] = {
    "sair-webhook": {"secrets[sair-webhook-tls]": "get update", "secrets": "create"},
    "sair-redis": {"secrets[sair-redis]": "get", "secrets": "create"},
    "sair-scheduler": {
        "coordination.k8s.io/leases[sair-scheduler]": f"{READ} update",
        "coordination.k8s.io/leases": "create",
    },
    "sair-controller": {
        f"coordination.k8s.io/leases[{' '.join(SHARDED)}]": "get update",
        "coordination.k8s.io/leases": "create",
    },
}

BOUND = {
    ("ClusterRole", "sair-webhook"): "sair-system/sair-webhook",
    ("ClusterRole", "sair-extender"): "sair-system/sair-scheduler",
    # Kubernetes' own roles for schedulers follow its version.
    ("ClusterRole", "system:kube-scheduler"): "sair-system/sair-scheduler",
    ("ClusterRole", "system:volume-scheduler"): "sair-system/sair-scheduler",
    ("ClusterRole", "sair-controller"): "sair-system/sair-controller",
    ("ClusterRole", "sair-agent"): "sair-node/sair-agent",
    ("Role", "sair-webhook"): "sair-system/sair-webhook",
    ("Role", "sair-redis"): "sair-system/sair-redis",
    ("Role", "sair-scheduler"): "sair-system/sair-scheduler",
    ("Role", "sair-controller"): "sair-system/sair-controller",
}

installations = pytest.mark.parametrize("folder", INSTALLATIONS)


def rights(role: dict[str, Any]) -> dict[str, str]:
    table: dict[str, str] = {}
    for rule in role["rules"]:
        assert "nonResourceURLs" not in rule
        names = f"[{' '.join(rule['resourceNames'])}]" if "resourceNames" in rule else ""
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                table[f"{group}/{resource}{names}" if group else f"{resource}{names}"] = " ".join(rule["verbs"])
    return table


@installations
def test_the_table_is_what_is_granted(folder: str) -> None:
    assert {one["metadata"]["name"]: rights(one) for one in of_kind(folder, "ClusterRole")} == CLUSTER
    assert {one["metadata"]["name"]: rights(one) for one in of_kind(folder, "Role")} == NAMESPACED


@installations
def test_every_role_goes_to_one_account_and_none_is_an_administrators(folder: str) -> None:
    bound = {}
    for one in of_kind(folder, "ClusterRoleBinding", "RoleBinding"):
        (subject,) = one["subjects"]
        assert subject["kind"] == "ServiceAccount"
        bound[one["roleRef"]["kind"], one["roleRef"]["name"]] = f"{subject['namespace']}/{subject['name']}"

    assert bound == BOUND


@installations
def test_no_right_has_a_wildcard(folder: str) -> None:
    for role in of_kind(folder, "ClusterRole", "Role"):
        for rule in role["rules"]:
            assert "*" not in (*rule["apiGroups"], *rule["resources"], *rule["verbs"])


@installations
def test_nobody_may_read_secrets_besides_their_own(folder: str) -> None:
    for role in of_kind(folder, "ClusterRole"):
        assert not any("secrets" in rule["resources"] for rule in role["rules"])
    for role in of_kind(folder, "Role"):
        for rule in role["rules"]:
            if "secrets" in rule["resources"] and rule["verbs"] != ["create"]:
                assert len(rule["resourceNames"]) == 1
