"""What the hook's image ships: it loads wherever a tenant's container has glibc 2.17 or later, on either architecture."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda_hook.conftest import ROOT

pytest.importorskip("ziglang", reason="the release build crosses between architectures with ziglang")

_MACHINES = {"amd64": "Advanced Micro Devices X86-64", "arm64": "AArch64"}


def _readelf(option: str, file: Path) -> str:
    command = ["readelf", "--wide", option, str(file)]
    environment = os.environ | {"LC_ALL": "C"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`make release`, as `make hook-release` calls it, into a folder laid out as the Dockerfile finds it in a checkout."""
    context = tmp_path_factory.mktemp("context")
    build = context / "cuda_hook" / "build"
    command = ["make", "-s", "-C", str(ROOT / "cuda_hook"), "release", f"PYTHON={sys.executable}", f"BUILD={build}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return context


def _shipped(release: Path, architecture: str) -> dict[str, Path]:
    """What the Dockerfile copies for an architecture when nothing else is named: by the ARG's name."""
    text = (ROOT / "deploy" / "images" / "Dockerfile.hook").read_text()
    defaults = dict(re.findall(r"^ARG (\w+)=(\S+)$", text, re.MULTILINE))
    return {name: release / defaults[name].replace("${TARGETARCH}", architecture) for name in ("LIBRARY", "INSTALLER")}


@pytest.mark.parametrize("architecture", _MACHINES)
def test_the_image_ships_the_release_build_of_its_architecture(release: Path, architecture: str) -> None:
    shipped = _shipped(release, architecture)
    assert "release" in shipped["LIBRARY"].parts
    for file in shipped.values():
        assert _MACHINES[architecture] in _readelf("--file-header", file)


@pytest.mark.parametrize("architecture", _MACHINES)
def test_the_library_needs_no_newer_glibc_than_2_17(release: Path, architecture: str) -> None:
    needs = _readelf("--version-info", _shipped(release, architecture)["LIBRARY"])
    versions = {tuple(map(int, found.split("."))) for found in re.findall(r"GLIBC_([\d.]+)", needs)}
    assert versions
    assert max(versions) <= (2, 17)


@pytest.mark.parametrize("architecture", _MACHINES)
def test_the_library_exports_what_it_replaces_and_nothing_else(release: Path, architecture: str) -> None:
    table = _readelf("--dyn-syms", _shipped(release, architecture)["LIBRARY"])
    rows = [line.split() for line in table.splitlines() if re.match(r"\s*\d+:", line)]
    exported = {
        row[7].split("@")[0] for row in rows if len(row) > 7 and row[6] != "UND" and row[4] in ("GLOBAL", "WEAK")
    }
    assert {"dlsym", "dlvsym", "cuLaunchKernel", "nvmlDeviceGetMemoryInfo"} <= exported
    assert {name for name in exported if not re.match(r"cu[A-Z]|nvml[A-Z]|dlv?sym$", name)} == set()


@pytest.mark.parametrize("architecture", _MACHINES)
def test_the_installer_needs_no_library(release: Path, architecture: str) -> None:
    installer = _shipped(release, architecture)["INSTALLER"]
    assert "NEEDED" not in _readelf("--dynamic", installer)
    assert "INTERP" not in _readelf("--program-headers", installer)
