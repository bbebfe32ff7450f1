"""What becomes of pods: the injection, the stamped rate, and every reason to refuse."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import jsonpatch
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sair import wire
from sair.annotations import parse_stage
from sair.pipeline import Pipeline
from tests.webhook.requests import CPU_STAGE, GPU_STAGE, SETTINGS, pipeline, pod, reason, review
from webhook.mutation import decide
from webhook.review import AdmissionRequest, Verdict
from webhook.settings import WebhookSettings

_GRANTS = ("sair.dev/gpu-granted", "sair.dev/gpu-granted-at", "sair.dev/gpu-index")
_FIELDS = (
    "name",
    "env",
    "value",
    "valueFrom",
    "volumeMounts",
    "mountPath",
    "resources",
    "limits",
    "annotations",
    "containers",
)


def no_pipeline(_key: str) -> Pipeline | None:
    return None


def ask(
    raw: dict[str, Any],
    find: Callable[[str], Pipeline | None] = no_pipeline,
    settings: WebhookSettings = SETTINGS,
    **request: Any,
) -> Verdict:
    return decide(wire.convert(review(raw, **request)["request"], AdmissionRequest, what="request"), settings, find)


def admitted(
    raw: dict[str, Any], find: Callable[[str], Pipeline | None] = no_pipeline, settings: WebhookSettings = SETTINGS
) -> dict[str, Any]:
    before = copy.deepcopy(raw)
    verdict = ask(raw, find, settings)
    assert verdict.reason is None
    assert raw == before
    made: dict[str, Any] = jsonpatch.apply_patch(raw, list(verdict.patch))
    return made


def main(raw: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = raw["spec"]["containers"][0]
    return container


def variables(container: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


def test_a_gpu_stage_gets_the_whole_contract() -> None:
    made = admitted(pod({**GPU_STAGE, "sair.dev/gpu-memory": "2Gi"}))

    assert made["metadata"]["annotations"] == {
        **GPU_STAGE,
        "sair.dev/gpu-memory": "2Gi",
        "sair.dev/container": "main",
        "sair.dev/injected": "1",
    }
    assert made["spec"]["schedulerName"] == "sair-scheduler"
    assert variables(main(made)) == {
        "LD_PRELOAD": "/opt/sair/libsair_cuda.so",
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
        "SAIR_GRANT_FILE": "/etc/sair/gpu-granted",
        "SAIR_STATS_PATH": "/run/sair/stats",
        "SAIR_GPU_MEMORY_MIB": "2048",
        "NVIDIA_VISIBLE_DEVICES": {
            "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.annotations['sair.dev/gpu-index']"}
        },
    }
    assert {one["name"]: (one["mountPath"], one.get("readOnly", False)) for one in main(made)["volumeMounts"]} == {
        "sair-hook": ("/opt/sair", True),
        "sair-grant": ("/etc/sair", True),
        "sair-stats": ("/run/sair", False),
    }
    assert made["spec"]["volumes"] == [
        {"name": "sair-hook", "emptyDir": {"sizeLimit": "16Mi"}},
        {
            "name": "sair-grant",
            "downwardAPI": {
                "items": [
                    {
                        "path": "gpu-granted",
                        "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.annotations['sair.dev/gpu-granted']"},
                    }
                ]
            },
        },
        {"name": "sair-stats", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
    ]


def test_the_init_container_fits_the_restricted_profile_and_keeps_a_guaranteed_pod_guaranteed() -> None:
    (hook,) = admitted(pod(GPU_STAGE))["spec"]["initContainers"]

    assert hook["image"] == "example/sair-hook:1"
    assert hook["volumeMounts"] == [{"name": "sair-hook", "mountPath": "/opt/sair"}]
    assert hook["resources"]["requests"] == hook["resources"]["limits"]
    context = hook["securityContext"]
    assert context["runAsNonRoot"] and context["runAsUser"] > 0 and context["readOnlyRootFilesystem"]
    assert not context["allowPrivilegeEscalation"] and not context["privileged"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}


def test_a_cpu_stage_keeps_its_scheduler_and_gets_no_hook() -> None:
    before = pod(CPU_STAGE, schedulerName="volcano")

    made = admitted(before)

    assert made["spec"] == before["spec"]
    assert made["metadata"]["annotations"] == {**CPU_STAGE, "sair.dev/container": "main"}


@pytest.mark.parametrize(
    "raw",
    [pod(), pod({"team": "vision"}), pod({"sair.dev/gpu-rate": "nonsense"})],
    ids=["no annotations", "foreign annotations", "no opt-in"],
)
def test_a_pod_that_does_not_opt_in_is_left_alone(raw: dict[str, Any]) -> None:
    assert ask(raw) == Verdict()


@pytest.mark.parametrize(
    "request_changes",
    [
        {"operation": "UPDATE"},
        {"subResource": "status"},
        {"resource": {"group": "batch", "resource": "jobs"}},
        {"resource": {"group": "apps", "resource": "deployments"}, "operation": "DELETE"},
        {"resource": {"group": "apps", "resource": "deployments"}, "subResource": "scale"},
    ],
    ids=str,
)
def test_anything_but_new_pods_and_their_templates_is_allowed_unseen(request_changes: dict[str, Any]) -> None:
    assert ask(pod({**GPU_STAGE, "sair.dev/gpu-rate": "7"}), **request_changes) == Verdict()


def test_the_annotated_container_gets_the_hook_and_no_other() -> None:
    sidecar = {"name": "proxy", "image": "example/proxy:1"}
    main_container = {"name": "model", "image": "example/model:1"}

    made = admitted(pod({**GPU_STAGE, "sair.dev/container": "model"}, containers=[sidecar, main_container]))

    proxy, model = made["spec"]["containers"]
    assert proxy == sidecar
    assert "LD_PRELOAD" in variables(model)


def test_the_first_container_is_written_down_so_that_a_later_sidecar_is_not_mistaken_for_it() -> None:
    once = admitted(pod(GPU_STAGE))
    once["spec"]["containers"].insert(0, {"name": "sidecar", "image": "example/mesh:1"})

    assert admitted(once) == once


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "/opt/sair/libsair_cuda.so"),
        ("/usr/lib/libjemalloc.so", "/opt/sair/libsair_cuda.so:/usr/lib/libjemalloc.so"),
        ("a.so b.so", "/opt/sair/libsair_cuda.so:a.so b.so"),
        ("/opt/sair/libsair_cuda.so b.so", "/opt/sair/libsair_cuda.so b.so"),
        ("$(EXTRA)", "/opt/sair/libsair_cuda.so:$(EXTRA)"),
    ],
)
def test_what_is_preloaded_already_stays_behind_the_hook(before: str, after: str) -> None:
    made = admitted(pod(GPU_STAGE, container={"env": [{"name": "LD_PRELOAD", "value": before}]}))

    assert variables(main(made))["LD_PRELOAD"] == after


def test_of_a_variable_given_twice_the_last_one_is_extended_as_it_is_the_one_that_counts() -> None:
    env = [{"name": "LD_PRELOAD", "value": "a.so"}, {"name": "LD_PRELOAD", "value": "b.so"}]

    made = admitted(pod(GPU_STAGE, container={"env": env}))

    assert [one["value"] for one in main(made)["env"][:2]] == ["a.so", "/opt/sair/libsair_cuda.so:b.so"]


def test_capabilities_of_the_driver_that_the_user_asks_for_stay() -> None:
    env = [{"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "all"}]

    assert variables(main(admitted(pod(GPU_STAGE, container={"env": env}))))["NVIDIA_DRIVER_CAPABILITIES"] == "all"


def test_a_runtime_class_is_added_where_one_is_configured_and_the_user_names_none() -> None:
    settings = WebhookSettings(hook_image="example/sair-hook:1", runtime_class="nvidia")

    assert admitted(pod(GPU_STAGE), settings=settings)["spec"]["runtimeClassName"] == "nvidia"
    assert (
        admitted(pod(GPU_STAGE, runtimeClassName="gvisor"), settings=settings)["spec"]["runtimeClassName"] == "gvisor"
    )


def test_a_second_pass_changes_nothing_and_a_restored_pod_is_injected_anew() -> None:
    annotations = {**GPU_STAGE, "sair.dev/gpu-memory": "1Gi"}
    once = admitted(pod(annotations, container={"env": [{"name": "LD_PRELOAD", "value": ""}]}))
    assert ask(once).patch == ()

    newer = WebhookSettings(hook_image="example/sair-hook:2", hook_version="2")
    restored = admitted(once, settings=newer)

    assert [one["image"] for one in restored["spec"]["initContainers"]] == ["example/sair-hook:2"]
    assert restored["metadata"]["annotations"]["sair.dev/injected"] == "2"
    assert restored["spec"]["volumes"] == once["spec"]["volumes"]


class TestTheStampedRate:
    def test_is_what_the_pipeline_gives_the_stage_now(self) -> None:
        made = admitted(pod(GPU_STAGE), {"shop/vision": pipeline("0.6")}.get)

        assert made["metadata"]["annotations"]["sair.dev/gpu-rate"] == "0.6"

    @pytest.mark.parametrize(
        "found",
        [
            None,
            pipeline(None),
            pipeline(stage="other"),
            pipeline("0.6", mode="off"),
            pipeline("0.6", mode="recommend"),
            pipeline("0.6", mode="recommend", spec_mode="auto"),
            pipeline("0.6", spec_mode="off"),
        ],
        ids=["no pipeline seen", "no rate yet", "stage unknown", "off", "recommend", "held by a conflict", "just off"],
    )
    def test_is_the_users_own_otherwise(self, found: Pipeline | None) -> None:
        made = admitted(pod(GPU_STAGE), lambda _key: found)

        assert made["metadata"]["annotations"]["sair.dev/gpu-rate"] == "0.3"

    @pytest.mark.parametrize(("now", "stamped"), [("0.9", "0.5"), ("0.1", "0.2"), ("0.4", "0.4")])
    def test_stays_within_the_bounds_of_the_pod_template(self, now: str, stamped: str) -> None:
        bounded = {**GPU_STAGE, "sair.dev/gpu-rate-min": "0.2", "sair.dev/gpu-rate-max": "0.5"}

        annotations = admitted(pod(bounded), lambda _key: pipeline(now))["metadata"]["annotations"]

        assert annotations["sair.dev/gpu-rate"] == stamped
        assert str(parse_stage(annotations).gpu_rate) == stamped

    def test_stays_within_the_bounds_of_the_pipeline_before_those_of_the_template_also_on_a_second_pass(self) -> None:
        bounded = {**GPU_STAGE, "sair.dev/gpu-rate-max": "0.5"}
        raised = pipeline("0.9", bounds={"gpuRateMax": "0.7"})

        once = admitted(pod(bounded), lambda _key: raised)

        assert once["metadata"]["annotations"]["sair.dev/gpu-rate"] == "0.7"
        assert ask(once, lambda _key: raised).patch == ()

    def test_is_the_users_own_and_a_warning_says_so_when_the_status_makes_no_sense(self) -> None:
        verdict = ask(pod(GPU_STAGE), lambda _key: pipeline("0.0"))

        assert verdict.reason is None
        assert "initial rate kept: Pipeline shop/vision status.stages[inference].gpuRate: '0.0'" in verdict.warnings[0]


class TestTheStampedCpu:
    @staticmethod
    def stamped(resources: dict[str, Any] | None, found: Pipeline, annotations: dict[str, str] = CPU_STAGE) -> Any:
        container = {"resources": resources} if resources is not None else {}
        once = admitted(pod(annotations, container=container), lambda _key: found)
        assert admitted(once, lambda _key: found) == once, "a second pass changes nothing"
        return main(once).get("resources")

    @pytest.mark.parametrize(
        ("resources", "made"),
        [
            ({"requests": {"cpu": "1"}}, {"requests": {"cpu": "1500m"}}),
            ({"requests": {"cpu": "4"}}, {"requests": {"cpu": "1500m"}}),
            (
                {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "4", "memory": "1Gi"}},
                {"requests": {"cpu": "1500m", "memory": "1Gi"}, "limits": {"cpu": "4", "memory": "1Gi"}},
            ),
            (
                {"requests": {"cpu": "1"}, "limits": {"cpu": "1200m"}},
                {"requests": {"cpu": "1500m"}, "limits": {"cpu": "1800m"}},
            ),
            (
                {"requests": {"cpu": "1"}, "limits": {"cpu": "1"}},
                {"requests": {"cpu": "1500m"}, "limits": {"cpu": "1500m"}},
            ),
            ({"limits": {"cpu": "1"}}, {"limits": {"cpu": "1500m"}, "requests": {"cpu": "1500m"}}),
        ],
        ids=["raised", "lowered", "limit above", "limit reached", "Guaranteed stays so", "limit alone"],
    )
    def test_is_what_the_controller_gave_the_stage(self, resources: dict[str, Any], made: dict[str, Any]) -> None:
        found = pipeline(None, cpu="1500m", stage="preprocess")

        assert self.stamped(resources, found) == made

    @pytest.mark.parametrize("resources", [None, {}, {"requests": {"memory": "1Gi"}}])
    def test_leaves_a_container_without_cpu_as_it_is(self, resources: dict[str, Any] | None) -> None:
        assert self.stamped(resources, pipeline(None, cpu="2", stage="preprocess")) == resources

    @pytest.mark.parametrize(
        "found",
        [
            pipeline(None, cpu="2", stage="other"),
            pipeline(None, cpu="2", stage="preprocess", mode="off"),
            pipeline(None, cpu="2", stage="preprocess", mode="recommend"),
            pipeline("0.5", stage="preprocess"),
        ],
        ids=["stage unknown", "off", "recommend", "never changed"],
    )
    def test_is_the_users_own_otherwise(self, found: Pipeline) -> None:
        assert self.stamped({"requests": {"cpu": "1"}}, found) == {"requests": {"cpu": "1"}}

    @pytest.mark.parametrize(("now", "stamped"), [("4", "2000m"), ("100m", "500m"), ("700m", "700m")])
    def test_stays_within_the_bounds_of_the_pod_template(self, now: str, stamped: str) -> None:
        bounded = {**CPU_STAGE, "sair.dev/cpu-min": "500m", "sair.dev/cpu-max": "2"}
        found = pipeline(None, cpu=now, stage="preprocess")

        assert self.stamped({"requests": {"cpu": "1"}}, found, bounded) == {"requests": {"cpu": stamped}}

    def test_comes_beside_the_hook_in_the_same_container(self) -> None:
        made = main(
            admitted(pod(GPU_STAGE, container={"resources": {"requests": {"cpu": "1"}}}), lambda _k: pipeline(cpu="2"))
        )

        assert made["resources"] == {"requests": {"cpu": "2000m"}}
        assert variables(made)["LD_PRELOAD"]

    @pytest.mark.parametrize(("now", "own"), [("lots", "1"), ("2", "lots")])
    def test_is_the_users_own_and_a_warning_says_so_where_a_quantity_makes_no_sense(self, now: str, own: str) -> None:
        raw = pod(CPU_STAGE, container={"resources": {"requests": {"cpu": own}}})
        verdict = ask(raw, lambda _key: pipeline(None, cpu=now, stage="preprocess"))

        assert verdict.reason is None
        assert any("initial CPU kept: " in warning for warning in verdict.warnings)
        assert not [change for change in verdict.patch if "resources" in str(change)]


class TestNobodyGrantsThemselvesAShare:
    @pytest.mark.parametrize("stage", [GPU_STAGE, CPU_STAGE], ids=["gpu", "cpu"])
    def test_a_grant_in_a_new_pod_is_removed_and_the_author_told(self, stage: dict[str, str]) -> None:
        forged = {**stage, **dict.fromkeys(_GRANTS, "1")}

        verdict = ask(pod(forged))
        made = admitted(pod(forged))

        assert not set(_GRANTS) & made["metadata"]["annotations"].keys()
        assert [warning.split(" ")[0] for warning in verdict.warnings] == list(_GRANTS)

    def test_a_forged_mark_of_injection_saves_nobody_from_it(self) -> None:
        own_hook = {"name": "sair-hook", "image": "example/no-op:1"}
        env = [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}, {"name": "SAIR_GRANT_FILE", "value": "/tmp/mine"}]
        forged = pod({**GPU_STAGE, "sair.dev/injected": "1"}, container={"env": env}, initContainers=[own_hook])

        assert admitted(forged) == admitted(pod(GPU_STAGE))

    def test_a_forged_mark_on_a_cpu_stage_is_removed(self) -> None:
        made = admitted(pod({**CPU_STAGE, "sair.dev/injected": "1"}))

        assert "sair.dev/injected" not in made["metadata"]["annotations"]


def _container(**fields: Any) -> dict[str, Any]:
    return pod(GPU_STAGE, container=fields)


REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "malformed annotation": (
        pod({**GPU_STAGE, "sair.dev/gpu-rate": "1.5"}),
        "sair.dev/gpu-rate: '1.5' is not allowed; expected a decimal number in (0, 1]",
    ),
    "unknown key": (
        pod({**GPU_STAGE, "sair.dev/gpu-rat": "0.1"}),
        "sair.dev/gpu-rat: '0.1' is not allowed; expected one of",
    ),
    "half opted in": (pod({"sair.dev/stage": "inference"}), "sair.dev/pipeline: None is not allowed"),
    "unknown container": (
        pod({**GPU_STAGE, "sair.dev/container": "model"}),
        "sair.dev/container: 'model' is not allowed; expected one of the pod's containers: main",
    ),
    "another scheduler": (
        pod(GPU_STAGE, schedulerName="volcano"),
        "spec.schedulerName: 'volcano' is not allowed; expected none, or sair-scheduler",
    ),
    "a chosen node": (pod(GPU_STAGE, nodeName="node-7"), "spec.nodeName: 'node-7' is not allowed; expected none"),
    "a whole GPU as well": (
        _container(resources={"limits": {"nvidia.com/gpu": "1"}}),
        "spec.containers[main].resources.limits[nvidia.com/gpu]: '1' is not allowed; expected no nvidia.com/… resource",
    ),
    "a GPU for an init container": (
        pod(GPU_STAGE, initContainers=[{"name": "warm", "resources": {"requests": {"nvidia.com/mig-1g.5gb": 1}}}]),
        "spec.initContainers[warm].resources.requests[nvidia.com/mig-1g.5gb]: 1 is not allowed",
    ),
    "preload from elsewhere": (
        _container(env=[{"name": "LD_PRELOAD", "valueFrom": {"configMapKeyRef": {"name": "x", "key": "y"}}}]),
        "spec.containers[main].env[LD_PRELOAD].valueFrom",
    ),
    "a GPU of one's own choice": (
        _container(env=[{"name": "NVIDIA_VISIBLE_DEVICES", "value": "all"}]),
        "spec.containers[main].env[NVIDIA_VISIBLE_DEVICES]: 'all' is not allowed; expected no such variable",
    ),
    "a GPU for a sidecar": (
        pod(
            GPU_STAGE,
            containers=[{"name": "main"}, {"name": "side", "env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "0"}]}],
        ),
        "spec.containers[side].env[NVIDIA_VISIBLE_DEVICES]: '0' is not allowed; expected void",
    ),
    "own grant file": (
        _container(env=[{"name": "SAIR_GRANT_FILE", "value": "/tmp/rate"}]),
        "spec.containers[main].env[SAIR_GRANT_FILE]",
    ),
    "reserved volume": (pod(GPU_STAGE, volumes=[{"name": "sair-grant", "emptyDir": {}}]), "spec.volumes: 'sair-grant'"),
    "reserved path": (
        _container(volumeMounts=[{"name": "mine", "mountPath": "/etc/sair/"}]),
        "spec.containers[main].volumeMounts: '/etc/sair/' is not allowed",
    ),
    "below a reserved path": (_container(volumeMounts=[{"name": "mine", "mountPath": "/opt/sair/x"}]), "'/opt/sair/x'"),
    "reserved container": (
        pod({**GPU_STAGE, "sair.dev/injected": "1"}, containers=[{"name": "sair-hook"}]),
        "spec.containers: 'sair-hook' is not allowed",
    ),
    "reserved init container": (
        pod(GPU_STAGE, initContainers=[{"name": "sair-hook"}]),
        "spec.initContainers: 'sair-hook'",
    ),
    "no container": (pod(GPU_STAGE, containers=[]), "spec.containers: [] is not allowed"),
}


@pytest.mark.parametrize(("raw", "says"), REFUSALS.values(), ids=REFUSALS.keys())
def test_a_refusal_names_what_where_and_what_is_allowed_instead(raw: dict[str, Any], says: str) -> None:
    assert says in reason(ask(raw))


def test_a_path_that_only_begins_like_a_reserved_one_is_the_users() -> None:
    mounts = [{"name": "mine", "mountPath": "/etc/sair-app"}]

    assert mounts[0] in main(admitted(_container(volumeMounts=mounts)))["volumeMounts"]


def test_a_dry_run_is_answered_like_the_real_thing() -> None:
    assert ask(pod(GPU_STAGE), dry_run=True) == ask(pod(GPU_STAGE))


@pytest.mark.parametrize(
    "raw",
    [
        {"metadata": {"annotations": {"sair.dev/stage": 7}}, "spec": {"containers": []}},
        {"metadata": {"annotations": GPU_STAGE}},
        {"metadata": {"annotations": GPU_STAGE}, "spec": {"containers": [{"image": "nameless"}]}},
        {"metadata": {"annotations": GPU_STAGE}, "spec": {"containers": [{"name": "main", "env": "HOME"}]}},
        {"metadata": {"annotations": GPU_STAGE}, "spec": {"containers": [{"name": "main"}], "volumes": [None]}},
    ],
)
def test_a_pod_of_another_shape_is_refused_with_the_path_of_the_flaw(raw: dict[str, Any]) -> None:
    verdict = ask(raw)

    assert verdict.code == 400
    assert "Pod" in reason(verdict)


class TestADeployment:
    RESOURCE: ClassVar[dict[str, Any]] = {
        "resource": {"group": "apps", "version": "v1", "resource": "deployments"},
        "name": "inference",
    }

    def template(self, annotations: dict[str, str], **spec: Any) -> dict[str, Any]:
        made = pod(annotations, **spec)
        return {
            "metadata": {"name": "inference"},
            "spec": {"template": {"metadata": made["metadata"], "spec": made["spec"]}},
        }

    @pytest.mark.parametrize("operation", ["CREATE", "UPDATE"])
    def test_whose_pods_would_be_refused_is_refused_itself_for_the_same_reason(self, operation: str) -> None:
        wrong = self.template({**GPU_STAGE, "sair.dev/gpu-rate": "2"})

        said = reason(ask(wrong, operation=operation, **self.RESOURCE))

        assert said.startswith("spec.template of deployments inference: sair.dev/gpu-rate: '2' is not allowed")

    def test_whose_pods_would_be_admitted_is_left_as_it_is(self) -> None:
        assert ask(self.template(GPU_STAGE), **self.RESOURCE) == Verdict()

    def test_without_a_template_is_refused(self) -> None:
        assert ask({"spec": {}}, **self.RESOURCE).code == 400


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_FIELDS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(_JSON, st.sampled_from(["metadata", "spec", "container", "volumes", "initContainers"]))
def test_whatever_a_hostile_client_sends_is_answered(value: Any, place: str) -> None:
    raw = pod(GPU_STAGE)
    if place in ("metadata", "spec"):
        raw[place] = value
    elif place == "container":
        raw["spec"]["containers"] = [value]
    else:
        raw["spec"][place] = value

    verdict = ask(raw)

    if verdict.patch:
        once = jsonpatch.apply_patch(raw, list(verdict.patch))
        assert ask(once).patch == ()


def test_a_request_without_a_pod_is_refused() -> None:
    assert "request.object" in reason(ask(None))  # type: ignore[arg-type]  # what a hostile client may send
