"""The policies that can be put beside SAIR by name, each on the same arrivals and demands."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from controller.method import Method
from controller.simulation.baselines.autothrottle import Autothrottle
from controller.simulation.baselines.hpa import HorizontalPodAutoscaler
from controller.simulation.baselines.kernel_bandit import KernelBandit
from controller.simulation.baselines.ray_serve import RayServe
from controller.simulation.baselines.runner import Run, run_policy
from controller.simulation.baselines.static import right_size
from controller.simulation.baselines.threshold import Threshold
from controller.simulation.baselines.tuning import TUNED, Candidate, TunedSettings
from controller.simulation.baselines.vpa import VerticalPodAutoscaler
from controller.simulation.oracle import best_clairvoyant
from controller.simulation.pipelines import PipelineSetup
from controller.simulation.report import ReportedRun
from controller.simulation.trial import run_trial
from controller.simulation.workloads import RateSeries
from controller.tuning import Tuning
from sair.errors import InvalidInput
from sair.settings import load

__all__ = ["CONTENDERS", "DEMO_CONTENDERS", "contend"]


def _hpa(setup: PipelineSetup, series: RateSeries, seed: int) -> ReportedRun:
    note = "80 % of the requested CPU, autoscaling/v2's default"
    return _reported(run_policy(setup, series, seed, HorizontalPodAutoscaler(setup.view)), note)


def _hpa_tuned(setup: PipelineSetup, series: RateSeries, seed: int) -> ReportedRun:
    setting = _tuned(setup).hpa
    return _tuned_run(setting, setup, series, seed, f"{setting.target:.0%} CPU, ρ {setting.gpu_share:g}")


def _rho_target(setup: PipelineSetup, series: RateSeries, seed: int) -> ReportedRun:
    setting = _tuned(setup).rate_target
    return _tuned_run(setting, setup, series, seed, f"{setting.target:.0%}, replicas for {setting.peak_factor:g}x")


def _mpc(setup: PipelineSetup, series: RateSeries, seed: int) -> ReportedRun:
    setting = _tuned(setup).mpc
    return _tuned_run(
        setting, setup, series, seed, f"reserve {setting.reserve_factor:g}x, {setting.slo_part:g} of the SLO"
    )


def _tuned_run(setting: Candidate, setup: PipelineSetup, series: RateSeries, seed: int, what: str) -> ReportedRun:
    fitted = setting.setup(setup)
    return _reported(
        run_policy(fitted, series, seed, setting.policy(fitted)), f"best of a grid on another seed: {what}"
    )


def _static(setup: PipelineSetup, series: RateSeries, seed: int) -> ReportedRun:
    fitted = setup.starting_at(right_size(setup, series, seed))
    run = run_policy(fitted, series, seed, None)
    named = replace(run.summary, policy="right-sized static")
    return ReportedRun(
        named, run.recording, "cheapest found for ≤ 0.1 % misses, knowing these very arrivals in advance"
    )


def _threshold(setup: PipelineSetup, series: RateSeries, seed: int) -> ReportedRun:
    return _reported(run_policy(setup, series, seed, Threshold(setup.view)), "±1 replica at 80 % / 30 %")


def _vpa(setup: PipelineSetup, series: RateSeries, seed: int) -> ReportedRun:
    return _reported(run_policy(setup, series, seed, VerticalPodAutoscaler(setup.view)), "no history replayed")


def _ray_serve(setup: PipelineSetup, series: RateSeries, seed: int) -> ReportedRun:
    return _reported(run_policy(setup, series, seed, RayServe(setup.view)), "2 ongoing requests per replica")


def _autothrottle(setup: PipelineSetup, series: RateSeries, seed: int) -> ReportedRun:
    fitted = _tuned(setup).rate_target.setup(setup)
    return _reported(
        run_policy(fitted, series, seed, Autothrottle(fitted, seed)), "on the tuned ρ-target law's replicas"
    )


def _kernel_bandit(setup: PipelineSetup, series: RateSeries, seed: int) -> ReportedRun:
    policy = KernelBandit(setup.view, tuning=Tuning(prices=setup.prices))
    return _reported(run_policy(setup, series, seed, policy), "on SAIR's memory, context, actions and reward")


def _oracle(setup: PipelineSetup, series: RateSeries, seed: int) -> ReportedRun:
    run = best_clairvoyant(setup, series, seed)
    return ReportedRun(
        replace(run.summary, policy="oracle"), run.recording, "knows the arrivals; one margin, chosen in hindsight"
    )


Contender = Callable[[PipelineSetup, RateSeries, int], ReportedRun]

CONTENDERS: Final[Mapping[str, Contender]] = {
    "hpa": _hpa,
    "hpa-tuned": _hpa_tuned,
    "rho-target": _rho_target,
    "static": _static,
    "mpc": _mpc,
    "autothrottle": _autothrottle,
    "kernel-bandit": _kernel_bandit,
    "threshold": _threshold,
    "vpa": _vpa,
    "ray-serve": _ray_serve,
    "oracle": _oracle,
}
"""By the name that the command line takes."""

DEMO_CONTENDERS: Final = ("hpa", "hpa-tuned", "rho-target", "static")


def contend(name: str, setup: PipelineSetup, series: RateSeries, seed: int) -> ReportedRun:
    """Run one of the policies; ``sair`` is the controller's decision core with its built-in policy.

    Raises:
        InvalidInput: If there is none of this name, or it was not tuned for this pipeline.
    """
    if name == "sair":
        trial = run_trial(setup, series, seed, tuning=load(Method, os.environ).tuning(Tuning()))
        return ReportedRun(trial.summary(), trial.recording, "built-in policy, no Redis")
    try:
        contender = CONTENDERS[name]
    except KeyError:
        raise InvalidInput("policy", name, "one of sair, " + ", ".join(CONTENDERS)) from None
    return contender(setup, series, seed)


def _tuned(setup: PipelineSetup) -> TunedSettings:
    try:
        return TUNED[setup.name]
    except KeyError:
        raise InvalidInput("policy", "tuned", "a pipeline it was tuned for: " + ", ".join(TUNED)) from None


def _reported(run: Run, note: str) -> ReportedRun:
    return ReportedRun(run.summary, run.recording, note)
