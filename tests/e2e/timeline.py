"""A run of the example second by second: what was asked of it, how late it was, what it had, and what the controller did."""

from collections.abc import Iterable, Sequence

from controller.recorded import RecordedRound
from controller.state import HOLD
from tests.e2e.example import STAGES
from tests.e2e.sampling import Sample

_MS = 1000


def timeline(
    latencies: Iterable[tuple[float, float]], samples: Sequence[Sample], rounds: Sequence[RecordedRound]
) -> str:
    """The run as a Markdown table.

    Args:
        latencies: of each request, when it was due, Unix seconds, and the seconds until it was done.
        samples: what its stages had, oldest first.
        rounds: of the controller's journal, oldest first.

    Returns:
        A row for each second; the stages' columns say how many replicas run, and the cores and the share that all of them have, those that
        only begin included.
    """
    by_second: dict[int, list[float]] = {}
    for due_s, latency_s in latencies:
        by_second.setdefault(int(due_s), []).append(latency_s)
    acts: dict[int, list[str]] = {}
    for at_s, act in _acts(rounds):
        acts.setdefault(int(at_s), []).append(act)
    head = ["second", "sent", "worst ms", *STAGES, "controller"]
    rows = [head, ["---"] * len(head)]
    first = min(by_second)
    for second in range(first, max(by_second) + 1):
        sent = by_second.get(second, [])
        worst = f"{max(sent) * _MS:.0f}" if sent else ""
        had = next((sample for sample in reversed(samples) if sample.at_s < second + 1), None)
        stages = [_had(had, stage) if had else "" for stage in STAGES]
        rows.append([str(second - first), str(len(sent)), worst, *stages, "; ".join(acts.get(second, []))])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _had(sample: Sample, stage: str) -> str:
    replicas, cores, share = (each.get(stage, 0) for each in (sample.replicas, sample.cores, sample.shares))
    size = f"{replicas}, {cores:.2f} cores"
    return f"{size}, {share:.2f} GPU" if share else size


def _acts(rounds: Sequence[RecordedRound]) -> Iterable[tuple[float, str]]:
    for each in rounds:
        for reflex in each.reflexes():
            yield reflex.time_s, f"reflex: {reflex.action}" + (" (refused more)" if reflex.short else "")
        action = each.text("action") or "observed"
        yield each.time_s, f"round {each.round}" + ("" if action == str(HOLD) else f": {action}")
