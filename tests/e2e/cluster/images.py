"""Container images, built with buildah from Dockerfiles and kept as archives that containerd imports.

No registry takes part. An archive is named after a digest of everything that goes into its image, so an unchanged image is
never built twice. Where a Dockerfile says `ARG BASE`, a local Debian made by debootstrap stands in for the public image.
"""

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.cluster import binaries
from tests.e2e.cluster.errors import ClusterError, Unavailable
from tests.e2e.cluster.mounts import mounts_below, unmount
from tests.e2e.cluster.node import PAUSE_IMAGE
from tests.e2e.cluster.processes import perishable

REPOSITORY = Path(__file__).parents[3]
DEPLOY_IMAGES = REPOSITORY / "deploy" / "images"
_CONTAINERS = Path(__file__).parent / "containers"
_BINARY_DOCKERFILE = _CONTAINERS / "Dockerfile.binary"

_HOOK_FILES = ("libsair_cuda.so", "sair-install")

BASE_IMAGE = "localhost/sair-debian:1"
_BASE_PACKAGES = "python3,python3-venv,ca-certificates"
_LOCK = ".lock"
_SCRATCH = "tmp"
_LAYERS_KEPT = 60
# What a container never reads.
_BASE_BALLAST = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale")
# The machine's certificate authorities, so that pip inside RUN trusts what the machine trusts.
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


@dataclass(frozen=True, slots=True)
class Image:
    """One image to build.

    Attributes:
        tag: the name pods use.
        dockerfile: how it is made.
        context: directory that COPY reads from.
        sources: files and directories below `context` that COPY reads; their content names the archive.
        arguments: values of the Dockerfile's ARGs.
        on_base: whether it stands on the local base image.
        excluded: names of directories that are left out wherever they lie below a source.
        elsewhere: files that COPY reads and that do not lie below `context`, by their place in it.
    """

    tag: str
    dockerfile: Path
    context: Path
    sources: tuple[str, ...]
    arguments: Mapping[str, str] = field(default_factory=dict)
    on_base: bool = False
    excluded: frozenset[str] = frozenset({"__pycache__"})
    elsewhere: Mapping[str, Path] = field(default_factory=dict)

    def files(self) -> dict[str, Path]:
        """Everything that COPY reads: by its place in the build's context, where it lies."""
        found = {
            str(path.relative_to(self.context)): path
            for source in self.sources
            for path in _files(self.context / source, self.excluded)
        }
        return found | dict(self.elsewhere)


def pause() -> Image:
    """The image of every pod's sandbox, compiled here."""
    source = _CONTAINERS / "pause.c"
    directory = _cache() / f"pause-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}"
    if not (directory / "pause").exists():
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise Unavailable("no C compiler for the pause image; install gcc and libc6-dev")
        directory.mkdir(parents=True, exist_ok=True)
        _run(
            [
                compiler,
                "-static",
                "-Os",
                "-s",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-o",
                f"{directory}/pause.new",
                str(source),
            ]
        )
        (directory / "pause.new").rename(directory / "pause")
    return _of_binary(PAUSE_IMAGE, directory / "pause")


def coredns() -> Image:
    """The cluster's DNS server."""
    return _of_binary("sair.test/coredns:1", binaries.require(["coredns"])["coredns"])


def metrics_server() -> Image:
    """What `kubectl top` and a HorizontalPodAutoscaler on CPU need."""
    return _of_binary("sair.test/metrics-server:1", binaries.require(["metrics-server"])["metrics-server"])


def sair(tag: str) -> Image:
    """The one image of all of SAIR's services."""
    return Image(
        tag,
        DEPLOY_IMAGES / "Dockerfile",
        REPOSITORY,
        (
            *("pyproject.toml", "LICENSE", "requirements/runtime.txt", "requirements/demo.txt"),
            *("sair", "webhook", "extender", "controller", "cuda_hook"),
        ),
        on_base=True,
        # Of the hook, the image holds the node agent only.
        excluded=frozenset({"__pycache__", "accuracy", "build", "installer", "src", "tests"}),
    )


def hook(tag: str) -> Image:
    """The init image that puts the CUDA hook into a pod; what it holds is built outside the checkout.

    Raises:
        ClusterError: the hook does not build.
    """
    build = _cache() / "hook"
    make = ["nice", "-n", "10", "make", "--silent", f"--directory={REPOSITORY / 'cuda_hook'}", f"BUILD={build}"]
    _run([*make, *(f"{build / name}" for name in _HOOK_FILES)])
    arguments = dict(zip(("LIBRARY", "INSTALLER"), _HOOK_FILES, strict=True))
    return Image(tag, DEPLOY_IMAGES / "Dockerfile.hook", build, _HOOK_FILES, arguments)


def scheduler(tag: str) -> Image:
    """An upstream kube-scheduler, the harness's own build, under the name that the manifests give the public image."""
    binary = binaries.require(["kube-scheduler"])["kube-scheduler"]
    return Image(tag, DEPLOY_IMAGES / "Dockerfile.scheduler", binary.parent, (binary.name,))


def redis(tag: str) -> Image:
    """Debian's Redis under the name that the manifests give the public image."""
    return Image(tag, _CONTAINERS / "Dockerfile.redis", _CONTAINERS, (), on_base=True)


def example(tag: str) -> Image:
    """The example pipeline's stages and client, with the simulated CUDA driver.

    Raises:
        ClusterError: the driver does not build.
    """
    driver = "cuda_hook/build/driver/libcuda.so.1"
    build = _cache() / "hook"
    make = ["nice", "-n", "10", "make", "--silent", f"--directory={REPOSITORY / 'cuda_hook'}", f"BUILD={build}"]
    _run([*make, f"{build / 'driver/libcuda.so.1'}"])
    app, requirements = "deploy/examples/app", "requirements/runtime.txt"
    # The driver is built outside the checkout; the Dockerfile finds it as in a checkout.
    return Image(
        tag,
        DEPLOY_IMAGES / "Dockerfile.example",
        REPOSITORY,
        (app, requirements),
        on_base=True,
        elsewhere={driver: build / "driver/libcuda.so.1"},
    )


_RECIPES: Mapping[str, Callable[[str], Image]] = {
    "sair": sair,
    "sair-example": example,
    "sair-hook": hook,
    "kube-scheduler": scheduler,
    "redis": redis,
}


def named_in(manifests: str) -> dict[str, Callable[[str], Image]]:
    """The images that these manifests name, as far as the harness can build them: by name, what makes them.

    A recipe goes by the last part of the name, so that the registry and the tag are whatever the manifests say.

    Args:
        manifests: YAML, as `kubectl kustomize` prints it.
    """
    names = set(re.findall(r"[\w./-]+:[\w][\w.-]*(?=[\s\"',]|$)", manifests))
    recipes = {name: _RECIPES.get(name.rpartition("/")[2].partition(":")[0]) for name in sorted(names) if "/" in name}
    return {name: recipe for name, recipe in recipes.items() if recipe is not None}


def base_archive() -> Path:
    """An archive of the local base image itself, a bare Debian with Python, for pods of the harness's own tests."""
    path = _cache() / "base.tar"
    with _locked():
        if not path.exists():
            _ensure_base()
            _buildah("push", BASE_IMAGE, f"docker-archive:{path}.new:{BASE_IMAGE}")
            path.with_name("base.tar.new").rename(path)
    return path


def archive(image: Image) -> Path:
    """A docker-archive of the image, built when nothing unchanged is in the cache.

    Raises:
        Unavailable: buildah or debootstrap is missing.
        ClusterError: the build failed; the message ends with its last words.
    """
    path = _cache() / f"{image.tag.replace('/', '_').replace(':', '_')}-{_digest(image)}.tar"
    with _locked():
        if not path.exists():
            if image.on_base:
                _ensure_base()
            _build(image, path)
        for stale in path.parent.glob(f"{path.name.rpartition('-')[0]}-*.tar"):
            if stale != path:
                stale.unlink()
    return path


def sweep() -> None:
    """Undo what killed builds left: mounts, scratch directories, working containers. A build that is under way is left alone."""
    if not _cache().exists():
        return
    with (_cache() / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        unmount(mounts_below(_cache()))
        for scratch in _cache().glob(f"{_SCRATCH}*"):
            shutil.rmtree(scratch)
        if (_cache() / "storage").exists() and shutil.which("buildah") and _buildah("containers", "--quiet"):
            _buildah("rm", "--all")


def _of_binary(tag: str, binary: Path) -> Image:
    return Image(tag, _BINARY_DOCKERFILE, binary.parent, (binary.name,), {"BINARY": binary.name})


def _cache() -> Path:
    return binaries.cache_root() / "images"


def _digest(image: Image) -> str:
    digest = hashlib.sha256(image.dockerfile.read_bytes())
    digest.update(repr((image.tag, sorted(image.arguments.items()), image.on_base)).encode())
    for name, path in image.files().items():
        digest.update(f"{name} {path.stat().st_mode:o}".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _files(root: Path, excluded: frozenset[str]) -> list[Path]:
    if root.is_file():
        return [root]
    return sorted(
        path for path in root.rglob("*") if path.is_file() and excluded.isdisjoint(path.relative_to(root).parts)
    )


def _build(image: Image, path: Path) -> None:
    print(f"building image {image.tag}", flush=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=_SCRATCH) as scratch:
        # The context holds what the image needs and nothing else, whatever else lies in the checkout.
        context = Path(scratch) / "context"
        context.mkdir()
        for name, path_here in image.files().items():
            target = context / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(path_here, target)
        arguments = [f"--build-arg={name}={value}" for name, value in image.arguments.items()]
        if image.on_base:
            arguments.append(f"--build-arg=BASE={BASE_IMAGE}")
        if _CERTIFICATES.exists():
            arguments += [f"--volume={_CERTIFICATES}:{_CERTIFICATES}:ro"]
        isolation = ["--isolation=chroot", "--network=host", "--pull-never", "--layers"]
        # Layers of former builds make the next one fast; only after many they are worth their space no more.
        if len(_buildah("images", "--quiet", "--filter=dangling=true").splitlines()) > _LAYERS_KEPT:
            _buildah("rmi", "--prune", "--force")
        _buildah("bud", *isolation, *arguments, f"--file={image.dockerfile}", f"--tag={image.tag}", str(context))
        _buildah("push", image.tag, f"docker-archive:{scratch}/image.tar:{image.tag}")
        (Path(scratch) / "image.tar").rename(path)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _ensure_base() -> None:
    if BASE_IMAGE in _buildah("images", "--format={{.Name}}:{{.Tag}}").split():
        return
    debootstrap = shutil.which("debootstrap")
    if debootstrap is None:
        raise Unavailable("no debootstrap for the base image; `python -m tests.e2e.cluster deps` installs it")
    print("making the local base image, once: about a minute", flush=True)
    with tempfile.TemporaryDirectory(dir=_cache(), prefix=_SCRATCH) as scratch:
        root = Path(scratch) / "root"
        _run(["nice", "-n", "10", debootstrap, "--variant=minbase", f"--include={_BASE_PACKAGES}", _suite(), str(root)])
        for name in _BASE_BALLAST:
            shutil.rmtree(root / name, ignore_errors=True)
        container = _buildah("from", "scratch").strip()
        try:
            _buildah("copy", "--quiet", container, str(root), "/")
            _buildah("config", "--env=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", container)
            _buildah("commit", "--quiet", container, BASE_IMAGE)
        finally:
            _buildah("rm", container)


def _suite() -> str:
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    return release.get("VERSION_CODENAME", "bookworm").strip('"')


def _buildah_command(*arguments: str) -> list[str]:
    buildah = shutil.which("buildah")
    if buildah is None:
        raise Unavailable("no buildah; `python -m tests.e2e.cluster deps` installs it")
    storage = _cache() / "storage"
    return [buildah, f"--root={storage}", f"--runroot={storage}-run", "--storage-driver=overlay", *arguments]


def _buildah(*arguments: str) -> str:
    return _run(_buildah_command(*arguments))


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(perishable(command), capture_output=True, text=True, check=False)
    if done.returncode:
        raise ClusterError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-4000:]}")
    return done.stdout


@contextmanager
def _locked() -> Iterator[None]:
    _cache().mkdir(parents=True, exist_ok=True)
    with (_cache() / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
