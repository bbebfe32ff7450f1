"""What the tests need from the machine: Debian packages, and for the cluster root and a few kernel features."""

import os
import shutil
import subprocess

from tests.e2e.cluster.errors import ClusterError, Unavailable

_PACKAGE_OF = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "conntrack": "conntrack",
    "iptables": "iptables",
    "ip": "iproute2",
    "sysctl": "procps",
    "nsenter": "util-linux",
    "cc": "gcc",
    # Not for the cluster: the server that comes from PyPI speaks no TLS, and the hook's instructions are counted.
    "redis-server": "redis-server",
    "valgrind": "valgrind",
}


def missing_packages() -> list[str]:
    """Debian packages whose programs this machine lacks."""
    return sorted({package for program, package in _PACKAGE_OF.items() if shutil.which(program) is None})


def install() -> list[str]:
    """Install what is missing with apt-get; returns the packages installed.

    Raises:
        ClusterError: apt-get failed.
        Unavailable: this is no Debian.
    """
    packages = missing_packages()
    if not packages:
        return []
    apt_get = shutil.which("apt-get")
    if apt_get is None:
        raise Unavailable(f"no apt-get to install {', '.join(packages)} with")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "--yes", "--no-install-recommends", *packages, "libc6-dev"]):
        done = subprocess.run([apt_get, *arguments], env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ClusterError(f"apt-get {arguments[0]} failed:\n{done.stderr[-2000:]}")
    return packages


def require() -> None:
    """Check that a cluster with nodes can run here.

    Raises:
        Unavailable: it cannot; the message says why and what to do.
    """
    if os.geteuid() != 0:
        raise Unavailable("a cluster with nodes needs root: it makes namespaces, mounts and cgroups")
    if packages := missing_packages():
        raise Unavailable(f"no {', '.join(packages)}; `python -m tests.e2e.cluster deps` installs them")
