"""Runs in a container: keeps the simulated GPU as busy as it is let, and tells when its grant changed and what the GPU itself saw.

    python3 observer.py DRIVER GROUND_TRUTH

It needs the standard library and the example's ``app.device`` alone. Over HTTP, port 8000: ``/grants`` gives every change of the grant
file as ``[unix_s, monotonic_ns, text]``; ``/busy?from=NS&count=N`` gives the worker's busy nanoseconds in N bins of a
millisecond, as the simulated GPU counted them; ``/now`` gives the monotonic clock in ns.
"""

import ctypes
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

_GRANT = Path("/etc/sair/gpu-granted")
_LOOK_S = 0.002
"""Far below what is measured."""
_TENANT = "worker"
_WORK = "import sys; from app.device import Device; device = Device(sys.argv[1])\nwhile True: device.work(0.02)"
_BIN_NS = 1_000_000

grants: list[tuple[float, int, str]] = []


class Gpu:
    """What the simulated GPU that the programs of one file share has counted."""

    def __init__(self, library: str) -> None:
        """Attach to the file that the environment names."""
        self._library = ctypes.CDLL(library)

    def busy_ns(self, from_ns: int, count: int) -> list[int]:
        """The worker's busy nanoseconds per bin."""
        bins = (ctypes.c_uint32 * count)()
        first = ctypes.c_uint64(from_ns // _BIN_NS)
        self._library.simgpu_read_bins(_TENANT.encode(), 0, first, ctypes.c_uint32(count), bins)
        return list(bins)


def _handler(gpu: Gpu) -> type[http.server.BaseHTTPRequestHandler]:
    class Tell(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            asked = {key: values[0] for key, values in parse_qs(url.query).items()}
            answer: object = grants
            if url.path == "/busy":
                answer = gpu.busy_ns(int(asked["from"]), int(asked["count"]))
            elif url.path == "/now":
                answer = time.monotonic_ns()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: object) -> None:
            pass

    return Tell


def main(driver: str, ground_truth: str) -> None:
    """Never returns."""
    subprocess.Popen([sys.executable, "-c", _WORK, driver], env=os.environ | {"SAIR_SIMGPU_TENANT": _TENANT})
    served = http.server.ThreadingHTTPServer(("", 8000), _handler(Gpu(ground_truth)))
    threading.Thread(target=served.serve_forever, daemon=True).start()
    last = None
    while True:
        try:
            now = _GRANT.read_text()
        except FileNotFoundError:
            now = ""  # not a pod of a pipeline
        if now != last:
            grants.append((time.time(), time.monotonic_ns(), now))
            last = now
        time.sleep(_LOOK_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
