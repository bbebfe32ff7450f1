"""The command itself, before and around its components."""

import signal
import subprocess
import sys

_SLOW = """
import sys, time
import sair.cli

class Slow:
    name = "slow"

    def load(self):
        print("loading", flush=True)
        time.sleep(60)

sair.cli.entry_points = lambda group: [Slow()]
sys.argv = ["sair", "slow"]
sair.cli.main()
"""


def test_sigterm_ends_it_while_its_component_is_still_being_loaded() -> None:
    with subprocess.Popen([sys.executable, "-c", _SLOW], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"loading\n"
        process.send_signal(signal.SIGTERM)
        # Without a handler it would be the signal that ends it, which the first process of a container ignores.
        assert process.wait(timeout=20) == 128 + signal.SIGTERM
