"""Processes that are never left over: each is written down before it matters, and killed by whoever comes next.

A process is known by its pid *and* its start time, so that a recycled pid is never mistaken for it.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.e2e.cluster.errors import ClusterError

# Linux sends the parent-death signal when the *thread* that started the child ends; one thread that lives as long as
# the interpreter therefore starts them all, whoever asks.
_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cluster-spawner")


@dataclass(frozen=True, slots=True)
class Identity:
    """A process that may or may not be alive any more.

    Attributes:
        name: what it is called in messages and log files.
        pid: its process id.
        started: field 22 of /proc/<pid>/stat, clock ticks since boot.
    """

    name: str
    pid: int
    started: int

    @classmethod
    def of(cls, name: str, pid: int) -> "Identity":
        """The identity of a process that is alive now.

        Raises:
            ClusterError: there is no such process.
        """
        started = _start_time(pid)
        if started is None:
            raise ClusterError(f"{name} (pid {pid}) ended at once")
        return cls(name, pid, started)

    @property
    def alive(self) -> bool:
        """Whether that very process still runs; a zombie does not."""
        return _start_time(self.pid) == self.started

    def kill(self, *, wait_s: float = 10.0) -> None:
        """SIGKILL it and wait until it is gone. A process that is gone already is fine.

        Raises:
            ClusterError: it is still there after `wait_s` seconds.
        """
        if not self.alive:
            return
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + wait_s
        while not _gone(self.pid):
            if time.monotonic() > deadline:
                raise ClusterError(f"{self.name} (pid {self.pid}) outlived SIGKILL by {wait_s:g} s")
            time.sleep(0.005)


def perishable(command: Sequence[str | Path]) -> list[str | Path]:
    """A command whose whole tree, and whatever it mounts, ends with the thread that waits for it, also at SIGKILL.

    Root alone may make the namespaces that this takes; of somebody else's command only the first process ends at once.
    """
    unshare = shutil.which("unshare")
    if os.geteuid() != 0 or unshare is None:
        return bound(command)
    return bound([unshare, "--mount", "--pid", "--fork", "--mount-proc", "--kill-child=SIGKILL", *command])


def bound(command: Sequence[str | Path]) -> list[str | Path]:
    """A command whose process ends with the thread that waits for it, also at SIGKILL."""
    # setpriv execs, so the pid is the program's own.
    setpriv = shutil.which("setpriv")
    return [*([setpriv, "--pdeathsig", "SIGKILL"] if setpriv else []), *command]


class ProcessTable:
    """The processes of one cluster, written to a file as they start."""

    def __init__(self, directory: Path, *, bound_to_this_process: bool) -> None:
        """Open the table.

        Args:
            directory: holds the table's file and the processes' logs; made when absent.
            bound_to_this_process: the kernel kills every process of the table when this one ends, however it ends.
        """
        self._file = directory / "processes.json"
        self._logs = directory / "logs"
        self._bound = bound_to_this_process
        self._logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> Identity:
        """Start a process in a session of its own, its output going to `logs/<name>.log`.

        Args:
            name: unique in the table; a process of that name that still runs is killed first.
            command: program and arguments.
            environment: added to this process's own.
        """
        self.stop(name)
        words = [os.fspath(word) for word in (bound(command) if self._bound else command)]
        child = _SPAWNER.submit(_spawn, words, self.log(name), {**os.environ, **(environment or {})}).result()
        identity = Identity.of(name, child.pid)
        self._save([*self._load(), identity])
        return identity

    def stop(self, *names: str) -> None:
        """Kill the processes of these names, last started first; those that do not run are fine."""
        known = self._load()
        for identity in reversed(known):
            if identity.name in names:
                identity.kill()
        if names and any(identity.name in names for identity in known):
            self._save([identity for identity in known if identity.name not in names])

    def stop_all(self) -> None:
        """Kill every process of the table, last started first."""
        self.stop(*(identity.name for identity in self._load()))

    def running(self) -> list[Identity]:
        """The processes that are alive now."""
        return [identity for identity in self._load() if identity.alive]

    def alive(self, name: str) -> bool:
        """Whether the process of that name runs."""
        return any(identity.name == name for identity in self.running())

    def log(self, name: str) -> Path:
        """File that the output of that process goes to."""
        return self._logs / f"{name}.log"

    def tail(self, name: str, lines: int = 15) -> str:
        """The last lines of a process's output, for messages."""
        log = self.log(name)
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else "(no output)"

    def _load(self) -> list[Identity]:
        try:
            return [Identity(**entry) for entry in json.loads(self._file.read_text())]
        except FileNotFoundError:
            return []

    def _save(self, identities: list[Identity]) -> None:
        scratch = self._file.with_suffix(".tmp")
        scratch.write_text(json.dumps([asdict(identity) for identity in identities]))
        scratch.replace(self._file)


def _spawn(words: list[str], log: Path, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    with log.open("ab") as output:
        child = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    # Identity.kill waits by pid; an unreaped Popen would warn when it is collected.
    child.returncode = 0
    return child


def _start_time(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name, in parentheses, may itself hold spaces and parentheses.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def _gone(pid: int) -> bool:
    """Whether a killed process has let go of its files and ports: its first thread can be a zombie while others still end."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        # Not this process's child: its own parent reaps it.
        return _start_time(pid) is None
