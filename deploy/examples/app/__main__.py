"""``python -m app stage …`` and ``python -m app load …``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from app.load import replay
from app.stage import run_stage


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="app", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    stage = commands.add_parser("stage", help="run one stage")
    stage.add_argument("--name", required=True)
    stage.add_argument("--next", default="", help="next stage; empty for the last")
    stage.add_argument("--device", choices=("none", "gpu", "simulated"), default="none")
    stage.add_argument("--cpu-ms", type=float, default=4.0, help="CPU time per request")
    stage.add_argument("--gpu-ms", type=float, default=8.0, help="GPU time per request at a full card")
    stage.add_argument("--port", type=int, default=9090)
    load = commands.add_parser("load", help="replay a trace of arrivals")
    load.add_argument("--first", required=True, help="the first stage")
    load.add_argument("--trace", type=Path, required=True)
    load.add_argument("--once", action="store_true", help="end after one replay")
    load.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    redis_url = os.environ.get("EXAMPLE_REDIS_URL", "redis://127.0.0.1:6379/0")
    if options.command == "stage":
        run_stage(
            options.name,
            options.next,
            redis_url=redis_url,
            device=options.device,
            cpu_ms=options.cpu_ms,
            gpu_ms=options.gpu_ms,
            port=options.port,
        )
    else:
        print(replay(options.first, options.trace, redis_url=redis_url, repeat=not options.once, seed=options.seed))


if __name__ == "__main__":
    main()
