"""What every rendered installation promises, whatever is in it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from controller.settings import load_settings
from extender.settings import Settings as ExtenderSettings
from sair.crd import custom_resource_definition
from sair.quantities import parse_memory
from tests.deploy.rendered import DEPLOY, EXAMPLES, INSTALLATIONS, named, of_kind, render, workloads

AS_ROOT = {"DaemonSet/sair-agent agent"}
"""kubelet's folders are readable for root alone."""

ROOT_CAPABILITIES = {"DaemonSet/sair-agent agent": {"DAC_OVERRIDE"}}

everywhere = pytest.mark.parametrize("folder", (*INSTALLATIONS, *EXAMPLES))
installations = pytest.mark.parametrize("folder", INSTALLATIONS)


@everywhere
def test_every_container_is_confined(folder: str) -> None:
    assert workloads(folder)
    for workload in workloads(folder):
        shared = workload.pod.get("securityContext", {})
        assert shared.get("seccompProfile") == {"type": "RuntimeDefault"}, workload.name
        for name, container in workload.containers():
            context = {**shared, **container["securityContext"]}
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["allowPrivilegeEscalation"] is False, name
            assert not context.get("privileged"), name
            assert context["capabilities"]["drop"] == ["ALL"], name
            assert set(context["capabilities"].get("add", ())) == ROOT_CAPABILITIES.get(name, set()), name
            if name not in AS_ROOT:
                assert (context["runAsNonRoot"], context["runAsUser"]) == (True, 65532), name


@everywhere
def test_only_the_node_agent_touches_the_node(folder: str) -> None:
    for workload in workloads(folder):
        pod = workload.pod
        if workload.name == "sair-agent":
            assert [one["hostPath"]["path"] for one in pod["volumes"] if "hostPath" in one] == ["/var/lib/kubelet/pods"]
            continue
        assert not any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")), workload.name
        assert not any("hostPath" in volume for volume in pod.get("volumes", ())), workload.name
        assert not any(port.get("hostPort") for _, one in workload.containers() for port in one.get("ports", ()))


@everywhere
def test_every_image_is_pinned_by_a_tag_that_is_not_latest(folder: str) -> None:
    for workload in workloads(folder):
        for name, container in workload.containers():
            assert re.fullmatch(r"[a-z0-9.-]+(/[a-z0-9._-]+)*:(?!latest)[A-Za-z0-9._-]+", container["image"]), name
            for variable in container.get("env", ()):
                if variable["name"].endswith("_IMAGE"):
                    assert re.search(r":(?!latest)[\w.-]+$", variable["value"]), name


@everywhere
def test_every_container_says_what_it_needs_and_how_much_memory_it_may_take(folder: str) -> None:
    for workload in workloads(folder):
        for name, container in workload.containers():
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
            assert "memory" in container["resources"]["limits"], name


@installations
def test_every_long_lived_container_is_probed(folder: str) -> None:
    for workload in workloads(folder):
        for container in workload.pod["containers"]:
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys(), workload.name
            ports = {port["name"] for port in container["ports"]}
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                target = container[probe].get("httpGet") or container[probe].get("tcpSocket") or {"port": min(ports)}
                assert target["port"] in ports, (workload.name, probe)


@installations
def test_service_variables_are_off_because_they_would_look_like_settings(folder: str) -> None:
    assert all(workload.pod["enableServiceLinks"] is False for workload in workloads(folder))


@installations
def test_tokens_are_mounted_only_where_the_api_server_is_spoken_to(folder: str) -> None:
    mounting = {workload.name for workload in workloads(folder) if workload.pod["automountServiceAccountToken"]}

    assert mounting == {"sair-webhook", "sair-scheduler", "sair-controller", "sair-agent"}
    (redis,) = (one for one in workloads(folder) if one.name == "sair-redis")
    with_token = [
        container["name"]
        for _, container in redis.containers()
        if any(mount["name"] == "token" for mount in container["volumeMounts"])
    ]
    assert with_token == ["password"]


@installations
def test_tenants_namespaces_could_not_be_stricter_than_ours(folder: str) -> None:
    labels = {one["metadata"]["name"]: one["metadata"]["labels"] for one in of_kind(folder, "Namespace")}

    assert labels["sair-system"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {workload.name for workload in workloads(folder) if workload.namespace == "sair-node"} == {"sair-agent"}


@installations
def test_selectors_find_their_pods(folder: str) -> None:
    pods = [(one.namespace, one.template["metadata"]["labels"]) for one in workloads(folder)]

    def matched(namespace: str, wanted: dict[str, str]) -> int:
        return sum(space == namespace and wanted.items() <= labels.items() for space, labels in pods)

    for one in of_kind(folder, "Service"):
        assert matched(one["metadata"]["namespace"], one["spec"]["selector"]) == 1, one["metadata"]["name"]
    for one in of_kind(folder, "PodDisruptionBudget", "Deployment", "StatefulSet", "DaemonSet"):
        assert matched(one["metadata"]["namespace"], one["spec"]["selector"]["matchLabels"]) == 1, one["metadata"][
            "name"
        ]
    for one in of_kind(folder, "NetworkPolicy"):
        if one["spec"]["podSelector"]:
            assert matched(one["metadata"]["namespace"], one["spec"]["podSelector"]["matchLabels"]) == 1


@installations
def test_nothing_is_reachable_that_no_policy_opens(folder: str) -> None:
    policies = of_kind(folder, "NetworkPolicy")
    denied = {one["metadata"]["namespace"] for one in policies if one["metadata"]["name"] == "default-deny"}
    assert denied == {"sair-system", "sair-node"}

    redis = named(folder, "NetworkPolicy", "sair-redis")["spec"]
    (rule,) = redis["ingress"]
    (source,) = rule["from"]
    assert source["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "controller"
    assert "namespaceSelector" not in source


@installations
def test_no_secret_is_shipped(folder: str) -> None:
    assert of_kind(folder, "Secret") == []
    assert "password:" not in yaml.safe_dump_all(of_kind(folder, "ConfigMap"))


@installations
def test_the_webhook_is_asked_about_annotated_pods_only_and_never_about_its_own(folder: str) -> None:
    pods, workloads_hook = named(folder, "MutatingWebhookConfiguration", "sair-webhook")["webhooks"]
    namespaces = {one["metadata"]["name"] for one in of_kind(folder, "Namespace")}

    # Without an answer no pod of a stage is made; everything else goes on.
    assert (pods["failurePolicy"], workloads_hook["failurePolicy"]) == ("Fail", "Ignore")
    for hook, path, operations in (
        (pods, "object.metadata", ["CREATE"]),
        (workloads_hook, "object.spec.template.metadata", ["CREATE", "UPDATE"]),
    ):
        assert (hook["sideEffects"], hook["reinvocationPolicy"]) == ("None", "Never")
        assert hook["timeoutSeconds"] <= 5
        (rule,) = hook["rules"]
        assert (rule["operations"], rule["scope"]) == (operations, "Namespaced")
        condition = hook["matchConditions"][0]["expression"]
        assert f"'sair.dev/pipeline' in {path}.annotations" in condition
        assert f"'sair.dev/stage' in {path}.annotations" in condition
        (excluded,) = hook["namespaceSelector"]["matchExpressions"]
        assert excluded["operator"] == "NotIn"
        assert namespaces | {"kube-system"} == set(excluded["values"])
        assert "caBundle" not in hook["clientConfig"]


@installations
def test_the_scheduler_asks_the_extender_beside_it_about_every_pod(folder: str) -> None:
    config = _scheduler_configuration(folder)
    (extender,) = config["extenders"]
    pod = named(folder, "Deployment", "sair-scheduler")["spec"]["template"]["spec"]
    beside = {one["name"]: {env["name"]: env.get("value") for env in one.get("env", ())} for one in pod["containers"]}

    assert extender["urlPrefix"] == f"http://127.0.0.1:{beside['extender'].get('SAIR_EXTENDER_PORT', '8890')}"
    assert (extender["filterVerb"], extender["prioritizeVerb"], extender["bindVerb"]) == (
        "filter",
        "prioritize",
        "bind",
    )
    assert extender["nodeCacheCapable"] is True
    assert extender["ignorable"] is False
    assert extender["managedResources"] == []
    assert [profile["schedulerName"] for profile in config["profiles"]] == ["sair-scheduler"]


@installations
def test_schedulers_and_extenders_agree_on_the_lease(folder: str) -> None:
    election = _scheduler_configuration(folder)["leaderElection"]
    pod = named(folder, "Deployment", "sair-scheduler")["spec"]["template"]["spec"]
    (env,) = ({v["name"]: v for v in one["env"]} for one in pod["containers"] if one["name"] == "extender")
    (command,) = (one["command"] for one in pod["containers"] if one["name"] == "kube-scheduler")
    flags = dict(flag.partition("=")[::2] for flag in command)
    renewed = flags.get("--leader-elect-renew-deadline", election["renewDeadline"])
    fresh_s = env.get("SAIR_EXTENDER_LEASE_FRESH_S", {"value": ExtenderSettings().lease_fresh_s})["value"]

    assert float(fresh_s) == float(renewed.removesuffix("s"))
    assert election["leaderElect"] is True
    assert election["resourceName"] == env["SAIR_EXTENDER_LEASE_NAME"]["value"]
    assert election["resourceNamespace"] == "sair-system"
    assert env["SAIR_EXTENDER_LEASE_NAMESPACE"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.namespace"


def test_the_development_installation_needs_no_registry_and_no_storage() -> None:
    images = {one["image"] for workload in workloads("overlays/development") for _, one in workload.containers()}

    assert all(image.startswith("localhost/") for image in images)
    redis = named("overlays/development", "StatefulSet", "sair-redis")["spec"]
    assert "volumeClaimTemplates" not in redis
    assert {mount["name"] for mount in redis["template"]["spec"]["containers"][0]["volumeMounts"]} <= {
        volume["name"] for volume in redis["template"]["spec"]["volumes"]
    }


def test_the_high_availability_installation_never_puts_two_of_a_kind_on_one_node() -> None:
    for one in of_kind("overlays/high-availability", "Deployment"):
        constraints = one["spec"]["template"]["spec"]["topologySpreadConstraints"]
        hard = [rule["topologyKey"] for rule in constraints if rule["whenUnsatisfiable"] == "DoNotSchedule"]
        assert (one["spec"]["replicas"], hard) == (3, ["kubernetes.io/hostname"])


def test_the_crd_is_the_one_that_the_code_knows() -> None:
    with (DEPLOY / "crds" / "pipelines.yaml").open() as file:
        written = yaml.safe_load(file)

    assert written == custom_resource_definition(), "run: sair crd > deploy/crds/pipelines.yaml"


@everywhere
def test_no_object_is_rendered_twice(folder: str) -> None:
    keys = [(one["kind"], one["metadata"].get("namespace"), one["metadata"]["name"]) for one in render(folder)]

    assert len(keys) == len(set(keys))


def _scheduler_configuration(folder: str) -> dict[str, Any]:
    (config,) = (one for one in of_kind(folder, "ConfigMap") if one["metadata"]["name"].startswith("sair-scheduler"))
    parsed: dict[str, Any] = yaml.safe_load(config["data"]["scheduler.yaml"])
    return parsed


@pytest.mark.parametrize(("folder", "pipelines"), [("base", 100), ("overlays/thousand-pipelines", 1_000)])
def test_redis_and_the_controller_have_room_for_as_many_pipelines_as_is_said(folder: str, pipelines: int) -> None:
    """By the sums of docs/memory.md."""
    (controller,) = named(folder, "Deployment", "sair-controller")["spec"]["template"]["spec"]["containers"]
    redis = named(folder, "StatefulSet", "sair-redis")["spec"]
    (container,) = redis["template"]["spec"]["containers"]
    own = {one["name"]: one["value"] for one in controller["env"] if one["name"].startswith("SAIR_CONTROLLER_M")}
    own |= {one["name"]: one["value"] for one in controller["env"] if one["name"].startswith("SAIR_CONTROLLER_J")}
    settings = load_settings(own)
    (config,) = (one for one in of_kind(folder, "ConfigMap") if one["metadata"]["name"].startswith("sair-redis-config"))
    given = " ".join(container["command"]).split("--maxmemory ")
    text = given[1] if len(given) == 2 else config["data"]["redis.conf"].split("maxmemory ")[1].split()[0]
    most = int(text[:-2]) * {"mb": 2**20, "gb": 2**30}[text[-2:]]
    journal = settings.journal_mib * 2**20
    assert pipelines * (settings.memory_capacity * 2_900 + journal + 20_000) + 1e6 <= most
    assert most * 5 / 3 <= parse_memory(container["resources"]["limits"]["memory"]) * 2**20
    (claim,) = redis["volumeClaimTemplates"]
    assert 3 * most <= parse_memory(claim["spec"]["resources"]["requests"]["storage"]) * 2**20 * 1.01
    mirrored = pipelines * (settings.memory_capacity * 4_000 + 150_000)
    limit = parse_memory(controller["resources"]["limits"]["memory"]) * 2**20
    assert 150e6 + settings.waiting_mib * 2**20 + mirrored <= limit
