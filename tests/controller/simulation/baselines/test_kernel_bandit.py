"""The kernel bandit: bounded steps, and learning from rewards alone."""

from __future__ import annotations

import numpy as np

from controller.simulation.baselines.kernel_bandit import KernelBandit, steps_within
from controller.simulation.baselines.runner import run_policy
from controller.simulation.workloads import constant
from controller.state import HOLD, Limits, PipelineView, StageView
from sair.quantities import Millicores
from tests.controller.simulation.builders import cpu, gpu, two_stages


def test_steps_stay_within_the_bounds() -> None:
    limits = Limits(replicas_max=2, cpu_max=Millicores(1000), gpu_milli_max=600)
    view = PipelineView("a/b", (StageView("s", (), True, limits),), 0.3)
    steps = {str(action) for action in steps_within(view, {"s": gpu(2, 500)})}
    assert steps == {"hold", "s: replicas -1", "s: cpu -0.5", "s: ρ -0.2", "s: ρ -0.1", "s: ρ +0.1"}


def test_a_cpu_stage_has_no_share() -> None:
    view = PipelineView("a/b", (StageView("s", (), False),), 0.3)
    actions = steps_within(view, {"s": cpu(3)})
    assert HOLD in actions
    assert not any("ρ" in str(action) for action in actions)


def test_it_finds_cheaper_allocations_by_its_rewards() -> None:
    setup = two_stages(second=gpu(2, 900))
    bandit = KernelBandit(setup.view)
    run = run_policy(setup, constant(10.0, 3600), 1, bandit)
    cost = run.recording.effective_usd_per_hour
    assert cost[-120:].mean() < 0.7 * cost[0]
    assert np.mean(bandit.rewards[-40:]) > np.mean(bandit.rewards[:20])
