"""Run folders: one for each run of a target, held by one process, picked up again when that process died."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from builder.core.events import append_event
from builder.core.files import write_json
from builder.core.paths import new_run_id

Status = Literal["running", "done", "failed", "interrupted"]


@dataclass(frozen=True, slots=True)
class RunFolder:
    """`STATE/runs/<run_id>/<target_id>`. `resumed` says that an earlier process began this run and died."""

    path: Path
    run_id: str
    target_id: str
    resumed: bool = False

    @property
    def events(self) -> Path:
        """The event stream of the run."""
        return self.path / "events.jsonl"

    def event(self, kind: str, stage: str = "", **data: Any) -> None:
        """Append one event."""
        append_event(self.events, kind, stage, data)

    def note(self, stage: str, text: str) -> None:
        """Append a line for people."""
        self.event("note", stage, text=text)

    def finish(self, status: Status) -> None:
        """Record how the run ended; a run that is not `running` is never picked up again."""
        state = json.loads((self.path / "state.json").read_text())
        write_json(self.path / "state.json", state | {"status": status, "ended_at": time.time()})


@contextlib.contextmanager
def open_run(state: Path, target_id: str, fingerprint: str) -> Iterator[RunFolder]:
    """Hold the run folder of a target: one that a dead process left running with the same fingerprint, else a new one.

    The holder has an exclusive lock on `run.lock`, which the kernel releases when the holder dies: that is how a dead
    run is told from a running one.
    """
    with contextlib.ExitStack() as stack:
        found = _adopt(state, target_id, fingerprint, stack) or _create(state, target_id, fingerprint, stack)
        yield found


def _adopt(state: Path, target_id: str, fingerprint: str, stack: contextlib.ExitStack) -> RunFolder | None:
    for path in sorted((state / "runs").glob(f"*/{target_id}"), reverse=True):
        if _status(path, fingerprint) == "running" and _hold(path, stack):
            # Read again under the lock: another process may have picked it up and ended it in between.
            if _status(path, fingerprint) == "running":
                return RunFolder(path, path.parent.name, target_id, resumed=True)
            stack.close()
    return None


def _create(state: Path, target_id: str, fingerprint: str, stack: contextlib.ExitStack) -> RunFolder:
    run = RunFolder(state / "runs" / (run_id := new_run_id()) / target_id, run_id, target_id)
    run.path.mkdir(parents=True)
    _hold(run.path, stack)
    write_json(run.path / "state.json", {"status": "running", "fingerprint": fingerprint, "started_at": time.time()})
    return run


def _status(path: Path, fingerprint: str) -> str | None:
    try:
        state = json.loads((path / "state.json").read_text())
    except (OSError, ValueError):
        return None
    return str(state.get("status")) if state.get("fingerprint") == fingerprint else None


def _hold(path: Path, stack: contextlib.ExitStack) -> bool:
    descriptor = os.open(path / "run.lock", os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    stack.callback(os.close, descriptor)
    return True
