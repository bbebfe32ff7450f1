"""What a controller spends, and whether it keeps its bars: ``python -m benchmarks.controller [--quick]``; exits 1 where one is missed.

Each is measured at three sizes, so that growth with the work shows:

- a round of the decision core by the size of the memory, alone;
- 10, 100 and 1,000 pipelines (quick: 10, 25, 100) in the Kubernetes world with scrapes, watches, Redis and status, as CPU time of the
  controller's process: a round, and what goes on between two rounds. The API server and the pods are another process's;
- the same pipelines divided by namespace among four controllers: that each has one, how even the parts are, what the busiest spends;
- retrieval and the upkeep of surprisal, at 1e4, 1e5 and 1e6 experiences (quick: up to 5e4, for a million take a minute to make);
- bytes per experience in this process, at the same sizes;
- writing rounds to a real Redis and reading memories back;
- how many calls of a language model are under way, of all pipelines and of one, by how many want an answer.

Times are CPU time of one core where they are called so; run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.controller.core import core
from benchmarks.controller.kubernetes import interval, shards
from benchmarks.controller.memory import growth, redis, retrieval
from benchmarks.controller.model import model
from benchmarks.controller.rows import BARS, FULL, QUICK, Part, Row, Sizes
from sair.logs import configure

__all__ = ["main"]

PARTS: Final[Mapping[str, Part]] = {
    "core": core,
    "interval": interval,
    "shards": shards,
    "retrieval": retrieval,
    "growth": growth,
    "redis": redis,
    "model": model,
}


def main(
    arguments: Sequence[str] | None = None, *, sizes: Sizes | None = None, bars: Mapping[str, float] = BARS
) -> int:
    """Run the benchmark.

    Args:
        arguments: Of the command line; None: this process's.
        sizes: How much to measure instead of what the command line says.
        bars: What is good enough.

    Returns:
        The exit status: 1 where a bar is missed.
    """
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, under a minute")
    parser.add_argument("--only", choices=[*PARTS], action="append", help="a part alone; may be given several times")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args(arguments)
    chosen = sizes or (QUICK if options.quick else FULL)
    configure("error")
    rows: list[Row] = []
    began_s = time.monotonic()
    for name in options.only or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            for row in PARTS[name](chosen, bars, Path(folder)):
                rows.append(row)
                if not options.json:
                    print(row, flush=True)
    if options.json:
        json.dump([{field: getattr(row, field) for field in row.__slots__} for row in rows], sys.stdout, indent=1)
    missed = [row for row in rows if row.missed]
    said = sys.stderr if options.json else sys.stdout
    print(
        f"{time.monotonic() - began_s:.0f} s; " + (f"{len(missed)} bars missed" if missed else "all bars kept"),
        file=said,
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
