"""Why a Packer build failed, from what it left: the result, its log, Ansible's events, the console of the guest."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.build.packerlog import plain, readable
from builder.build.render import RUN_VALUES, StageFolder
from builder.core.errors import Problem
from builder.core.events import read_lines
from builder.core.run import TAIL_LINES
from builder.core.tools import free_bytes

SCARCE_BYTES = 128 << 20
ERRORED = re.compile(r"^Build '[^']+' errored after ")
# Colours and cursor movements of a console.
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|[\x00-\x08\x0b-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a failed build left, read once."""

    folder: StageFolder
    stage: str
    code: int
    log: tuple[str, ...]
    events: tuple[dict[str, Any], ...]

    def has(self, *texts: str) -> bool:
        """Say whether one of the texts stands in the log, in any case of letters."""
        return any(text.lower() in line.lower() for line in self.log for text in texts)


def failure_cause(folder: StageFolder, stage: str, code: int) -> list[Problem]:
    """Return what made a build of a stage fail, the cause first; never empty. Reads files only.

    `code` is the result of the job: Packer's exit code, or 128 and the number of the signal that killed it.
    """
    log = tuple(plain(line) for line in readable(_lines(folder.packer_log)))
    evidence = Evidence(folder, stage, code, log, tuple(_events(folder, stage)))
    for cause in CAUSES:
        problems = cause(evidence)
        if problems:
            return problems
    said = [line.partition(": ")[2] for line in log if line.startswith("--> ")]
    before = log[: next((at for at, line in enumerate(log) if ERRORED.match(line)), len(log))]
    head = f"Packer failed (exit code {code})" + (f": {said[0]}" if said else "")
    hint = f"more is in {folder.path / 'packer.debug.log'}"
    return [Problem(_text(head, before[-TAIL_LINES:]), str(folder.packer_log), hint)]


def _no_space(evidence: Evidence) -> list[Problem]:
    logged = evidence.has("no space left on device")
    failed = [row["data"] for row in evidence.events if row["kind"] == "task" and row["data"]["result"] == "failed"]
    in_guest = any("no space left on device" in json.dumps(row).lower() for row in failed)
    free = free_bytes(evidence.folder.path)
    if free < SCARCE_BYTES or (logged and not in_guest):
        what = f"no space left on the disk of this machine ({free >> 20} MiB free)"
        hint = "free space there, or put run folders elsewhere with --state DIR"
        return [Problem(what, str(evidence.folder.path), hint)]
    if in_guest:
        what = "the disk of the image is full"
        return [Problem(_text(what, _task_lines(failed[-1])), "disk.size_gib", "--set disk.size_gib=16")]
    return []


def _killed(evidence: Evidence) -> list[Problem]:
    if evidence.code <= 128:
        return []
    number = evidence.code - 128
    name = signal.Signals(number).name if number in set(signal.Signals) else str(number)
    what = _text(f"Packer was killed by signal {number} ({name})", evidence.log[-5:])
    hint = "out of memory? 'dmesg | tail' says so; qemu.memory_mib lowers what a guest takes"
    return [Problem(what, str(evidence.folder.packer_log), hint if number == signal.SIGKILL else "")]


def _ansible(evidence: Evidence) -> list[Problem]:
    rows = [row for row in evidence.events if _is_failure(row)]
    if not rows:
        return []
    data = rows[-1]["data"]
    if rows[-1]["kind"] == "problem":
        return [Problem(data["what"], data.get("where", ""), data.get("hint", ""))]
    task = " : ".join(part for part in (data["role"], data["task"]) if part)
    how = "could not reach the machine" if data["result"] == "unreachable" else "failed"
    hint = f"every task is in {evidence.folder.packer_log}; --keep-on-failure keeps the disk"
    return [Problem(_text(f"task '{task}' {how}", _task_lines(data)), data.get("path", ""), hint)]


def _is_failure(row: dict[str, Any]) -> bool:
    return row["kind"] == "problem" or (row["kind"] == "task" and row["data"]["result"] in ("failed", "unreachable"))


def _task_lines(data: dict[str, Any]) -> list[str]:
    lines = [*str(data.get("message", "")).splitlines(), *str(data.get("stderr", "")).splitlines()]
    return lines[-TAIL_LINES:]


def _ssh_timeout(evidence: Evidence) -> list[Problem]:
    if not evidence.has("Timeout waiting for SSH", "Timeout during SSH handshake"):
        return []
    console = console_tail(evidence.folder.serial_log)
    seen = "the end of its console:" if console else "its console is empty: it did not get as far as the kernel"
    return [
        Problem(
            _text(f"the guest did not answer ssh within {_value(evidence.folder, 'ssh_timeout')}; {seen}", console),
            str(evidence.folder.serial_log),
            "a slow machine needs --set qemu.ssh_timeout_s=1800",
        )
    ]


def _qemu(evidence: Evidence) -> list[Problem]:
    if not evidence.has("Qemu failed to start", "Error launching VM", "Error starting VM"):
        return []
    debug = _lines(evidence.folder.path / "packer.debug.log")
    said = [line.partition("Qemu stderr: ")[2] for line in debug if "Qemu stderr: " in line]
    where = str(evidence.folder.path / "packer.debug.log")
    return [Problem(_text("QEMU did not start", said[-TAIL_LINES:]), where, "'build-image doctor' checks QEMU")]


def _checksum(evidence: Evidence) -> list[Problem]:
    if not evidence.has("Checksums did not match"):
        return []
    lines = [line for line in evidence.log if line.startswith(("Checksums did not", "Expected:", "Got:"))]
    source = str(_value(evidence.folder, "source_url"))
    return [
        Problem(_text("the source disk does not have its sha256", lines), source, "base.sha256 and base.url differ")
    ]


def _shutdown(evidence: Evidence) -> list[Problem]:
    if not evidence.has("Timeout while waiting for machine to shut down", "Failed to send shutdown command"):
        return []
    console = console_tail(evidence.folder.serial_log)
    what = _text("the guest did not shut down; the end of its console:", console)
    return [Problem(what, str(evidence.folder.serial_log))]


def _interrupted(evidence: Evidence) -> list[Problem]:
    if not evidence.has("builds after being interrupted"):
        return []
    return [Problem("the build was interrupted", str(evidence.folder.packer_log), "type the same command again")]


def _helper(evidence: Evidence) -> list[Problem]:
    lines = [line for line in evidence.log if line.startswith(("the helper ", "nothing answered ", "cannot start "))]
    return [Problem(lines[-1], str(evidence.folder.packer_log))] if evidence.code == 125 and lines else []


# In this order: an interrupt, a full disk and a kill make tasks fail too, and a failed task is what makes Packer fail.
CAUSES: tuple[Callable[[Evidence], list[Problem]], ...] = (
    _helper,
    _interrupted,
    _no_space,
    _killed,
    _ansible,
    _ssh_timeout,
    _qemu,
    _checksum,
    _shutdown,
)


def console_tail(path: Path, lines: int = TAIL_LINES) -> list[str]:
    """Return the last lines of a console log that have text, without control characters."""
    cleaned = (CONTROL.sub("", line).rstrip() for line in _lines(path))
    return [line for line in cleaned if line][-lines:]


def _text(head: str, lines: Sequence[str]) -> str:
    return "\n".join([head, *(f"  | {line}" for line in lines)])


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []


def _value(folder: StageFolder, name: str) -> Any:
    try:
        return json.loads((folder.path / RUN_VALUES).read_text()).get(name, "")
    except (OSError, ValueError):
        return ""


def _events(folder: StageFolder, stage: str) -> list[dict[str, Any]]:
    """Return the events of the last build in this folder: an earlier attempt's failures explain nothing."""
    path = Path(str(_value(folder, "events")))
    specification = folder.job / "spec.json"
    since = specification.stat().st_mtime if specification.exists() else 0.0
    rows: list[dict[str, Any]] = []
    for line, _ in read_lines(path, 0) if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row.get("stage") == stage and row["time"] >= since:
            rows.append(row)
    return rows
