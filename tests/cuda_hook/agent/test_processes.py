from __future__ import annotations

import os
from pathlib import Path

from cuda_hook.agent.processes import identify


def test_a_process_is_named_as_its_container_names_it(tmp_path: Path) -> None:
    (tmp_path / "4321").mkdir()
    (tmp_path / "4321" / "status").write_text("Name:\tx\nNSpid:\t4321\t57\t9\nThreads:\t1\n")
    fields = ["S", *("0" for _ in range(18)), "987654", "0"]
    (tmp_path / "4321" / "stat").write_text(f"4321 (od) d (name) {' '.join(fields)}\n")
    assert identify(4321, proc=tmp_path) == (9, 987654)


def test_this_process_is_found() -> None:
    found = identify(os.getpid())
    assert found is not None
    assert found[1] > 0


def test_a_process_that_is_gone_is_none(tmp_path: Path) -> None:
    assert identify(1, proc=tmp_path) is None
