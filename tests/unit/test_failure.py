"""Each way a build fails has its own words: the cause, its last lines, where to look, what to do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from builder.build import failure
from builder.build.failure import console_tail, failure_cause
from builder.build.packerlog import LogFollower, plain, readable, step_text
from builder.build.render import RUN_VALUES, StageFolder
from builder.core.errors import Problem

# Recorded from Packer 1.9.4 with -timestamp-ui, shortened.
BEGIN = """Warning: Bundled plugins used

This template relies on the use of plugins bundled into the Packer binary.

packer {
  required_plugins {
    qemu = {
      source  = "github.com/hashicorp/qemu"
      version = "~> 1"
    }
  }
}

Then run 'packer init' to manage installation of the plugins


2026-11-24T06:41:47Z: ==> qemu.node: Retrieving ISO
2026-11-24T06:41:47Z: ==> qemu.node: Trying /cache/base.qcow2
2026-11-24T06:41:47Z: ==> qemu.node: Starting VM, booting disk image
2026-11-24T06:41:47Z:     qemu.node: The VM will be run headless, without a GUI. If you want to
    qemu.node: view the screen of the VM, connect via VNC without a password to
"""
END = """2026-11-24T06:43:59Z: Build 'qemu.node' errored after 2 minutes 11 seconds: {error}

==> Wait completed after 2 minutes 11 seconds

==> Some builds didn't complete successfully and had errors:
--> qemu.node: {error}

==> Builds finished but no artifacts were created.
"""
ANSIBLE = "Error executing Ansible: Non-zero exit status: exit status 2"


class Run:
    """A stage folder with the files that a failed build leaves."""

    def __init__(self, path: Path) -> None:
        self.folder = StageFolder(path / "node")
        self.events = path / "events.jsonl"
        self.folder.job.mkdir(parents=True)
        values = {"events": str(self.events), "ssh_timeout": "900s", "source_url": "/cache/base.qcow2"}
        (self.folder.path / RUN_VALUES).write_text(json.dumps(values))

    def log(self, error: str, more: str = "") -> None:
        self.folder.packer_log.write_text(BEGIN + more + END.format(error=error))

    def event(self, kind: str, time: float = 2e9, stage: str = "node", **data: Any) -> None:
        with self.events.open("a") as file:
            file.write(json.dumps({"time": time, "kind": kind, "stage": stage, "data": data}) + "\n")

    def failed_task(self, message: str, stderr: str = "", **fields: Any) -> None:
        row = {"role": "containerd", "task": "Install", "result": "failed", "path": "/p/main.yml:3", "seconds": 1.0}
        self.event("task", message=message, stderr=stderr, **{**row, **fields})

    def cause(self, code: int = 1) -> Problem:
        problems = failure_cause(self.folder, "node", code)
        assert len(problems) == 1
        return problems[0]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(failure, "free_bytes", lambda _: 50 << 30)
    return Run(tmp_path)


def test_a_failed_task(run: Run) -> None:
    run.log(ANSIBLE)
    run.failed_task("non-zero return code", "\n".join(f"line {number}" for number in range(60)))
    found = run.cause()
    assert found.what.splitlines()[0] == "task 'containerd : Install' failed"
    assert found.what.splitlines()[1:] == [f"  | line {number}" for number in range(30, 60)]
    assert found.where == "/p/main.yml:3"
    assert "--keep-on-failure" in found.hint


def test_a_machine_that_went_away(run: Run) -> None:
    run.log(ANSIBLE)
    run.failed_task("Connection timed out", result="unreachable")
    assert run.cause().what == "task 'containerd : Install' could not reach the machine\n  | Connection timed out"


def test_a_playbook_that_failed_before_its_first_task(run: Run) -> None:
    run.log(ANSIBLE)
    run.event("problem", what="ansible-playbook failed outside of a task\nERROR! no such role", where="/p/node.yml")
    assert run.cause() == Problem("ansible-playbook failed outside of a task\nERROR! no such role", "/p/node.yml", "")


def test_failures_of_an_earlier_attempt_or_of_another_stage_explain_nothing(run: Run) -> None:
    (run.folder.job / "spec.json").write_text("{}")
    run.log("something else")
    run.failed_task("old", time=1.0)
    run.failed_task("other", stage="base")
    assert run.cause().what.startswith("Packer failed (exit code 1): something else")


def test_a_task_whose_failure_was_ignored_is_not_the_cause(run: Run) -> None:
    run.log("something else")
    run.failed_task("never mind", result="ignored")
    assert "never mind" not in run.cause().what


@pytest.mark.parametrize("text", ["Timeout waiting for SSH.", "Timeout during SSH handshake"])
def test_a_guest_that_does_not_answer(run: Run, text: str) -> None:
    run.log(text, f"2026-11-24T06:43:59Z: ==> qemu.node: {text}\n")
    run.folder.serial_log.write_bytes(b"\x1b[2J\x1b[01;01H[   12.0] Kernel panic - not syncing\r\n\r\n")
    found = run.cause()
    assert found.what == (
        "the guest did not answer ssh within 900s; the end of its console:\n  | [   12.0] Kernel panic - not syncing"
    )
    assert "qemu.ssh_timeout_s" in found.hint


def test_a_guest_with_an_empty_console(run: Run) -> None:
    run.log("Timeout waiting for SSH.")
    assert "its console is empty" in run.cause().what


@pytest.mark.parametrize(("code", "name", "hinted"), [(137, "SIGKILL", True), (139, "SIGSEGV", False)])
def test_a_killed_packer(run: Run, code: int, name: str, hinted: bool) -> None:
    run.folder.packer_log.write_text(BEGIN)
    run.failed_task("interrupted by the same kill")
    found = run.cause(code)
    assert found.what.startswith(f"Packer was killed by signal {code - 128} ({name})")
    assert bool(found.hint) is hinted


def test_a_full_disk_of_this_machine(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failure, "free_bytes", lambda _: 3 << 20)
    run.log(ANSIBLE)
    run.failed_task("Input/output error")
    assert run.cause().what == "no space left on the disk of this machine (3 MiB free)"


def test_a_full_disk_that_packer_met(run: Run) -> None:
    run.log("Error creating hard drive: QemuImg error: out: No space left on device")
    assert run.cause().what.startswith("no space left on the disk of this machine")


def test_a_full_disk_in_the_image(run: Run) -> None:
    run.log(ANSIBLE, "2026-11-24T06:43:34Z:     qemu.node: tar: write error: No space left on device\n")
    run.failed_task("tar: write error: No space left on device")
    found = run.cause()
    assert found.what.splitlines()[0] == "the disk of the image is full"
    assert found.where == "disk.size_gib"


def test_qemu_that_does_not_start(run: Run) -> None:
    run.log("Error launching VM: Qemu failed to start. Please run with PACKER_LOG=1 to get more info.")
    debug = "2026/11/24 06:41:50 packer-builder-qemu plugin: Qemu stderr: qemu: unable to find CPU model 'z80'\n"
    (run.folder.path / "packer.debug.log").write_text(debug)
    assert run.cause().what == "QEMU did not start\n  | qemu: unable to find CPU model 'z80'"


def test_a_source_with_another_checksum(run: Run) -> None:
    lines = "Checksums did not match for /cache/base.qcow2.\n    qemu.node: Expected: 00\n    qemu.node: Got: ff\n"
    run.log("error downloading ISO", f"2026-11-24T06:41:48Z: ==> qemu.node: {lines}")
    found = run.cause()
    assert found.where == "/cache/base.qcow2"
    assert found.what.endswith("  | Expected: 00\n  | Got: ff")


def test_a_guest_that_does_not_shut_down(run: Run) -> None:
    run.log("Timeout while waiting for machine to shut down.")
    run.folder.serial_log.write_text("A stop job is running\n")
    assert run.cause().what.endswith("  | A stop job is running")


def test_a_helper_that_did_not_come_up(run: Run) -> None:
    run.folder.packer_log.write_text("the helper setpriv ended at once, see /x/box.log\n")
    assert run.cause(125).what == "the helper setpriv ended at once, see /x/box.log"


def test_an_interrupt_that_an_earlier_process_got(run: Run) -> None:
    run.log("build was cancelled", "Cleanly cancelled builds after being interrupted.\n")
    run.failed_task("stopped")
    assert run.cause().what == "the build was interrupted"


def test_anything_else_shows_the_last_lines_before_the_end(run: Run) -> None:
    run.log("Error finding port: none")
    found = run.cause()
    assert found.what.splitlines()[0] == "Packer failed (exit code 1): Error finding port: none"
    assert "Starting VM, booting disk image" in found.what
    assert "Builds finished" not in found.what
    assert "bundled" not in found.what


def test_no_log_at_all(run: Run) -> None:
    assert run.cause().what == "Packer failed (exit code 1)"


def test_a_console_is_shown_without_control_characters(tmp_path: Path) -> None:
    path = tmp_path / "serial.log"
    path.write_bytes(b"\x1b[0;32m OK \x1b[0m Reached\r\r\n\x00\n" + b"last\r\n")
    assert console_tail(path) == [" OK  Reached", "last"]
    assert console_tail(path, 1) == ["last"]


STEP_CASES: Sequence[tuple[str, str | None]] = [
    ("2026-11-24T06:41:47Z: ==> qemu.node: Connected to SSH!", "Connected to SSH!"),
    ("==> null.base: Provisioning with Ansible...", "Provisioning with Ansible..."),
    (
        "2026-11-24T06:41:47Z: ==> qemu.node: Executing Ansible: /r/ansible -e a=b -i /t/x /p/node.yml",
        "Running node.yml",
    ),
    ("2026-11-24T06:41:47Z: ==> qemu.node: Trying /cache/base.qcow2", None),
    ("2026-11-24T06:41:47Z:     qemu.node: changed  1.0 s  x", None),
    ("==> Wait completed after 2 minutes", None),
    ("", None),
]


@pytest.mark.parametrize(("line", "text"), STEP_CASES)
def test_steps_of_a_log(line: str, text: str | None) -> None:
    assert step_text(line) == text


def test_the_advice_on_bundled_plugins_is_left_out() -> None:
    assert next(iter(readable(BEGIN.splitlines()))) == "==> qemu.node: Retrieving ISO"


def test_a_line_without_its_source() -> None:
    assert plain("    qemu.node: ok   1.0 s") == "ok   1.0 s"
    assert plain("==> qemu.node: Connected") == "Connected"
    assert plain("anything") == "anything"


def test_every_step_becomes_one_event_though_the_reader_is_made_anew(tmp_path: Path) -> None:
    log, events, mark = tmp_path / "packer.log", tmp_path / "events.jsonl", tmp_path / "mark"
    lines = [f"==> qemu.node: step {number}\n" for number in range(4)]
    LogFollower(log, events, "node", mark).follow()
    log.write_text(lines[0] + lines[1] + lines[2][:12])
    LogFollower(log, events, "node", mark).follow()
    log.write_text("".join(lines))
    again = LogFollower(log, events, "node", mark)
    again.follow()
    again.follow()
    assert [json.loads(line)["data"]["text"] for line in events.read_text().splitlines()] == [
        f"step {number}" for number in range(4)
    ]
