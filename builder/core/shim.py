"""Runs one long command so that it outlives whoever started it: `python -I shim.py JOB_DIR`, standard library only.

The job folder holds `spec.json` {argv, cwd, output, companions: [{argv, port, log}], grace, links}. The shim adds
`lock` (held for its whole life), `pid` {pid, pgid} and at the end `rc` (by rename). Secrets come by its environment.
`links` are symbolic links that go when the job ends.

First SIGINT or SIGTERM: the command's group gets one SIGINT and `grace` seconds to clean up. A second one, or SIGQUIT:
everything is killed. Whatever way the shim itself dies, a watcher sees its pipe close and kills what it had started.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

MARKER = "BUILD_IMAGE_JOB"
CANNOT_START = 125
LOCK_WAIT_S = 5.0
COMPANION_WAIT_S = 60.0
COMPANION_STOP_S = 10.0
SWEEP_S = 10.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGCHLD)
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


class CannotStart(Exception):
    """The job could not be started; the text goes to its output."""


def process_table() -> dict[int, int]:
    """Return {process id: parent's id} of all processes that still run, zombies aside."""
    table: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, parent = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
                if state not in "ZX":
                    table[int(entry.name)] = int(parent)
    return table


def marked(process: int, job: Path) -> bool:
    """Say whether a process carries the mark of a job in the environment that it was started with."""
    try:
        environment = Path(f"/proc/{process}/environ").read_bytes()
    except OSError:
        return False
    return f"{MARKER}={job}".encode() in environment.split(b"\0")


def family(job: Path, spared: set[int], children: bool) -> set[int]:
    """Return the processes of a job: those with its mark, children of this process if so asked, all their descendants.

    A process that called setsid and lost its parent is still found: by the mark, or because the shim is the reaper of
    all its descendants.
    """
    table = process_table()
    spared = spared | {os.getpid()}
    own = os.getpid() if children else -1
    found = {pid for pid, parent in table.items() if parent == own or marked(pid, job)} - spared
    grown = True
    while grown:
        more = {pid for pid, parent in table.items() if parent in found} - found - spared
        found |= more
        grown = bool(more)
    return found


def sweep(job: Path, spared: set[int], children: bool) -> bool:
    """Kill every process of a job; True when none is left. Looks again until then, for at most SWEEP_S seconds."""
    deadline = time.monotonic() + SWEEP_S
    while members := family(job, spared, children):
        for pid in members:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if children:
            reap()
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def reap() -> dict[int, int]:
    """Collect every child that ended: {process id: exit code, 128 + signal number for a killed one}."""
    ended: dict[int, int] = {}
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            code = os.waitstatus_to_exitcode(found[1])
            ended[found[0]] = code if code >= 0 else 128 - code
    return ended


def remove_links(spec: dict[str, Any]) -> None:
    """Remove the symbolic links of a job; they stand outside of its folder, so nobody else would."""
    for link in spec.get("links", []):
        with contextlib.suppress(OSError):
            if Path(link).is_symlink():
                Path(link).unlink()


def start_watcher(job: Path, spec: dict[str, Any]) -> tuple[int, int]:
    """Fork the watcher; return (its process id, the pipe to write one byte to when all is well).

    It is forked before the lock is taken, so that it never holds that lock; its own is `watch.lock`. Whoever uses the
    folder again waits for it: a watcher that is late would kill what came after its shim.
    """
    shim = os.getpid()
    reading, writing = os.pipe()
    watching = os.open(job / "watch.lock", os.O_RDWR | os.O_CREAT, 0o644)
    with contextlib.suppress(BlockingIOError):  # a shim that is refused in a folder where another one runs
        fcntl.flock(watching, fcntl.LOCK_EX | fcntl.LOCK_NB)
    pid = os.fork()
    if pid:
        os.close(watching)
        os.close(reading)
        return pid, writing
    os.close(writing)
    os.setsid()
    for number in SIGNALS[:3]:
        signal.signal(number, signal.SIG_IGN)
    if not os.read(reading, 1):
        sweep(job, {shim}, children=False)
        remove_links(spec)
    os._exit(0)


def take_lock(job: Path) -> int | None:
    """Lock the job; None when another shim holds it. A reader may hold it shared for a moment, so this tries again."""
    descriptor = os.open(job / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > deadline:
                return None
            time.sleep(0.05)


def write_file(path: Path, text: str) -> None:
    """Write a file through a rename. A file of that size that lies ready is overwritten: a full disk cannot stop it."""
    temporary = path.with_name(f".{path.name}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(descriptor, text.encode(), 0)
        os.ftruncate(descriptor, len(text.encode()))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    temporary.replace(path)


def start(argv: list[str], output: str, job: Path, session: bool) -> int:
    """Start a process with stdin closed and both streams appended to a file; return its id.

    The command leads a process group of its own; a companion leads a session of its own.
    """
    actions: list[Any] = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    environment = os.environ | {MARKER: str(job)}
    group: dict[str, Any] = {"setsid": True} if session else {"setpgroup": 0}
    try:
        return os.posix_spawnp(
            argv[0], argv, environment, file_actions=actions, setsigmask=(), setsigdef=SIGNALS, **group
        )
    except OSError as error:
        raise CannotStart(f"cannot start {argv[0]}: {error.strerror}") from error


class Job:
    """One run of the command with its companions."""

    def __init__(self, job: Path, spec: dict[str, Any], spared: set[int]) -> None:
        self.job = job
        self.spec = spec
        self.spared = spared
        self.command = 0
        self.companions: list[int] = []
        self.stops = 0
        self.deadline = float("inf")
        self.code: int | None = None

    def run(self) -> int:
        """Run companions and command to the end; return the exit code of the command, 125 when it never started."""
        try:
            for companion in self.spec.get("companions", []):
                self.start_companion(companion)
            if self.stops:
                return 128 + signal.SIGINT
            self.command = start(self.spec["argv"], self.spec["output"], self.job, session=False)
            write_file(self.job / "pid", json.dumps({"pid": os.getpid(), "pgid": self.command}))
            while self.code is None:
                self.step()
            return self.code
        except CannotStart as error:
            with Path(self.spec["output"]).open("a") as output:
                output.write(f"{error}\n")
            return CANNOT_START
        finally:
            self.end_companions()
            sweep(self.job, self.spared, children=True)
            remove_links(self.spec)

    def step(self, seconds: float = 1.0) -> None:
        """Wait for a signal or a child that ended, and act on it."""
        got = signal.sigtimedwait(SIGNALS, seconds)
        number = got.si_signo if got else 0
        if number and number != signal.SIGCHLD:
            self.stops += 1
            if self.stops == 1 and number != signal.SIGQUIT:
                self.deadline = time.monotonic() + float(self.spec.get("grace", 300))
                if self.command:
                    signal_group(self.command, signal.SIGINT)
            else:
                self.deadline = 0.0
        if time.monotonic() > self.deadline:
            # The command goes first, by its group: what it started is then found by `sweep` wherever it went.
            signal_group(self.command, signal.SIGKILL)
        self.code = reap().get(self.command, self.code)

    def start_companion(self, companion: dict[str, Any]) -> None:
        """Start a helper and wait until its port greets like an ssh server."""
        pid = start(companion["argv"], companion["log"], self.job, session=True)
        self.companions.append(pid)
        deadline = time.monotonic() + COMPANION_WAIT_S
        while not self.stops and not greets(companion["port"]):
            self.step(0.1)
            if pid not in process_table():
                raise CannotStart(f"the helper {companion['argv'][0]} ended at once, see {companion['log']}")
            if time.monotonic() > deadline:
                raise CannotStart(
                    f"nothing answered on 127.0.0.1:{companion['port']} within {COMPANION_WAIT_S:.0f} s, "
                    f"see {companion['log']}"
                )

    def end_companions(self) -> None:
        """Ask the helpers to end; those that do not are swept."""
        for pid in self.companions:
            signal_group(pid, signal.SIGTERM)
        deadline = time.monotonic() + COMPANION_STOP_S
        while set(self.companions) & process_table().keys() and time.monotonic() < deadline and self.stops < 2:
            signal.sigtimedwait([signal.SIGCHLD], 0.1)
            reap()


def signal_group(group: int, number: int) -> None:
    """Send a signal to a process group; none, or one that is gone, is fine."""
    if group:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, number)


def greets(port: int) -> bool:
    """Say whether an ssh server answers on a port of the loopback interface."""
    try:
        with socket.create_connection(("127.0.0.1", port), 2) as connection:
            connection.settimeout(2)
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def main(arguments: list[str]) -> NoReturn:
    """Run the job of the folder; the exit code is the command's, 75 when another shim runs it."""
    job = Path(arguments[0]).absolute()
    spec = json.loads((job / "spec.json").read_text())
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    watcher, alive = start_watcher(job, spec)
    code = os.EX_TEMPFAIL
    if take_lock(job) is not None:
        # The result's file lies ready from the beginning: a disk that the build fills must not hide how it ended.
        (job / ".rc").write_text("   \n")
        write_file(job / "pid", json.dumps({"pid": os.getpid(), "pgid": 0}))
        os.chdir(spec["cwd"])
        code = Job(job, spec, {watcher}).run()
        write_file(job / "rc", f"{code}\n")
    os.write(alive, b"x")
    sys.exit(code)


if __name__ == "__main__":
    main(sys.argv[1:])
