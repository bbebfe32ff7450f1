"""The v1 messages, byte for byte as kube-scheduler's Go types write and read them (they carry no JSON tags)."""

from __future__ import annotations

import json

import pytest

from extender.replica import parse_replica
from extender.wire import BindingArgs, BindingResult, ExtenderArgs, FilterResult, HostPriority
from sair.errors import WireError
from sair.quantities import GpuRate
from sair.wire import decode, encode

# Sent by kube-scheduler v1.34.4 with nodeCacheCapable; only the pod's managedFields and spec are cut out.
ARGS = (
    b'{"Pod":{"metadata":{"name":"one","namespace":"ns","uid":"f3c61fc0-32cc-4ed4-99c1-178ca2c9176b","resourceVersion":"206",'
    b'"generation":1,"creationTimestamp":"2026-11-24T01:53:12Z","annotations":{"sair.dev/gpu-rate":"0.5",'
    b'"sair.dev/pipeline":"vision","sair.dev/stage":"inference"}},"spec":{},"status":{"phase":"Pending","qosClass":"BestEffort"}},'
    b'"Nodes":null,"NodeNames":["ns-b","ns-a"]}'
)
BINDING = b'{"PodName":"one","PodNamespace":"ns","PodUID":"f3c61fc0-32cc-4ed4-99c1-178ca2c9176b","Node":"ns-a"}'


def test_a_request_is_read() -> None:
    args = decode(ARGS, ExtenderArgs, what="ExtenderArgs")

    assert args.node_names == ["ns-b", "ns-a"]
    replica = parse_replica(args.pod)
    assert (replica.key, replica.version, replica.desired) == ("ns/one", 206, GpuRate(500))


def test_a_request_with_whole_nodes_has_no_names() -> None:
    args = decode(b'{"Pod":{},"Nodes":{"items":[]},"NodeNames":null}', ExtenderArgs, what="ExtenderArgs")

    assert args.node_names is None


def test_a_filter_result_is_written() -> None:
    result = FilterResult(node_names=["n1"], failed_nodes={"n2": "full"}, failed_and_unresolvable_nodes={"n3": "none"})

    assert json.loads(encode(result)) == {
        "NodeNames": ["n1"],
        "FailedNodes": {"n2": "full"},
        "FailedAndUnresolvableNodes": {"n3": "none"},
        "Error": "",
    }


def test_priorities_are_written() -> None:
    assert encode([HostPriority(host="n1", score=7)]) == b'[{"Host":"n1","Score":7}]'


def test_a_bind_request_is_read_and_its_result_written() -> None:
    assert decode(BINDING, BindingArgs, what="ExtenderBindingArgs") == BindingArgs(
        pod_name="one", pod_namespace="ns", pod_uid="f3c61fc0-32cc-4ed4-99c1-178ca2c9176b", node="ns-a"
    )
    assert encode(BindingResult(error="no")) == b'{"Error":"no"}'
    assert encode(BindingResult()) == b'{"Error":""}'


@pytest.mark.parametrize("body", [b"", b"[]", b'{"NodeNames":["a"]}', b'{"Pod":{},"NodeNames":[1]}', b"\xff"])
def test_a_malformed_request_is_refused(body: bytes) -> None:
    with pytest.raises(WireError, match="ExtenderArgs"):
        decode(body, ExtenderArgs, what="ExtenderArgs")
