"""The init container's program, and how much every pod has to pull for the hook."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "cuda_hook" / "build"


@pytest.fixture
def install(hook: Path) -> Path:
    return BUILD / "sair-install"


def run(*arguments: Path | str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, check=False)


def test_library_and_installer_are_a_few_hundred_kilobytes_together(hook: Path, install: Path) -> None:
    assert install.stat().st_size < 20_000
    assert hook.stat().st_size + install.stat().st_size < 300_000


def test_the_installer_needs_no_library_of_the_image_it_runs_in(install: Path) -> None:
    assert "not a dynamic executable" in run("ldd", install).stderr


def test_the_copy_is_the_library_and_readable_by_everybody(hook: Path, install: Path, tmp_path: Path) -> None:
    target = tmp_path / "libsair_cuda.so"

    done = run(install, hook, target)

    assert (done.returncode, done.stderr) == (0, "")
    assert target.read_bytes() == hook.read_bytes()
    assert target.stat().st_mode & 0o777 == 0o555
    assert list(tmp_path.iterdir()) == [target]


def test_a_second_time_it_takes_the_place_of_the_first_copy(hook: Path, install: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"x" * 200_000)
    assert run(install, hook, target).returncode == 0
    before = target.stat().st_ino

    assert run(install, source, target).returncode == 0

    assert target.read_bytes() == source.read_bytes()
    # Whoever has the old one open keeps the old one.
    assert target.stat().st_ino != before


@pytest.mark.parametrize(
    ("source", "target", "says"),
    [
        ("missing", "target", "sair-install: cannot read {source}: no such file or directory\n"),
        (".", "target", "sair-install: cannot write {target}.new: is a directory\n"),
        ("file", "missing/target", "sair-install: cannot write {target}.new: no such file or directory\n"),
        ("file", "x" * 300, "sair-install: cannot write {target}.new: name too long\n"),
        ("file", "folder", "sair-install: cannot rename to {target}: is a directory\n"),
    ],
)
def test_what_it_cannot_do_is_said_in_one_line(
    install: Path, tmp_path: Path, source: str, target: str, says: str
) -> None:
    (tmp_path / "file").write_text("library")
    (tmp_path / "folder").mkdir()

    done = run(install, tmp_path / source, tmp_path / target)

    assert done.returncode == 1
    assert done.stderr == says.format(source=tmp_path / source, target=tmp_path / target)


def test_without_a_destination_it_says_how_it_is_used(install: Path) -> None:
    done = run(install)

    assert (done.returncode, done.stderr) == (1, "usage: sair-install [SOURCE] DESTINATION\n")
