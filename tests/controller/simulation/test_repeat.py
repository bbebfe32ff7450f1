from controller.simulation.repeat import repeat_rows
from controller.simulation.statistics import RunSummary


def summary(policy: str, seed: int, usd: float, missed: int) -> RunSummary:
    return RunSummary(policy, seed, 0.0, 60.0, 1000, 1000, 0, missed, 0.1, 0.2, 0.25, 16.0, usd, usd, 0.1, 0.1)


def test_differences_are_paired_by_seed() -> None:
    ours = [summary("ours", seed, usd, 10) for seed, usd in ((1, 1.0), (2, 5.0), (3, 9.0))]
    theirs = [summary("theirs", seed, usd, 30) for seed, usd in ((1, 1.5), (2, 5.5), (3, 9.5))]
    first, second = repeat_rows({"ours": ours, "theirs": theirs})
    assert first == ("ours", "5.00", "1.00 %", "200 ms", "", "")
    # The seeds differ by dollars, the policies by half a dollar on every one of them.
    assert second[4] == "+0.50 $ [+0.50, +0.50]"
    assert second[5] == "+2.00 pt [+2.00, +2.00]"
