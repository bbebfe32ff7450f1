"""`python -m tests.e2e.cluster`: the cluster by hand."""

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.e2e.cluster import binaries, dependencies, images
from tests.e2e.cluster.cluster import BINARIES, Cluster, sweep
from tests.e2e.cluster.control_plane import ControlPlane, discard
from tests.e2e.cluster.errors import ClusterError
from tests.e2e.cluster.installation import DEVELOPMENT, EXAMPLE, Installation, archives


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, or 1 with a message on standard error."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except ClusterError as error:
        print("\n".join([f"error: {error}", *getattr(error, "__notes__", ())]), file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader, `head` for one, had enough.
        sys.stderr.close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.cluster", description=__doc__)
    parser.add_argument("--instance", type=int, help="which of the machine's clusters, 0 to 9; default 0")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    build = commands.add_parser("build", help="build the binaries that this machine lacks into the cache, once")
    build.add_argument("names", nargs="*", choices=[*binaries.PROGRAMS, []], metavar="NAME", help="default: all")
    build.set_defaults(run=_build)

    control_plane = commands.add_parser(
        "control-plane", help="only etcd and kube-apiserver on loopback, no root needed"
    )
    control_plane.add_argument("--dir", type=Path, help="where its files lie; default: a new temporary directory")
    control_plane.add_argument("--controllers", action="store_true", help="kube-controller-manager as well")
    control_plane.add_argument("--scheduler", action="store_true", help="kube-scheduler as well")
    control_plane.add_argument("--detach", action="store_true", help="leave it running; --stop ends it")
    control_plane.add_argument("--stop", action="store_true", help="stop the one in --dir and remove its files")
    control_plane.set_defaults(run=_control_plane)

    deps = commands.add_parser("deps", help="install the Debian packages that a cluster with nodes needs")
    deps.set_defaults(run=lambda _: print("installed:", " ".join(dependencies.install()) or "nothing was missing"))
    up = commands.add_parser("up", help="bring up a cluster with two nodes; needs root")
    up.add_argument("--metrics-server", action="store_true", help="metrics-server as well")
    up.add_argument("--install", type=Path, help="a kustomization to apply, its images built here; wait until Ready")
    up.set_defaults(run=_up)
    down = commands.add_parser(
        "down", help="remove every trace of every cluster that no live process owns; of --instance: in any case"
    )
    down.set_defaults(run=_down)
    take = commands.add_parser("import", help="import an image archive into every node of the cluster that is up")
    take.add_argument("archive", type=Path)
    take.set_defaults(run=lambda options: Cluster(options.instance).import_archive(options.archive))
    archives = commands.add_parser("images", help="build all images and print their archives, to load them elsewhere")
    archives.set_defaults(run=_images)
    status = commands.add_parser("status", help="what runs and what would have to be built")
    status.set_defaults(run=_status)
    kubeconfig = commands.add_parser("kubeconfig", help="print the path of the kubeconfig")
    kubeconfig.set_defaults(run=_kubeconfig)
    return parser


def _up(options: argparse.Namespace) -> None:
    dependencies.require()
    binaries.build([*BINARIES, *(["metrics-server"] if options.metrics_server else [])])
    cluster = Cluster(options.instance)
    cluster.up()
    if options.metrics_server:
        cluster.install_metrics_server()
    if options.install is not None:
        installation = Installation(cluster, options.install)
        installation.load_images()
        installation.apply()
        installation.wait()
    print(f"export KUBECONFIG={cluster.kubeconfig}\nexport PATH={cluster.kubectl_path.parent}:$PATH")


def _down(options: argparse.Namespace) -> None:
    if options.instance is not None:
        Cluster(options.instance).down()
        return
    sweep()


def _images(options: argparse.Namespace) -> None:
    cluster = Cluster(options.instance)
    print(images.base_archive())
    for archive in archives(cluster, DEVELOPMENT, EXAMPLE):
        print(archive)
    print(images.archive(images.pause()))


def _status(options: argparse.Namespace) -> None:
    cluster = Cluster(options.instance)
    for trace in cluster.leftovers():
        print(trace)
    print("API server:", "ready" if cluster.running else "does not answer")
    print(binaries.describe())


def _kubeconfig(options: argparse.Namespace) -> None:
    cluster = Cluster(options.instance)
    if not cluster.running:
        raise ClusterError("no cluster runs; `python -m tests.e2e.cluster up` starts one")
    print(cluster.kubeconfig)


def _build(options: argparse.Namespace) -> None:
    for name, path in binaries.build(options.names or binaries.PROGRAMS).items():
        print(f"{name}: {path}")


def _control_plane(options: argparse.Namespace) -> None:
    if options.stop:
        if options.dir is None:
            raise ClusterError("--stop needs --dir")
        discard(options.dir)
        return
    directory = options.dir or Path(tempfile.mkdtemp(prefix="sair-control-plane-"))
    # Both signals unwind the stack, so that everything is stopped and removed on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    server = ControlPlane(directory.absolute(), bound_to_this_process=not options.detach)
    try:
        server.start()
        if options.controllers:
            server.start_controllers()
        if options.scheduler:
            server.start_scheduler()
    except BaseException:
        server.close()
        raise
    # In one write, so that a reader who takes the first line only breaks no pipe.
    print(f"export KUBECONFIG={server.kubeconfig}\nexport PATH={server.kubectl.parent}:$PATH\n", end="", flush=True)
    if options.detach:
        return
    print("running until interrupted", file=sys.stderr, flush=True)
    try:
        signal.pause()
    except KeyboardInterrupt:
        pass
    finally:
        server.close()


if __name__ == "__main__":
    sys.exit(main())
