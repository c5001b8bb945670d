"""The shim with small commands: results, interrupts, deaths of the starter and of the shim itself, helpers."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from builder.build.job import (
    Companion,
    Dead,
    Finished,
    JobSpec,
    NotStarted,
    Running,
    end_orphans,
    interrupt_job,
    kill_job,
    start_job,
    state_of,
    wait_job,
)
from builder.core.errors import BuildError
from builder.core.run import Spec, spawn

# A command that says when it is there and how often it was interrupted, then cleans up.
POLITE = """
import signal, sys, time
count = 0
def on(*_):
    global count
    count += 1
    print("interrupts:", count, flush=True)
signal.signal(signal.SIGINT, on)
print("ready", flush=True)
while not count:
    time.sleep(0.02)
time.sleep(0.5)
print("clean", flush=True)
sys.exit(3)
"""
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('ready', flush=True); time.sleep(90)"
)
# A grandchild in a session of its own that lost its parent and its environment.
RUNAWAY = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve("/bin/sleep", ["sleep", "90.25"], {})
    os._exit(0)
os.wait()
print("ready", flush=True)
time.sleep(float(sys.argv[1]))
"""
SERVER = """
import os, socket, sys, time
time.sleep(0.3)
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    connection, _ = server.accept()
    connection.sendall(b"SSH-2.0-test\\r\\n")
    connection.close()
"""


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "job"
    yield folder
    if folder.exists() and isinstance(state_of(folder), Running):
        kill_job(folder)
        wait_job(folder)


def spec(job: Path, *argv: str, companions: tuple[Companion, ...] = (), grace: float = 30) -> JobSpec:
    return JobSpec(argv, str(job.parent), str(job.parent / "out.log"), companions, grace)


def python(code: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code, *arguments)


def output(job: Path) -> str:
    path = job.parent / "out.log"
    return path.read_text() if path.exists() else ""


def until(condition: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def running(words: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if words in command:
                found.append(int(entry.name))
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def shim_of(job: Path) -> int:
    state = state_of(job)
    assert isinstance(state, Running)
    return state.pid


def test_a_folder_without_a_job(job: Path) -> None:
    assert state_of(job) == NotStarted()
    with pytest.raises(BuildError, match="no build was started"):
        wait_job(job)


@pytest.mark.parametrize(("code", "expected"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill $$", 143)])
def test_the_exit_code_is_kept(job: Path, code: str, expected: int) -> None:
    start_job(job, spec(job, "sh", "-c", f"echo out; echo err >&2; {code}"), {})
    assert wait_job(job) == expected
    assert state_of(job) == Finished(expected)
    assert output(job).split() == ["out", "err"]


def test_a_command_that_does_not_exist(job: Path) -> None:
    start_job(job, spec(job, "no-such-command"), {})
    assert wait_job(job) == 125
    assert "cannot start no-such-command: No such file or directory" in output(job)


def test_secrets_come_by_the_environment_and_are_not_written_down(job: Path) -> None:
    start_job(job, spec(job, "sh", "-c", 'test "${#TOKEN}" = 12'), {"TOKEN": "s3cr3t-value"})
    assert wait_job(job) == 0
    assert not [path for path in job.iterdir() if b"s3cr3t-value" in path.read_bytes()]


def test_a_second_job_in_the_same_folder_is_refused_while_the_first_runs(job: Path) -> None:
    start_job(job, spec(job, "sleep", "30"), {})
    with pytest.raises(BuildError, match="running in this folder already"):
        start_job(job, spec(job, "true"), {})


def test_a_folder_can_be_used_again(job: Path) -> None:
    start_job(job, spec(job, "false"), {})
    assert wait_job(job) == 1
    start_job(job, spec(job, "true"), {})
    assert wait_job(job) == 0


def test_an_interrupt_reaches_the_command_once_and_lets_it_clean_up(job: Path) -> None:
    start_job(job, spec(job, *python(POLITE)), {})
    until(lambda: "ready" in output(job))
    interrupt_job(job)
    interrupt_job(job)
    assert wait_job(job) == 3
    assert output(job).splitlines() == ["ready", "interrupts: 1", "clean"]


def test_a_command_that_ignores_the_interrupt_is_killed_after_the_grace(job: Path) -> None:
    start_job(job, spec(job, *python(STUBBORN), grace=0.5), {})
    until(lambda: "ready" in output(job))
    interrupt_job(job)
    assert wait_job(job) == 137


def test_a_second_signal_kills_at_once(job: Path) -> None:
    start_job(job, spec(job, *python(STUBBORN)), {})
    until(lambda: "ready" in output(job))
    started = time.monotonic()
    os.kill(shim_of(job), signal.SIGTERM)
    time.sleep(0.2)
    os.kill(shim_of(job), signal.SIGTERM)
    assert wait_job(job) == 137
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("seconds", ["0", "90"], ids=["command ended", "command killed"])
def test_a_grandchild_in_its_own_session_does_not_outlive_the_job(job: Path, seconds: str) -> None:
    start_job(job, spec(job, *python(RUNAWAY, seconds)), {})
    until(lambda: "ready" in output(job))
    kill_job(job)
    wait_job(job)
    assert not running("sleep 90.25")


def test_the_job_outlives_its_starter_and_is_found_again(job: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from builder.build.job import *\n"
        "job = Path(sys.argv[1]); folder = str(job.parent)\n"
        "command = ('sh', '-c', 'echo one; sleep 1; echo two; exit 5')\n"
        "start_job(job, JobSpec(command, folder, folder + '/out.log'), {})\n"
        "wait_job(job)"
    )
    starter = spawn([sys.executable, "-c", code, str(job)], Spec(cwd=Path.cwd()))
    until(lambda: "one" in output(job))
    os.killpg(starter.pid, signal.SIGKILL)
    starter.wait()
    ticks: list[int] = []
    assert wait_job(job, lambda: ticks.append(1)) == 5
    assert output(job).split() == ["one", "two"]
    assert len(ticks) >= 2


def test_a_killed_shim_takes_its_command_with_it(job: Path) -> None:
    start_job(job, spec(job, "sh", "-c", "setsid sleep 90.5 & sleep 90.75"), {})
    until(lambda: running("sleep 90.5") and running("sleep 90.75"))
    os.kill(shim_of(job), signal.SIGKILL)
    until(lambda: not running("sleep 90.5") and not running("sleep 90.75"))
    assert state_of(job) == Dead()
    with pytest.raises(BuildError, match="was killed"):
        wait_job(job)
    start_job(job, spec(job, "true"), {})
    assert wait_job(job) == 0


def test_what_comes_after_a_killed_shim_is_left_alone(job: Path, tmp_path: Path) -> None:
    """The watcher of the killed one cleans up late; it must not meet the next command, nor its links."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    start_job(job, replace(spec(job, "sleep", "94.5"), links=(str(link),)), {})
    pid = shim_of(job)
    watcher = next(found for found in running(f"shim.py {job}") if found != pid)
    os.kill(watcher, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    until(lambda: state_of(job) == Dead())
    threading.Timer(1.0, os.kill, (watcher, signal.SIGCONT)).start()
    end_orphans(job)
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path)
    start_job(job, spec(job, "sleep", "3"), {})
    assert wait_job(job) == 0
    assert link.is_symlink()


def test_orphans_are_found_when_the_watcher_was_killed_too(job: Path) -> None:
    start_job(job, spec(job, "sh", "-c", "setsid sleep 91.5 & sleep 91.75"), {})
    until(lambda: running("sleep 91.5") and running("sleep 91.75"))
    pid = shim_of(job)
    watcher = next(found for found in running(f"shim.py {job}") if found != pid)
    os.kill(watcher, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    until(lambda: state_of(job) == Dead())
    assert running("sleep 91.5")
    end_orphans(job)
    assert not running("sleep 91.5")
    assert not running("sleep 91.75")


def test_a_companion_answers_before_the_command_starts_and_ends_with_it(job: Path) -> None:
    port = free_port()
    companion = Companion(python(SERVER, str(port)), port, str(job.parent / "companion.log"))
    connect = f"import socket; print(socket.create_connection(('127.0.0.1', {port})).recv(4))"
    start_job(job, spec(job, *python(connect), companions=(companion,)), {})
    assert wait_job(job) == 0
    assert "SSH-" in output(job)
    assert not running(f"{SERVER} {port}")


def test_a_companion_ends_when_the_shim_is_terminated(job: Path) -> None:
    port = free_port()
    companion = Companion(python(SERVER, str(port)), port, str(job.parent / "companion.log"))
    start_job(job, spec(job, *python(POLITE), companions=(companion,)), {})
    until(lambda: "ready" in output(job))
    os.kill(shim_of(job), signal.SIGTERM)
    assert wait_job(job) == 3
    assert not running(f"{SERVER} {port}")


def test_a_companion_that_fails_is_named_in_the_output(job: Path) -> None:
    companion = Companion(("sh", "-c", "echo broken; exit 1"), free_port(), str(job.parent / "companion.log"))
    start_job(job, spec(job, "true", companions=(companion,)), {})
    assert wait_job(job) == 125
    assert "the helper sh ended at once" in output(job)
    assert (job.parent / "companion.log").read_text() == "broken\n"


@pytest.mark.parametrize("killed", [False, True], ids=["ended", "shim killed"])
def test_links_go_with_the_job_and_nothing_else_does(job: Path, tmp_path: Path, killed: bool) -> None:
    link, file = tmp_path / "link", tmp_path / "file"
    link.symlink_to(tmp_path)
    file.touch()
    command = ("sleep", "30") if killed else ("true",)
    start_job(job, JobSpec(command, str(tmp_path), str(tmp_path / "out.log"), links=(str(link), str(file))), {})
    if killed:
        os.kill(shim_of(job), signal.SIGKILL)
    until(lambda: not link.is_symlink())
    until(lambda: not isinstance(state_of(job), Running))
    assert file.exists()


def test_room_for_the_result_is_kept_in_case_the_command_fills_the_disk(job: Path) -> None:
    start_job(job, spec(job, "sleep", "0.3"), {})
    until((job / ".rc").exists)
    assert (job / ".rc").stat().st_size == 4
    assert wait_job(job) == 0
    assert json.loads((job / "pid").read_text())["pgid"] > 0
