"""A job: one long command under the shim. Started detached, found again by whoever comes later."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from builder.core import shim
from builder.core.errors import BuildError
from builder.core.files import file_lock, is_locked, write_json
from builder.core.run import Spec, spawn_detached

START_WAIT_S = 30.0
POLL_S = 0.25


@dataclass(frozen=True, slots=True)
class Companion:
    """A helper that must greet like an ssh server on 127.0.0.1:port before the command starts, and ends with it."""

    argv: tuple[str, ...]
    port: int
    log: str


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What to run. `output` is appended to; `grace` is the time in seconds to clean up after an interrupt.

    `links` are symbolic links outside of the job's folder that go when it ends.
    """

    argv: tuple[str, ...]
    cwd: str
    output: str
    companions: tuple[Companion, ...] = ()
    grace: float = 300.0
    links: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NotStarted:
    """No shim ever ran in this folder."""


@dataclass(frozen=True, slots=True)
class Running:
    """A shim holds the lock. `pid` is the shim's."""

    pid: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The command ended: its exit code, 128 + number when a signal killed it, 125 when it never started."""

    code: int


@dataclass(frozen=True, slots=True)
class Dead:
    """The shim was killed before it could write down how the command ended."""


JobState = NotStarted | Running | Finished | Dead


def start_job(job: Path, spec: JobSpec, env: Mapping[str, str]) -> None:
    """Start the shim in a session of its own; returns once it holds the lock of the job folder.

    `env` reaches the command (secrets are in it) and is never written down. What an earlier, ended job left in the
    folder is removed. Raises BuildError when a job is running there already, or when the shim does not come up.
    """
    job = job.absolute()
    job.mkdir(parents=True, exist_ok=True)
    with file_lock(job / "start"):
        state = state_of(job)
        if isinstance(state, Running):
            raise BuildError("a build is running in this folder already", str(job), "wait for it, or end it")
        if isinstance(state, Dead):
            end_orphans(job)
        _await_watcher(job)
        for name in ("rc", "pid", "interrupted"):
            (job / name).unlink(missing_ok=True)
        write_json(job / "spec.json", asdict(spec))
        argv = [sys.executable, "-I", str(Path(shim.__file__)), str(job)]
        pid = spawn_detached(argv, Spec(cwd=job, env=env, log=job / "shim.log"))
        _wait_until_up(job, pid)


def _wait_until_up(job: Path, pid: int) -> None:
    deadline = time.monotonic() + START_WAIT_S
    while isinstance(state_of(job), NotStarted):
        if time.monotonic() > deadline or not Path(f"/proc/{pid}").exists():
            if not isinstance(state_of(job), NotStarted):
                return
            said = (job / "shim.log").read_text(errors="replace").strip()
            raise BuildError(f"the shim did not start\n{said}", str(job))
        time.sleep(0.02)


def state_of(job: Path) -> JobState:
    """Say how a job stands; changes nothing."""
    result = _result(job)
    if result is not None:
        return Finished(result)
    process = _process(job)
    if process is None:
        return NotStarted()
    if is_locked(job / "lock"):
        return Running(process)
    # The shim may have ended between the two looks: its result is written before its lock is released.
    result = _result(job)
    return Finished(result) if result is not None else Dead()


def wait_job(job: Path, on_tick: Callable[[], None] = lambda: None) -> int:
    """Wait until a job ends, whoever started it; return the exit code of its command.

    `on_tick` is called four times a second. Raises BuildError when there is no job or its shim was killed; then
    nothing of the job is left running.
    """
    while True:
        state = state_of(job)
        if isinstance(state, Finished):
            on_tick()
            return state.code
        if isinstance(state, Dead):
            end_orphans(job)
            raise BuildError("the process that watched over the build was killed", str(job), "start the build again")
        if isinstance(state, NotStarted):
            raise BuildError("no build was started in this folder", str(job))
        on_tick()
        time.sleep(POLL_S)


def interrupt_job(job: Path) -> None:
    """Let the command clean up and end: it gets one SIGINT, however often this is called."""
    marker = job / "interrupted"
    if not marker.exists() and _signal(job, signal.SIGINT):
        marker.touch()


def kill_job(job: Path) -> None:
    """Kill the command and everything it started, now."""
    _signal(job, signal.SIGQUIT)


def end_orphans(job: Path) -> None:
    """Kill what a dead job left running; returns when nothing of it is left. Raises BuildError when that fails."""
    if not shim.sweep(job.absolute(), set(), children=False):
        raise BuildError("processes of a dead build cannot be killed", str(job), "end them by hand")
    _await_watcher(job)


def _await_watcher(job: Path) -> None:
    """Wait until the watcher of an earlier shim has done its work: it must not meet what comes after it."""
    deadline = time.monotonic() + START_WAIT_S
    while is_locked(job / "watch.lock"):
        if time.monotonic() > deadline:
            raise BuildError("what an earlier build left cannot be cleaned up", str(job), "end its processes by hand")
        time.sleep(0.02)


def _signal(job: Path, number: int) -> bool:
    state = state_of(job)
    if not isinstance(state, Running):
        return False
    try:
        os.kill(state.pid, number)
    except ProcessLookupError:
        return False
    return True


def _result(job: Path) -> int | None:
    try:
        return int((job / "rc").read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None


def _process(job: Path) -> int | None:
    try:
        return int(json.loads((job / "pid").read_text())["pid"])
    except (FileNotFoundError, NotADirectoryError):
        return None
