"""One look at everything: pages, NVML and /proc in; a snapshot out, and each page told what it has to know."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cuda_hook.agent.activity import FOREIGN, BusyAccount, CardActivity, Seen, busy_tenants
from cuda_hook.agent.containers import Containers, Tenant
from cuda_hook.agent.nvml import Gpu, GpuMemory, Nvml, UtilizationSample
from cuda_hook.agent.page import AgentBlock, GpuSection
from cuda_hook.agent.processes import Identity, Name, identify, owner_of
from sair.errors import MetricsUnavailable, WireError

__all__ = ["Clocks", "Observer", "Snapshot"]

_OUTSTANDING_FRESH_NS = 500_000_000
_FIRST_LOOK_US = 1_000_000
"""How far back the first look at a card asks for samples."""


@dataclass(frozen=True, slots=True)
class Clocks:
    """Where time comes from; NVML stamps samples with the wall clock, pages use CLOCK_MONOTONIC."""

    monotonic_ns: Callable[[], int] = time.monotonic_ns
    wall_ns: Callable[[], int] = time.time_ns


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one look saw."""

    tenants: tuple[Tenant, ...] = ()
    refused: int = 0
    """Pages that could not be read."""
    gpus: tuple[Gpu, ...] = ()
    memory: Mapping[str, GpuMemory] = field(default_factory=dict)
    """GPU UUID → its memory right now."""
    busy: Mapping[tuple[str, str], BusyAccount] = field(default_factory=dict)
    """(pod UID, GPU UUID) → busy time by NVML."""
    problem: str | None = None
    """Why NVML tells nothing, if so."""


class Observer:
    """Looks at everything once per period.

    Args:
        containers: The pages.
        nvml: NVML, or None on a node without.
        period_ms: Told to the hooks.
        proc: The host's /proc.
        clocks: Time.
    """

    def __init__(
        self,
        containers: Containers,
        nvml: Nvml | None,
        *,
        period_ms: int,
        proc: Path = Path("/proc"),
        clocks: Clocks | None = None,
    ) -> None:
        self._containers = containers
        self._nvml = nvml
        self._period_ms = period_ms
        self._proc = proc
        self._clocks = clocks or Clocks()
        self._cards: dict[str, CardActivity] = {}
        self._seen: dict[str, dict[str, Seen]] = {}
        self._since_us: dict[str, int] = {}
        self._gpus: tuple[Gpu, ...] = ()
        self._identities: dict[int, Identity | None] = {}
        self.snapshot = Snapshot()

    @property
    def has_nvml(self) -> bool:
        """Whether anybody can be asked for the cards."""
        return self._nvml is not None

    def find_gpus(self) -> tuple[Gpu, ...]:
        """Ask NVML for the cards.

        Raises:
            MetricsUnavailable: If NVML fails.
        """
        self._gpus = self._nvml.gpus() if self._nvml else ()
        return self._gpus

    def discover(self) -> None:
        """Look for new and vanished pages, and for cards while none was found."""
        self._containers.discover()
        if not self._gpus:
            with contextlib.suppress(MetricsUnavailable):
                self.find_gpus()
        self._identities.clear()  # pids are used again

    def look(self) -> Snapshot:
        """Read everything, tell every page about its peers and its own busy time, and remember."""
        now_ns = self._clocks.monotonic_ns()
        tenants = tuple(self._containers.read())
        problem: str | None = None
        for uuid in {section.uuid for tenant in tenants for section in tenant.view.gpus}:
            try:
                self._look_at_card(uuid, tenants, now_ns)
            except MetricsUnavailable as error:
                problem = str(error)
        self._cards = {
            uuid: card
            for uuid, card in self._cards.items()
            if any(section.uuid == uuid for tenant in tenants for section in tenant.view.gpus)
        }
        for tenant in tenants:
            for section in tenant.view.gpus:
                # One that ended since it was read is found to be gone by the next look.
                with contextlib.suppress(WireError, OSError):
                    tenant.page.write(section.index, self._block(tenant.uid, section, now_ns))
        self.snapshot = Snapshot(
            tenants,
            len(self._containers.refused),
            self._gpus,
            self._memory(),
            {(uid, uuid): account for uuid, card in self._cards.items() for uid, account in card.accounts.items()},
            problem,
        )
        return self.snapshot

    def _memory(self) -> dict[str, GpuMemory]:
        if self._nvml is None:
            return {}
        try:
            return {gpu.uuid: self._nvml.memory(gpu.index) for gpu in self._gpus}
        except MetricsUnavailable:
            return {}

    def _block(self, uid: str, section: GpuSection, now_ns: int) -> AgentBlock:
        card = self._cards[section.uuid]
        # One period may pass between two launches of a slow peer; three without any are a pause.
        active, last = card.peers_of(uid, now_ns, 3 * self._period_ms * 1_000_000)
        account = card.accounts.get(uid, BusyAccount())
        return AgentBlock(now_ns, last, account.busy_ns, account.from_ns, account.until_ns, active, self._period_ms)

    def _look_at_card(self, uuid: str, tenants: Sequence[Tenant], now_ns: int) -> None:
        card = self._cards.setdefault(uuid, CardActivity())
        on_card = [(tenant, section) for tenant in tenants for section in tenant.view.gpus if section.uuid == uuid]
        seen = {tenant.uid: _seen(tenant, section, now_ns) for tenant, section in on_card}
        card.mark_active(busy_tenants(self._seen.get(uuid, {}), seen), now_ns)
        self._seen[uuid] = seen
        gpu = next((gpu for gpu in self._gpus if gpu.uuid == uuid), None)
        if self._nvml is None or gpu is None:
            return
        claims: dict[Name, set[str]] = {}
        for tenant, section in on_card:
            for slot in tenant.view.slots:
                if slot.gpu == section.index:
                    claims.setdefault((slot.pid, slot.start_ticks), set()).add(tenant.uid)
        offset_ns = self._clocks.wall_ns() - self._clocks.monotonic_ns()
        since = self._since_us.get(uuid, (now_ns + offset_ns) // 1000 - _FIRST_LOOK_US)
        samples = [s for s in self._nvml.process_utilization(gpu.index, since) if s.end_us > since]
        self._since_us[uuid] = max((s.end_us for s in samples), default=since)
        attributed: list[tuple[str, int, UtilizationSample]] = []
        for sample in samples:
            owner = owner_of(self._identity(sample.pid), claims) or FOREIGN
            end_ns = sample.end_us * 1000 - offset_ns
            attributed.append((owner, end_ns, sample))
            if sample.busy > 0:
                card.mark_active([owner], max(end_ns, card.active_at.get(owner, 0)))
        card.add_samples(attributed, seen, now_ns)
        card.forget(seen, {sample.pid for sample in samples} or self._identities)

    def _identity(self, pid: int) -> Identity | None:
        if pid not in self._identities:
            self._identities[pid] = identify(pid, proc=self._proc)
        return self._identities[pid]


def _seen(tenant: Tenant, section: GpuSection, now_ns: int) -> Seen:
    slots = [slot for slot in tenant.view.slots if slot.gpu == section.index]
    return Seen(
        section.retired_launches + sum(slot.launches for slot in slots),
        # A killed process leaves what it owed in its slot until a sibling clears it. A kernel that runs for longer than this
        # is seen by NVML.
        sum(max(slot.outstanding_ns, 0) for slot in slots if now_ns - slot.last_seen_ns < _OUTSTANDING_FRESH_NS),
    )
