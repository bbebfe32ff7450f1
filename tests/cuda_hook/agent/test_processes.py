from __future__ import annotations

import os
from pathlib import Path

import pytest

from cuda_hook.agent.processes import Identity, identify, owner_of

_A, _B = "0f3d9c2e-8a54-4b0f-9f5e-1c2d3e4f5a6b", "7b1e2d3c-4f5a-4c6d-8e7f-9a0b1c2d3e4f"


def _host(proc: Path, pid: int, *, inner: str, ticks: int, cgroup: str) -> None:
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "status").write_text(f"Name:\tx\nNSpid:\t{pid}\t{inner}\nThreads:\t1\n")
    fields = ["S", *("0" for _ in range(18)), str(ticks), "0"]
    (proc / str(pid) / "stat").write_text(f"{pid} (od) d (name) {' '.join(fields)}\n")
    (proc / str(pid) / "cgroup").write_text(cgroup)


@pytest.mark.parametrize(
    ("cgroup", "pod"),
    [
        (
            f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{_A.replace('-', '_')}.slice/cri-x.scope\n",
            _A,
        ),
        (f"0::/../../kubepods-pod{_A.replace('-', '_')}.slice/cri-containerd-ab.scope\n", _A),
        (f"9:name=systemd:/kubepods/besteffort/pod{_A}/ab12\n8:pids:/kubepods/besteffort/pod{_A}/ab12\n", _A),
        (f"0::/kubelet/kubepods/pod{_A}\n", _A),
        ("0::/kubepods/burstable/pod0123456789abcdef0123456789abcdef/ab\n", "0123456789abcdef0123456789abcdef"),
        # A node that is itself a container in a pod.
        (f"0::/kubepods/pod{_B}/ab/kubelet/kubepods/pod{_A}/cd\n", _A),
        ("0::/user.slice/user-1000.slice/session-2.scope\n", None),
        ("0::/podman/libpod-0123456789abcdef0123456789abcdef\n", None),
        ("", None),
    ],
)
def test_a_process_is_named_by_its_pod_and_as_its_container_names_it(
    tmp_path: Path, cgroup: str, pod: str | None
) -> None:
    _host(tmp_path, 4321, inner="57\t9", ticks=987654, cgroup=cgroup)
    assert identify(4321, proc=tmp_path) == Identity(pod, (9, 987654))


def test_this_process_is_found() -> None:
    found = identify(os.getpid())
    assert found is not None
    assert found.name[1] > 0


def test_a_process_that_is_gone_is_none(tmp_path: Path) -> None:
    assert identify(1, proc=tmp_path) is None


def test_two_pods_first_processes_of_one_tick_are_told_apart(tmp_path: Path) -> None:
    for pid, pod in ((4321, _A), (4322, _B)):
        _host(tmp_path, pid, inner="1", ticks=500, cgroup=f"0::/kubepods/pod{pod}/c\n")
    claims = {(1, 500): {_A, _B}}
    assert [owner_of(identify(pid, proc=tmp_path), claims) for pid in (4321, 4322)] == [_A, _B]


@pytest.mark.parametrize(
    ("identity", "owner"),
    [
        (Identity(_A, (1, 500)), _A),
        # A page may name whatever it likes: another pod's process is not its tenant's.
        (Identity(_B, (1, 500)), None),
        (Identity(_A, (2, 500)), None),
        # Without pods' cgroups the name alone counts, where only one claims it.
        (Identity(None, (1, 500)), _A),
        (Identity(None, (7, 700)), None),
        (None, None),
    ],
)
def test_a_process_belongs_to_the_page_of_its_own_pod(identity: Identity | None, owner: str | None) -> None:
    assert owner_of(identity, {(1, 500): {_A}, (7, 700): {_A, _B}}) == owner
