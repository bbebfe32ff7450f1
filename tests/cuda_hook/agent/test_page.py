"""The agent reads what the C header describes, whatever a tenant wrote into it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cuda_hook.agent.page import GPUS, PAGE_BYTES, SLOTS, AgentBlock, Page
from sair.errors import WireError

_WRITER = r"""
#include <stdio.h>
#include <string.h>
#include "stats_page.h"
int main(int argc, char **argv) {
    static struct sair_page page;
    page.header.magic = SAIR_PAGE_MAGIC;
    page.header.version = SAIR_PAGE_VERSION;
    page.header.size_bytes = sizeof page;
    page.header.rate_ppm = 312500;
    page.header.grant_state = SAIR_GRANT_VALID;
    page.header.grant_errors = 7;
    page.header.memory_granted_bytes = 123456789;
    page.header.slots_refused = 8;
    page.header.reaped = 9;
    struct sair_page_gpu *gpu = &page.gpus[SAIR_PAGE_GPUS - 1];
    for (int i = 0; i < 16; i++) gpu->uuid[i] = (unsigned char)(0xa0 + i);
    gpu->claim = 2;
    gpu->charged_ns = -5;
    gpu->measured_ns = 11;
    gpu->scale_ppm = 1250000;
    gpu->retired_launches = 12;
    gpu->retired_busy_ns = 13;
    gpu->retired_throttled_ns = 14;
    struct sair_page_slot *slot = &page.slots[SAIR_PAGE_SLOTS - 1];
    slot->owner = (uint64_t)SAIR_PAGE_GPUS << 32 | 4242;
    slot->start_ticks = 21;
    slot->outstanding_ns = 22;
    slot->launches = 23;
    slot->graph_launches = 24;
    slot->busy_ns = 25;
    slot->throttled_ns = 26;
    slot->memory_bytes = 27;
    slot->memory_refused = 28;
    slot->last_seen_ns = 29;
    FILE *file = fopen(argv[1], argc > 2 ? "rb" : "wb");
    if (argc > 2) {
        if (fread(&page, sizeof page, 1, file) != 1) return 1;
        const struct sair_page_agent *a = &gpu->agent;
        printf("%llu %llu %llu %llu %llu %llu %u %u\n", (unsigned long long)a->sequence, (unsigned long long)a->updated_ns,
               (unsigned long long)a->peers_last_active_ns, (unsigned long long)a->own_busy_ns,
               (unsigned long long)a->own_busy_from_ns, (unsigned long long)a->own_busy_until_ns, a->peers_active, a->period_ms);
        return 0;
    }
    return fwrite(&page, sizeof page, 1, file) == 1 && fclose(file) == 0 ? 0 : 1;
}
"""


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A C program that fills a page through the header."""
    root = tmp_path_factory.mktemp("page")
    include = Path(__file__).resolve().parents[3] / "cuda_hook" / "src"
    (root / "writer.c").write_text(_WRITER)
    command = ["gcc", "-std=gnu11", f"-I{include}", "-o", str(root / "writer"), str(root / "writer.c")]
    subprocess.run(command, check=True)
    return root / "writer"


@pytest.fixture
def path(writer: Path, tmp_path: Path) -> Path:
    subprocess.run([writer, tmp_path / "stats"], check=True)
    return tmp_path / "stats"


def test_a_page_is_read_as_c_wrote_it(path: Path) -> None:
    assert path.stat().st_size == PAGE_BYTES
    with Page(path) as page:
        view = page.read()
    assert (view.rate, view.grant_state, view.grant_errors) == (0.3125, 1, 7)
    assert (view.memory_granted_bytes, view.slots_refused, view.reaped) == (123456789, 8, 9)
    (gpu,) = view.gpus
    assert gpu.index == GPUS - 1
    assert gpu.uuid == "GPU-a0a1a2a3-a4a5-a6a7-a8a9-aaabacadaeaf"
    assert (gpu.charged_ns, gpu.measured_ns, gpu.scale) == (-5, 11, 1.25)
    assert (gpu.retired_launches, gpu.retired_busy_ns, gpu.retired_throttled_ns) == (12, 13, 14)
    (slot,) = view.slots
    assert (slot.gpu, slot.pid, slot.start_ticks, slot.outstanding_ns) == (GPUS - 1, 4242, 21, 22)
    assert (slot.launches, slot.graph_launches, slot.busy_ns, slot.throttled_ns) == (23, 24, 25, 26)
    assert (slot.memory_bytes, slot.memory_refused, slot.last_seen_ns) == (27, 28, 29)


def test_c_reads_the_agents_block_as_it_was_written(writer: Path, path: Path) -> None:
    with Page(path) as page:
        page.write(GPUS - 1, AgentBlock(1, 2, 3, 4, 5, 6, 7))
        page.write(GPUS - 1, AgentBlock(10, 20, 30, 40, 50, 60, 70))
    done = subprocess.run([writer, path, "read"], capture_output=True, text=True, check=True)
    # The sequence number is even again, and moved with each write.
    assert done.stdout.split() == ["4", "10", "20", "30", "40", "50", "60", "70"]


def test_writing_touches_nothing_but_the_block(path: Path) -> None:
    before = path.read_bytes()
    with Page(path) as page:
        page.write(0, AgentBlock(1, 2, 3, 4, 5, 6, 7))
    after = path.read_bytes()
    changed = [i for i in range(PAGE_BYTES) if before[i] != after[i]]
    assert min(changed) >= 128 + 128
    assert max(changed) < 128 + 128 + 64


def test_what_is_no_page_is_refused(tmp_path: Path, path: Path) -> None:
    (tmp_path / "short").write_bytes(path.read_bytes()[:-1])
    (tmp_path / "garbage").write_bytes(b"\xff" * PAGE_BYTES)
    os.mkfifo(tmp_path / "fifo")
    for name in ("short", "garbage", "fifo"):
        with pytest.raises(WireError):
            Page(tmp_path / name)
    (tmp_path / "link").symlink_to(path)
    with pytest.raises(OSError, match="symbolic links"):
        Page(tmp_path / "link")


def test_a_page_truncated_after_it_was_opened_is_an_error_and_no_crash(path: Path) -> None:
    with Page(path) as page:
        os.truncate(path, 1000)
        with pytest.raises(WireError):
            page.read()


@given(noise=st.binary(min_size=64, max_size=64), where=st.integers(32, PAGE_BYTES - 64))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_tenant_writes_into_its_page_is_survived(path: Path, noise: bytes, where: int) -> None:
    data = bytearray(path.read_bytes())
    data[where : where + 64] = noise
    path.write_bytes(data)
    with Page(path) as page:
        view = page.read()
        assert 0 < view.rate <= 1
        assert all(0 <= slot.gpu < GPUS for slot in view.slots)
        assert len(view.slots) <= SLOTS
