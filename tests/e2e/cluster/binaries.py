"""The cluster's programs: found on this machine when their version fits, else built once from pinned Go modules.

Search order: `KUBEBUILDER_ASSETS`, then `PATH`, then the cache. The cache lies outside the checkout, at
`${XDG_CACHE_HOME:-~/.cache}/sair/<module>/<key>/`, where the key is a digest of the module's go.mod, go.sum and build
flags; a changed pin is another directory, so binaries of two branches live side by side.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.cluster.errors import ClusterError, Unavailable
from tests.e2e.cluster.processes import perishable

MODULES = Path(__file__).parent / "modules"

KUBERNETES_VERSION = "v1.34.4"
_LOCK = ".lock"
_SCRATCH = "tmp"
_KUBERNETES_MINOR = r"v1\.34\."
_VERSION_PACKAGE = "k8s.io/component-base/version"
# Without these a client sees v0.0.0 and version skew checks refuse the server.
_KUBERNETES_LDFLAGS = (
    f"-X {_VERSION_PACKAGE}.gitVersion={KUBERNETES_VERSION} -X {_VERSION_PACKAGE}.gitMajor=1 "
    f"-X {_VERSION_PACKAGE}.gitMinor=34 -X {_VERSION_PACKAGE}.gitTreeState=clean"
)


@dataclass(frozen=True, slots=True)
class Program:
    """One program of the cluster.

    Attributes:
        name: file name of the binary.
        module: directory under `modules/` that pins its version.
        package: Go package that builds it.
        ldflags: linker flags besides `-s -w`.
        tags: build tags, comma-separated.
        probe: arguments that make it print its version; empty: a binary of this machine is never trusted.
        fits: regular expression that the printed version must match for a binary of this machine to be used.
    """

    name: str
    module: str
    package: str
    ldflags: str = ""
    probe: tuple[str, ...] = ()
    fits: str = ""
    tags: str = ""


def _kubernetes(name: str, *probe: str) -> Program:
    return Program(
        name,
        "kubernetes",
        f"k8s.io/kubernetes/cmd/{name}",
        _KUBERNETES_LDFLAGS,
        probe or ("--version",),
        _KUBERNETES_MINOR,
    )


PROGRAMS = {
    program.name: program
    for program in (
        _kubernetes("kube-apiserver"),
        _kubernetes("kubectl", "version", "--client"),
        _kubernetes("kube-controller-manager"),
        _kubernetes("kube-scheduler"),
        _kubernetes("kubelet"),
        _kubernetes("kube-proxy"),
        Program("etcd", "etcd", "go.etcd.io/etcd/server/v3", "", ("--version",), r"etcd Version: 3\.[56]\."),
        Program("coredns", "coredns", "github.com/coredns/coredns"),
        Program("metrics-server", "metrics-server", "sigs.k8s.io/metrics-server/cmd/metrics-server"),
        # Without the service discoveries of clouds, most of what there is to compile.
        Program(
            "prometheus",
            "prometheus",
            "github.com/prometheus/prometheus/cmd/prometheus",
            tags="remove_all_sd",
            probe=("--version",),
            fits=r"prometheus, version 3\.",
        ),
    )
}

CONTROL_PLANE = ("etcd", "kube-apiserver", "kubectl")
"""What `ControlPlane` cannot do without."""


def cache_root() -> Path:
    """Where everything that is expensive to make is kept: outside the checkout."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sair"


def find(name: str) -> Path | None:
    """A usable binary of that name, or None when it has to be built first."""
    program = PROGRAMS[name]
    for candidate in _candidates_on_this_machine(program):
        if _fits(program, candidate):
            return candidate
    cached = _cache_directory(program) / name
    return cached if cached.is_file() else None


def require(names: Iterable[str]) -> dict[str, Path]:
    """Binaries by name, without building any.

    Raises:
        Unavailable: one is neither on this machine nor in the cache.
    """
    found = {name: find(name) for name in names}
    missing = sorted(name for name, path in found.items() if path is None)
    if missing:
        raise Unavailable(
            f"no {', '.join(missing)}: neither in KUBEBUILDER_ASSETS nor on PATH in a version that fits, nor in {cache_root()}; "
            f"build them once with `python -m tests.e2e.cluster build {' '.join(missing)}`"
        )
    return {name: path for name, path in found.items() if path is not None}


def build(names: Iterable[str], *, parallelism: int = 2) -> dict[str, Path]:
    """Binaries by name; those that are missing are built into the cache, at low priority.

    All six of Kubernetes take 7 to 15 minutes on two cores from nothing, etcd and the add-ons one to two each.

    Raises:
        Unavailable: there is no Go toolchain.
        ClusterError: a build failed.
    """
    names = list(names)
    by_module: dict[str, list[Program]] = {}
    for name in names:
        if find(name) is None:
            by_module.setdefault(PROGRAMS[name].module, []).append(PROGRAMS[name])
    for programs in by_module.values():
        with _locked(_cache_directory(programs[0])):
            # Another process may have built them while this one waited for the lock.
            for program in programs:
                if find(program.name) is None:
                    _build(program, parallelism)
    return require(names)


def _candidates_on_this_machine(program: Program) -> Iterator[Path]:
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if assets and (path := Path(assets) / program.name).is_file():
        yield path
    if on_path := shutil.which(program.name):
        yield Path(on_path)


def _fits(program: Program, binary: Path) -> bool:
    if not program.probe:
        return False
    try:
        answer = subprocess.run([binary, *program.probe], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    return re.search(program.fits, answer.stdout) is not None


def _cache_directory(program: Program) -> Path:
    module = MODULES / program.module
    digest = hashlib.sha256()
    for part in ((module / "go.mod").read_bytes(), (module / "go.sum").read_bytes(), program.ldflags.encode()):
        digest.update(hashlib.sha256(part).digest())
    if program.tags:
        digest.update(program.tags.encode())
    return cache_root() / program.module / digest.hexdigest()[:16]


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def sweep() -> None:
    """Remove what killed builds left in the cache, unless a build is under way in the same place."""
    for lock in cache_root().glob(f"*/*/{_LOCK}"):
        with lock.open("w") as held:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            for scratch in lock.parent.glob(f"{_SCRATCH}*"):
                shutil.rmtree(scratch)


def _build(program: Program, parallelism: int) -> None:
    go = shutil.which("go")
    if go is None:
        raise Unavailable(f"no {program.name}, and no Go toolchain to build it with")
    target = _cache_directory(program) / program.name
    print(f"building {program.name} into {target.parent}, once", flush=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=_SCRATCH) as scratch:
        command = [
            "nice",
            "-n",
            "10",
            go,
            "build",
            "-mod=readonly",
            "-buildvcs=false",
            "-trimpath",
            f"-p={parallelism}",
        ]
        command += [f"-tags={program.tags}"] if program.tags else []
        command += ["-ldflags", f"-s -w {program.ldflags}".strip(), "-o", f"{scratch}/{program.name}", program.package]
        environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}
        done = subprocess.run(
            perishable(command),
            cwd=MODULES / program.module,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ClusterError(f"building {program.name} failed:\n{done.stderr[-4000:]}")
        # A rename within one file system: a reader never sees half a binary.
        (Path(scratch) / program.name).rename(target)


def describe() -> str:
    """Where each program comes from, for `status`, as JSON."""
    return json.dumps({name: str(find(name) or "not built") for name in PROGRAMS}, indent=2)
