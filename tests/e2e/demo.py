"""`make demo-kubernetes`: SAIR scales the example pipeline on a real Kubernetes on this machine, while you watch.

Brings a cluster of two nodes up, installs SAIR and the example, replays a load and shows every round of the controller as it
stands in its journal. Ends with the cluster gone, or kept with KEEP=1. Needs root, no GPU: the stage that wants one computes
on the simulated driver, under the real hook.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.live import Live

from controller.decision import Decision
from controller.journal import RoundReport
from controller.recorded import RecordedRound
from controller.simulation.live import LiveView
from controller.state import HOLD, difference
from tests.e2e.cluster import binaries, dependencies
from tests.e2e.cluster.cluster import BINARIES, Cluster
from tests.e2e.cluster.errors import ClusterError
from tests.e2e.cluster.installation import EXAMPLE, Installation
from tests.e2e.controller import NAMESPACE, journal
from tests.e2e.example import PIPELINE
from tests.e2e.stages import give_gpus

_INSTANCE = 1
"""Not the tests' cluster."""
_NAMESPACE = "sair-example"
_ROUND_S = 10
"""Of the controller here; 30 s is the default."""
_LOOK_S = 2.0
_LATEST = 12
"""Records of the journal that a look takes: more than are written between two looks."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.demo", description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=480.0, help="how long to watch; one replay of the load is 480")
    parser.add_argument("--instance", type=int, default=_INSTANCE, help="which of the machine's clusters, 0 to 9")
    parser.add_argument(
        "--keep", action="store_true", default=os.environ.get("KEEP") == "1", help="leave the cluster up; KEEP=1 too"
    )
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console()
    cluster = Cluster(options.instance)
    try:
        with _running(cluster, keep=options.keep, console=console):
            _install(cluster, console)
            watch(cluster, _NAMESPACE, options.seconds, console, round_s=_ROUND_S)
    except ClusterError as error:
        print("\n".join([f"error: {error}", *getattr(error, "__notes__", ())]), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


@contextlib.contextmanager
def _running(cluster: Cluster, *, keep: bool, console: Console) -> Iterator[None]:
    """The cluster is up; afterwards it is gone, whatever happened, unless it is to be kept or ran before."""
    kept = keep or cluster.running
    cluster.ownership.take()
    try:
        if not cluster.running:
            dependencies.require()
            binaries.build(BINARIES)
            cluster.up(report=lambda step: console.print(step, style="dim", highlight=False))
        yield
    finally:
        # A second Ctrl-C must not leave half of it behind.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if kept and cluster.running:
            console.print(
                f"The cluster is kept. To look around, and to remove it:\n  export KUBECONFIG={cluster.kubeconfig}"
            )
            console.print(
                f"  export PATH={cluster.kubectl_path.parent}:$PATH\n  kubectl get pipelines --all-namespaces"
            )
            console.print(
                f"  {sys.executable} -m tests.e2e.cluster --instance {cluster.instance} down", highlight=False
            )
        else:
            cluster.down()
            console.print("The cluster is gone.")
        cluster.ownership.release()


def _install(cluster: Cluster, console: Console) -> None:
    begin = time.monotonic()

    def said(what: str) -> None:
        console.print(f"{time.monotonic() - begin:6.1f} s  {what}", style="dim", highlight=False)

    sair, example = Installation(cluster), Installation(cluster, EXAMPLE)
    for each in (sair, example):
        each.load_images()
    said("images on the nodes")
    sair.apply()
    wanted = [f"SAIR_CONTROLLER_INTERVAL_S={_ROUND_S}", f"SAIR_CONTROLLER_WINDOW_S={_ROUND_S / 2:g}"]
    cluster.kubectl("set", "env", "deployment/sair-controller", f"--namespace={NAMESPACE}", *wanted)
    sair.wait()
    give_gpus(cluster, per_node=2)
    said("SAIR Ready; two GPUs announced on each node")
    example.apply()
    example.wait()
    said("the example runs")


def watch(cluster: Cluster, namespace: str, seconds: float, console: Console, *, round_s: float) -> None:
    """Show every round of the controller for the example of a namespace.

    Args:
        cluster: where it runs.
        namespace: of the example.
        seconds: how long to watch.
        console: live on a terminal, else a line for each round.
        round_s: length of the controller's rounds, to say so.
    """
    nodes = len(cluster.nodes)
    view = LiveView(
        f"SAIR · {PIPELINE} · Kubernetes with {nodes} nodes on this machine",
        f"real pods, real requests; GPUs simulated under the real hook; rounds of {round_s:g} s",
        0.0,
    )
    begin, shown = time.monotonic(), ""
    with Live(view, console=console, refresh_per_second=4) if console.is_terminal else contextlib.nullcontext():
        while time.monotonic() < begin + seconds:
            for recorded in _journal(cluster, namespace):
                # Identifiers of a stream are ordered by time; lengths of their two parts do not change within a run.
                if recorded.identifier <= shown:
                    continue
                shown = recorded.identifier
                view.now_s = time.monotonic() - begin
                report = _report(recorded)
                if report is not None:
                    view.reflexes += sum(each.acted for each in recorded.reflexes())
                    asyncio.run(view.round_ended(report))
                    if not console.is_terminal:
                        console.print(view.line(), highlight=False, markup=False, soft_wrap=True)
            time.sleep(_LOOK_S)
    console.print(f"{view.completed} requests seen in the controller's windows, {view.missed} later than the SLO")
    console.print(
        cluster.kubectl("get", "pipelines", f"--namespace={namespace}"), highlight=False, markup=False, soft_wrap=True
    )


def _journal(cluster: Cluster, namespace: str) -> Sequence[RecordedRound]:
    """The newest rounds, oldest first; none while Redis cannot be asked."""
    try:
        rounds = journal(cluster, f"{namespace}/{PIPELINE}", _LATEST)
    except ClusterError:
        return ()
    # What the cluster made of the newest decision may not be written yet; it is shown once it is.
    waiting = rounds and rounds[-1].decided and rounds[-1].applied is None and rounds[-1].text("action") != str(HOLD)
    return rounds[:-1] if waiting else rounds


def _report(recorded: RecordedRound) -> RoundReport | None:
    """A round as the live view takes it; None if its record lacks what the view shows."""
    view = recorded.view()
    if view is None:
        return None
    decision = None
    before, after = recorded.allocations("before_json"), recorded.allocations("after_json")
    if recorded.decided and before is not None and after is not None:
        action = difference(before, after, [stage.name for stage in view.stages])
        decision = Decision(
            pipeline=view.key,
            round=recorded.round,
            time_s=recorded.time_s,
            policy=recorded.text("policy"),
            wished=action,
            action=action,
            before=before,
            after=after,
            verdicts=tuple(recorded.verdicts()),
            reason=recorded.text("reason"),
            bottleneck=recorded.text("bottleneck") or None,
        )
    return RoundReport(
        view,
        recorded.round,
        recorded.time_s,
        observation=recorded.observation(),
        decision=decision,
        outcomes=recorded.outcomes() or (),
        fallback=recorded.text("fallback"),
        problem=recorded.text("problem"),
    )


if __name__ == "__main__":
    sys.exit(main())
