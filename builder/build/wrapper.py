"""Stand-in for ansible-playbook that Packer calls: runs it through ansible-runner, with live events, secrets masked."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from builder.core.events import append_event
from builder.core.run import TAIL_LINES, mask

EVENTS_VARIABLE = "BUILD_IMAGE_EVENTS"
STAGE_VARIABLE = "BUILD_IMAGE_STAGE"
SECRETS_VARIABLE = "BUILD_IMAGE_SECRETS"
CANCELLED = 130
MESSAGE_LENGTH = 4000
NOISE = ("", "(traceback unavailable)")
# ssh binds its control socket as <folder>/cp/<10 characters>.<16 characters>; a socket path ends at 107 bytes.
# https://man7.org/linux/man-pages/man7/unix.7.html
LONGEST_TEMPORARY_PATH = 40
RESULTS = {
    "runner_on_ok": "ok",
    "runner_on_failed": "failed",
    "runner_on_unreachable": "unreachable",
    "runner_on_skipped": "skipped",
}
# What a build needs whoever starts it; Packer's ansible_env_vars may set any of them otherwise.
ANSIBLE_DEFAULTS = {
    "ANSIBLE_GATHERING": "explicit",
    "ANSIBLE_HOST_KEY_CHECKING": "0",
    "ANSIBLE_NOCOLOR": "1",
    "ANSIBLE_PIPELINING": "1",
    "ANSIBLE_RETRY_FILES_ENABLED": "0",
    # Every guest is new: its key is known to nobody, and must not end up in the user's own known_hosts.
    "ANSIBLE_SSH_COMMON_ARGS": "-o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
}

Data = dict[str, Any]


@dataclass(slots=True)
class Journal:
    """Where events and lines of one playbook run go; remembers what a failure needs.

    `tail` holds the last lines that belong to no task: the reason when ansible-playbook fails before its first task.
    """

    events: Path | None
    stage: str
    secrets: tuple[str, ...]
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    failed_tasks: int = 0

    def take(self, event: Mapping[str, Any]) -> bool:
        """Record one event of ansible-runner; False keeps ansible-runner from writing it to a file of its own."""
        row = translate(event)
        if row is None:
            self._take_output(event)
            return False
        kind, data = row
        if kind == "task" and data["result"] in ("failed", "unreachable"):
            self.failed_tasks += 1
        self.emit(kind, data)
        if kind == "task":
            self.say(task_text(data))
        return False

    def emit(self, kind: str, data: Data) -> None:
        """Append one event; values are masked before they become JSON, whose escapes would hide a secret."""
        if self.events is not None:
            append_event(self.events, kind, self.stage, masked(data, self.secrets), self.secrets)

    def say(self, text: str) -> None:
        """Print text for Packer's log."""
        print(mask(text, self.secrets), flush=True)

    def _take_output(self, event: Mapping[str, Any]) -> None:
        if event.get("event") in ("verbose", "error", "warning", "deprecated", "system_warning"):
            for line in str(event.get("stdout") or "").splitlines():
                if line.strip():
                    self.tail.append(line)
                    self.say(line)


def main(argv: Sequence[str]) -> int:
    """Run ansible-playbook with these arguments and return its exit code, 130 when a signal stopped it.

    `--version`, and anything else that names no playbook, is handed on to ansible-playbook as it is: Packer asks for
    the version before every run. Events are appended to $BUILD_IMAGE_EVENTS with the stage $BUILD_IMAGE_STAGE; values
    of the variables named in $BUILD_IMAGE_SECRETS (comma list) are masked everywhere.
    """
    binaries = str(Path(sys.executable).parent)
    os.environ["PATH"] = binaries + os.pathsep + os.environ.get("PATH", os.defpath)
    if not argv or argv[-1].startswith("-"):
        os.execvp("ansible-playbook", ["ansible-playbook", *argv])  # noqa: S606 - no shell is wanted
    events = os.environ.get(EVENTS_VARIABLE)
    journal = Journal(Path(events) if events else None, os.environ.get(STAGE_VARIABLE, ""), secret_values(os.environ))
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ansible-", dir=short_temporary_folder()) as folder:
        status, code = play(argv, Path(folder), journal)
    if code and not journal.failed_tasks and status != "canceled":
        what = "ansible-playbook failed outside of a task"
        journal.emit("problem", {"what": "\n".join([what, *journal.tail]), "where": argv[-1], "hint": ""})
    journal.say(f"ansible: {status}, exit code {code}, {time.monotonic() - started:.1f} s")
    return code


def play(argv: Sequence[str], folder: Path, journal: Journal) -> tuple[str, int]:
    """Run one playbook through ansible-runner in a private folder; return its status and the exit code to end with.

    ansible-runner runs the playbook under a pseudo-terminal, so events arrive while it runs; SIGINT and SIGTERM end it
    within a second.
    """
    stop: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        stop.append(number)

    def cancelled() -> bool:
        if stop:
            kill_descendants(os.getpid())
        return bool(stop)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    for name, value in (ANSIBLE_DEFAULTS | {"ANSIBLE_HOME": str(folder)}).items():
        os.environ.setdefault(name, value)
    import ansible_runner  # here, because the import takes 0.3 s that `--version` need not pay

    run = ansible_runner.run(
        private_data_dir=str(folder),
        project_dir=str(Path.cwd()),
        playbook=argv[-1],
        cmdline=shlex.join(argv[:-1]),
        event_handler=journal.take,
        cancel_callback=cancelled,
        quiet=True,
        suppress_env_files=True,
        settings={"suppress_output_file": True, "pexpect_timeout": 1},
    )
    if run.status == "canceled":
        return run.status, CANCELLED
    return run.status, int(run.rc or (0 if run.status == "successful" else 1))


def kill_descendants(root: int) -> None:
    """Kill every process below one.

    ansible-runner kills the process group of ansible-playbook, but its workers have sessions of their own and would
    go on with their task.
    """
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            # proc(5): pid (name) state ppid; a name may hold blanks and parentheses.
            parents[int(path.parent.name)] = int(path.read_text(errors="replace").rpartition(")")[2].split()[1])
    below = {root}
    while more := {child for child, parent in parents.items() if parent in below} - below:
        below |= more
    for process in below - {root}:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def translate(event: Mapping[str, Any]) -> tuple[str, Data] | None:
    """Return (kind, data) of our event for one of ansible-runner's, or None for those that nobody reads."""
    name, data = str(event.get("event")), event.get("event_data") or {}
    if name in ("playbook_on_task_start", "playbook_on_handler_task_start"):
        return "task_start", {"task": str(data.get("task") or ""), "role": str(data.get("role") or "")}
    if name in RESULTS:
        return "task", finished_task(RESULTS[name], data)
    if name == "playbook_on_stats":
        names = {"ok": "ok", "changed": "changed", "failed": "failures", "unreachable": "dark", "skipped": "skipped"}
        return "stats", {ours: sum((data.get(theirs) or {}).values()) for ours, theirs in names.items()}
    return None


def finished_task(result: str, data: Mapping[str, Any]) -> Data:
    """Return the fields of a task event; a failure has a message and the last lines of what it printed."""
    outcome = data.get("res") or {}
    if result == "ok" and outcome.get("changed"):
        result = "changed"
    if result == "failed" and data.get("ignore_errors"):
        result = "ignored"
    row: Data = {
        "task": str(data.get("task") or ""),
        "role": str(data.get("role") or ""),
        "host": str(data.get("host") or ""),
        "result": result,
        "seconds": round(float(data.get("duration") or 0), 2),
        "path": str(data.get("task_path") or ""),
    }
    if result in ("failed", "unreachable", "ignored"):
        row["message"] = failure_message(outcome)[:MESSAGE_LENGTH]
        row["stderr"] = failure_output(outcome)
    return row


def failure_message(outcome: Mapping[str, Any]) -> str:
    """Return why a task failed, followed by one line for each failed item of a loop."""
    message = str(outcome.get("msg") or outcome.get("censored") or "no message")
    items = [
        f"item {item.get('item')}: {item.get('msg') or 'no message'}"
        for item in failed_items(outcome)
        if "censored" not in item
    ]
    return "\n".join([message, *items])


def failure_output(outcome: Mapping[str, Any]) -> str:
    """Return the last 30 lines of what a failed task, or its failed items, printed.

    A module that crashes leaves its reason in module_stderr or exception; a script run on a terminal in stdout.
    """
    keys = ("module_stdout", "stdout", "module_stderr", "stderr", "exception")
    parts = [str(part[key]) for part in (outcome, *failed_items(outcome)) for key in keys if part.get(key)]
    lines = [line.rstrip() for part in parts for line in part.splitlines() if line.strip() not in NOISE]
    return "\n".join(lines[-TAIL_LINES:])


def failed_items(outcome: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the results of the items of a loop that failed."""
    results = outcome.get("results")
    items = results if isinstance(results, list) else []
    return [item for item in items if isinstance(item, Mapping) and (item.get("failed") or item.get("unreachable"))]


def task_text(data: Mapping[str, Any]) -> str:
    """Return the compact line of a finished task, with the reason below it when it failed."""
    where = f"{data['role']} : {data['task']}" if data["role"] else data["task"]
    text = f"{data['result']:11} {data['seconds']:7.2f} s  {where}"
    lines = [*str(data.get("message", "")).splitlines(), *str(data.get("stderr", "")).splitlines()]
    return "\n".join([text, *(f"    {line}" for line in lines)])


def secret_values(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the values to mask, longest first; each line of a value of several lines counts by itself too."""
    values: set[str] = set()
    for name in environment.get(SECRETS_VARIABLE, "").split(","):
        value = environment.get(name.strip(), "")
        values.update([value, value.strip(), *(line.strip() for line in value.splitlines())])
    return tuple(sorted((value for value in values if len(value) > 3), key=lambda value: (-len(value), value)))


def masked(value: Any, secrets: Sequence[str]) -> Any:
    """Return a JSON value with secrets masked in every string, keys aside."""
    if isinstance(value, str):
        return mask(value, secrets)
    if isinstance(value, Mapping):
        return {key: masked(entry, secrets) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [masked(entry, secrets) for entry in value]
    return value


def short_temporary_folder() -> str:
    """Return the folder for temporary files, /tmp when its path leaves no room for ssh's control socket."""
    folder = tempfile.gettempdir()
    return folder if len(folder) <= LONGEST_TEMPORARY_PATH else "/tmp"  # noqa: S108 - the folder below it is private


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
