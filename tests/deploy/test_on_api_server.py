"""The manifests under a real API server: accepted, unchanged by a second apply, and the policies really refuse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.rendered import DEPLOY, EXAMPLES, INSTALLATIONS
from tests.e2e.cluster.control_plane import ControlPlane
from tests.e2e.cluster.errors import ClusterError

CONTROLLER = "system:serviceaccount:sair-system:sair-controller"
EXTENDER = "system:serviceaccount:sair-system:sair-scheduler"
AGENT = "system:serviceaccount:sair-node:sair-agent"
TENANT = "tenant"

STAGE = {"sair.dev/pipeline": "vision", "sair.dev/stage": "inference", "sair.dev/gpu-rate": "0.3"}


@pytest.fixture(scope="module")
def prepared(control_plane: ControlPlane) -> ControlPlane:
    """What has to exist before the rest can be tried: namespaces and the CRD."""
    example = "examples/image-classification/namespace.yaml"
    files = ("base/namespaces.yaml", "base/priority.yaml", "crds/pipelines.yaml", example)
    control_plane.run_kubectl("apply", *(f"--filename={DEPLOY / file}" for file in files))
    return control_plane


@pytest.fixture(scope="module")
def installed(prepared: ControlPlane) -> Iterator[ControlPlane]:
    """The whole base, without what only a webhook that runs could answer for."""
    control_plane = prepared
    control_plane.start_controllers(["validatingadmissionpolicy-status-controller"])
    control_plane.run_kubectl("apply", f"--kustomize={DEPLOY / 'base'}")
    control_plane.run_kubectl("delete", "mutatingwebhookconfiguration", "sair-webhook")
    # A tenant with every right on pods and nodes that RBAC can give: only admission stands in the way. The agent, too: its own
    # right to patch is not enough for kubectl, which reads before it patches.
    verbs = ["--verb=*", "--resource=pods,pods/status,pods/binding,bindings,nodes,nodes/status"]
    control_plane.run_kubectl("create", "clusterrole", "tenant", *verbs)
    control_plane.run_kubectl(
        "create", "clusterrolebinding", "tenant", "--clusterrole=tenant", f"--user={TENANT}", f"--user={AGENT}"
    )
    try:
        yield control_plane
    finally:
        control_plane.run_kubectl("delete", "clusterrolebinding,clusterrole", "tenant")
        rest = ["--ignore-not-found", "--wait=false"]
        control_plane.run_kubectl("delete", f"--kustomize={DEPLOY / 'base' / 'policy'}", *rest)
        kinds = "deployments,statefulsets,daemonsets,services,networkpolicies,poddisruptionbudgets,roles,rolebindings"
        for namespace in ("sair-system", "sair-node"):
            control_plane.run_kubectl("delete", kinds, "--all", f"--namespace={namespace}", "--wait=false")
        selector = "--selector=app.kubernetes.io/part-of=sair"
        control_plane.run_kubectl("delete", "clusterroles,clusterrolebindings,priorityclasses", selector)
        control_plane.stop_process("kube-controller-manager")


@pytest.fixture
def pod(installed: ControlPlane) -> Iterator[str]:
    """A live pod of a stage."""
    name = json.loads(_create_pod(installed, STAGE))["metadata"]["name"]
    yield name
    installed.run_kubectl("delete", "pod", name, "--force", "--grace-period=0", "--wait=false")


@pytest.fixture(scope="module")
def untouched(installed: ControlPlane) -> Iterator[str]:
    """A live pod whose annotations are in the end what they were."""
    name = json.loads(_create_pod(installed, STAGE))["metadata"]["name"]
    yield name
    assert _annotations(installed, name) == STAGE
    installed.run_kubectl("delete", "pod", name, "--force", "--grace-period=0", "--wait=false")


def _create_pod(cluster: ControlPlane, annotations: dict[str, str], user: str | None = None) -> str:
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "stage-", "namespace": "default", "annotations": annotations},
        "spec": {"containers": [{"name": "main", "image": "example/app:1"}], "schedulerName": "nobody"},
    }
    return cluster.run_kubectl("create", "--filename=-", "--output=json", *_as(user), stdin=json.dumps(body))


def _annotate(cluster: ControlPlane, pod: str, user: str, *changes: str, subresource: str | None = None) -> None:
    values: dict[str, str | None] = {}
    for change in changes:
        key, _, value = change.partition("=")
        values[f"sair.dev/{key}" if "/" not in key else key] = value or None
    patch = json.dumps({"metadata": {"annotations": values}})
    where = [f"--subresource={subresource}"] if subresource else []
    cluster.run_kubectl(
        "patch", "pod", pod, "--namespace=default", "--type=merge", f"--patch={patch}", *where, *_as(user)
    )


def _bind(cluster: ControlPlane, pod: str, user: str, annotations: dict[str, str]) -> None:
    body = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": pod, "namespace": "default", "annotations": annotations},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "somewhere"},
    }
    path = f"/api/v1/namespaces/default/pods/{pod}/binding"
    cluster.run_kubectl("create", f"--raw={path}", "--filename=-", *_as(user), stdin=json.dumps(body))


def _as(user: str | None) -> list[str]:
    return [f"--as={user}"] if user else []


def _annotations(cluster: ControlPlane, pod: str) -> dict[str, str]:
    raw = json.loads(cluster.run_kubectl("get", "pod", pod, "--namespace=default", "--output=json"))
    found: dict[str, str] = raw["metadata"]["annotations"]
    return found


@pytest.mark.parametrize("folder", (*INSTALLATIONS, *EXAMPLES))
def test_the_api_server_accepts_every_object(prepared: ControlPlane, folder: str) -> None:
    said = prepared.run_kubectl("apply", "--dry-run=server", "--validate=strict", f"--kustomize={DEPLOY / folder}")

    assert said.count("(server dry run)") == len(said.splitlines()) > 5


def test_applying_again_changes_nothing(installed: ControlPlane) -> None:
    before = _versions(installed)
    installed.run_kubectl("apply", f"--kustomize={DEPLOY / 'base'}")
    # It was taken away for these tests.
    installed.run_kubectl("delete", "mutatingwebhookconfiguration", "sair-webhook")

    assert _versions(installed) == before
    assert len(before) > 30


def _versions(cluster: ControlPlane) -> dict[str, str]:
    kinds = "deployments,statefulsets,daemonsets,services,configmaps,serviceaccounts,networkpolicies,poddisruptionbudgets,roles"
    everything = (
        f"{kinds},rolebindings,clusterroles,clusterrolebindings,crds,priorityclasses,validatingadmissionpolicies"
    )
    selector = "--selector=app.kubernetes.io/part-of=sair"
    raw = json.loads(cluster.run_kubectl("get", everything, "--all-namespaces", selector, "--output=json"))
    return {
        f"{one['kind']}/{one['metadata'].get('namespace')}/{one['metadata']['name']}": one["metadata"][
            "resourceVersion"
        ]
        for one in raw["items"]
    }


@pytest.mark.parametrize("policy", ["pods.sair.dev", "bindings.sair.dev", "nodes.sair.dev"])
def test_the_expressions_of_the_policies_type_check_without_a_warning(installed: ControlPlane, policy: str) -> None:
    path = "--for=jsonpath={.status.observedGeneration}=1"
    installed.run_kubectl("wait", path, f"validatingadmissionpolicy/{policy}", "--timeout=30s")

    raw = json.loads(installed.run_kubectl("get", "validatingadmissionpolicy", policy, "--output=json"))

    assert raw["status"]["typeChecking"].get("expressionWarnings", []) == []


class TestWhoMayWriteWhatOnALivePod:
    def test_the_extender_writes_wish_and_grant_together_or_a_wish_alone(
        self, installed: ControlPlane, pod: str
    ) -> None:
        _annotate(installed, pod, EXTENDER, "gpu-rate=0.5", "gpu-granted=0.5", "gpu-index=1")
        _annotate(installed, pod, EXTENDER, "gpu-rate=0.6", "gpu-granted-at=2026-01-01T00:00:00.000+00:00")

        found = _annotations(installed, pod)
        assert (found["sair.dev/gpu-rate"], found["sair.dev/gpu-granted"]) == ("0.6", "0.5")

    @pytest.mark.parametrize(
        ("user", "change", "says"),
        [
            # Its wishes stand in the Pipeline's status: on pods it may change nothing but CPU.
            (CONTROLLER, "gpu-rate=1", 'cannot patch resource "pods"'),
            (CONTROLLER, "gpu-granted=1", 'cannot patch resource "pods"'),
            (TENANT, "gpu-rate=1", "may not change it on a live pod"),
            (TENANT, "gpu-rate", "may not change it on a live pod"),
            (TENANT, "gpu-granted=1", "only the extender of sair-scheduler grants"),
            (TENANT, "gpu-granted-at=now", "only the extender of sair-scheduler grants"),
            (TENANT, "gpu-memory=1Mi", "do not change"),
            (TENANT, "stage=other", "do not change"),
            (TENANT, "pipeline", "do not change"),
            (TENANT, "injected=9", "do not change"),
            (EXTENDER, "gpu-memory=1Mi", "do not change"),
        ],
    )
    def test_nobody_else_writes_theirs(
        self, installed: ControlPlane, untouched: str, user: str, change: str, says: str
    ) -> None:
        with pytest.raises(ClusterError, match=says):
            _annotate(installed, untouched, user, change)

    @pytest.mark.parametrize("change", ["gpu-rate=1", "gpu-granted=1", "gpu-memory=1Mi"])
    def test_nor_through_the_status_which_takes_annotations_too(
        self, installed: ControlPlane, untouched: str, change: str
    ) -> None:
        with pytest.raises(ClusterError, match=r"denied request: .*sair\.dev/"):
            _annotate(installed, untouched, TENANT, change, subresource="status")

    def test_other_annotations_are_everybodys(self, installed: ControlPlane, pod: str) -> None:
        _annotate(installed, pod, TENANT, "team/owner=vision")
        _annotate(installed, pod, TENANT, "team/owner=vision", subresource="status")

        assert _annotations(installed, pod)["team/owner"] == "vision"

    def test_an_administrator_is_bound_by_it_as_well(self, installed: ControlPlane, untouched: str) -> None:
        with pytest.raises(ClusterError, match="only the extender"):
            installed.run_kubectl("annotate", "pod", untouched, "--namespace=default", "sair.dev/gpu-granted=1")


class TestANewPod:
    def test_may_carry_the_users_initial_rate(self, installed: ControlPlane) -> None:
        assert json.loads(_create_pod(installed, STAGE, TENANT))["metadata"]["annotations"] == STAGE

    @pytest.mark.parametrize("key", ["gpu-granted", "gpu-index"])
    def test_brings_no_grant_even_where_the_webhook_did_not_see_it(self, installed: ControlPlane, key: str) -> None:
        with pytest.raises(ClusterError, match="only the extender"):
            _create_pod(installed, {f"sair.dev/{key}": "1"}, TENANT)


class TestABinding:
    def test_of_the_extender_carries_the_grant_onto_the_pod(self, installed: ControlPlane, pod: str) -> None:
        grant = {"sair.dev/gpu-rate": "0.4", "sair.dev/gpu-granted": "0.4", "sair.dev/gpu-index": "2"}
        _bind(installed, pod, EXTENDER, grant)

        assert _annotations(installed, pod) == STAGE | grant

    @pytest.mark.parametrize(
        ("user", "key"),
        [
            (TENANT, "gpu-granted"),
            (TENANT, "gpu-index"),
            (TENANT, "gpu-rate"),
            (EXTENDER, "gpu-memory"),
            (EXTENDER, "stage"),
        ],
    )
    def test_of_anybody_else_or_with_anything_else_is_refused(
        self, installed: ControlPlane, untouched: str, user: str, key: str
    ) -> None:
        with pytest.raises(ClusterError, match="in a Binding"):
            _bind(installed, untouched, user, {f"sair.dev/{key}": "1"})

    def test_without_annotations_is_not_our_business(self, installed: ControlPlane, pod: str) -> None:
        _bind(installed, pod, TENANT, {})

        assert "sair.dev/gpu-granted" not in _annotations(installed, pod)


@pytest.fixture(scope="module")
def kubeconfig_of_the_agent(installed: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of the agent on the node ``own``: the API server knows from a pod's token where it runs."""
    for name in ("own", "other"):
        body: dict[str, Any] = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": {"a": "b"}},
        }
        installed.run_kubectl("create", "--filename=-", stdin=json.dumps(body))
    config = yaml.safe_load(installed.kubeconfig.read_text())
    extra = {"authentication.kubernetes.io/node-name": ["own"]}
    for user in config["users"]:
        user["user"] |= {"as": AGENT, "as-user-extra": extra}
    path = tmp_path_factory.mktemp("agent") / "kubeconfig"
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(config))
    yield path
    installed.run_kubectl("delete", "node", "own", "other")


class TestTheNodeAgent:
    def patch(self, cluster: ControlPlane, kubeconfig: Path, node: str, patch: dict[str, Any]) -> None:
        arguments = [
            "patch",
            "node",
            node,
            "--type=merge",
            f"--patch={json.dumps(patch)}",
            f"--kubeconfig={kubeconfig}",
        ]
        cluster.run_kubectl(*arguments)

    def test_writes_the_inventory_of_its_own_node(self, installed: ControlPlane, kubeconfig_of_the_agent: Path) -> None:
        self.patch(installed, kubeconfig_of_the_agent, "own", {"metadata": {"annotations": {"sair.dev/gpus": "[]"}}})

    @pytest.mark.parametrize(
        ("node", "patch", "says"),
        [
            ("other", {"metadata": {"annotations": {"sair.dev/gpus": "[]"}}}, "only the Node it runs on"),
            ("own", {"metadata": {"annotations": {"else": "x"}}}, "only the annotation sair.dev/gpus"),
            ("own", {"metadata": {"labels": {"a": "c"}}}, "only the annotation sair.dev/gpus"),
            ("own", {"spec": {"unschedulable": True}}, "only the annotation sair.dev/gpus"),
            ("own", {"spec": {"taints": [{"key": "k", "effect": "NoExecute"}]}}, "only the annotation sair.dev/gpus"),
        ],
    )
    def test_writes_nothing_else(
        self, installed: ControlPlane, kubeconfig_of_the_agent: Path, node: str, patch: dict[str, Any], says: str
    ) -> None:
        with pytest.raises(ClusterError, match=says):
            self.patch(installed, kubeconfig_of_the_agent, node, patch)


class TestAPipeline:
    def test_is_shown_by_kubectl(self, installed: ControlPlane) -> None:
        body = {
            "apiVersion": "sair.dev/v1alpha1",
            "kind": "Pipeline",
            "metadata": {"name": "shown", "namespace": "default"},
        }
        body["spec"] = {"sloP99": "250ms", "mode": "auto"}
        installed.run_kubectl("apply", "--filename=-", stdin=json.dumps(body))
        try:
            header = installed.run_kubectl("get", "pipelines", "--namespace=default").splitlines()[0]
            assert header.split() == ["NAME", "MODE", "SLO", "P99", "COST/H", "BOTTLENECK", "DECISION", "AGE"]
        finally:
            installed.run_kubectl("delete", "pipeline", "shown", "--namespace=default")

    @pytest.mark.parametrize(
        "spec",
        [
            {"mode": "fast"},
            {"sloP99": "soon"},
            {"budgetPerHour": 0},
            {"preference": 2},
            {"rollback": {"at": "2026-03-01T03:00:00Z", "round": 1}},
            {"rollback": {"at": "yesterday", "round": 1, "stages": []}},
        ],
    )
    def test_of_another_shape_is_refused(self, installed: ControlPlane, spec: dict[str, Any]) -> None:
        body = {"apiVersion": "sair.dev/v1alpha1", "kind": "Pipeline", "metadata": {"name": "wrong"}, "spec": spec}
        with pytest.raises(ClusterError, match=f"spec.{next(iter(spec))}"):
            installed.run_kubectl("create", "--filename=-", stdin=json.dumps(body))
