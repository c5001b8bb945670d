"""The wrapper around the real Ansible: live events, exit codes, signals, secrets, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from builder.core.run import Completed, Spec, run, spawn
from builder.model.event import Event

ROOT = Path(__file__).resolve().parents[2]
SECRET = 'hunter"22\nsecond line'


def command(folder: Path, tasks: list[dict[str, Any]]) -> list[str]:
    playbook = folder / "playbook.yml"
    playbook.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    python = f"ansible_python_interpreter={sys.executable}"
    return [
        sys.executable,
        "-m",
        "builder.build.wrapper",
        "-c",
        "local",
        "-i",
        "localhost,",
        "-e",
        python,
        str(playbook),
    ]


def environment(folder: Path) -> dict[str, str]:
    (folder / "tmp").mkdir(exist_ok=True)
    return {
        "PYTHONPATH": str(ROOT),
        "TMPDIR": str(folder / "tmp"),
        "BUILD_IMAGE_EVENTS": str(folder / "events.jsonl"),
        "BUILD_IMAGE_STAGE": "base",
        "BUILD_IMAGE_SECRETS": "TOKEN",
        "TOKEN": SECRET,
    }


def wrapped(folder: Path, tasks: list[dict[str, Any]]) -> Completed:
    return run(command(folder, tasks), Spec(env=environment(folder), cwd=folder, check=False, timeout=120))


def events(folder: Path) -> list[Event]:
    return [Event.model_validate_json(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_a_run_that_works(tmp_path: Path) -> None:
    task = {"name": "Say hello", "ansible.builtin.command": "echo hello"}
    done = wrapped(tmp_path, [task])
    assert done.returncode == 0
    assert "changed" in done.stdout
    kinds = [(event.kind, event.stage) for event in events(tmp_path)]
    assert kinds == [("task_start", "base"), ("task", "base"), ("stats", "base")]
    assert events(tmp_path)[-1].data["changed"] == 1


def test_a_failure_keeps_its_cause_and_its_exit_code_but_no_secret(tmp_path: Path) -> None:
    script = 'echo on stdout; echo "$TOKEN" >&2; exit 3'
    done = wrapped(tmp_path, [{"name": "Break", "ansible.builtin.shell": script}])
    assert done.returncode == 2
    failed = next(event.data for event in events(tmp_path) if event.kind == "task")
    assert (failed["result"], failed["message"]) == ("failed", "non-zero return code")
    assert failed["stderr"] == "on stdout\n***"
    for text in (done.stdout, "\n".join(done.tail), (tmp_path / "events.jsonl").read_text()):
        assert "hunter" not in text
        assert "second line" not in text


def test_a_playbook_that_cannot_start_is_a_problem_with_its_reason(tmp_path: Path) -> None:
    done = wrapped(tmp_path, [{"name": "Unknown", "no.such.module": {}}])
    assert done.returncode != 0
    problem = events(tmp_path)[-1]
    assert problem.kind == "problem"
    assert "couldn't resolve module/action 'no.such.module'" in problem.data["what"]


def test_a_signal_stops_it_and_leaves_nothing(tmp_path: Path) -> None:
    process = spawn(
        command(tmp_path, [{"name": "Wait", "ansible.builtin.command": "sleep 15"}]),
        Spec(env=environment(tmp_path), cwd=tmp_path, log=tmp_path / "log"),
    )
    end = time.monotonic() + 60
    while not (tmp_path / "events.jsonl").exists():
        assert process.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < end
        time.sleep(0.1)
    time.sleep(1)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(20) == 130
    # What Ansible puts on the machine that it manages, this one here, goes with that machine.
    assert list((tmp_path / "tmp").glob("ansible-*")) == []
    assert not run(["pgrep", "-f", f"ansible-playbook.*{tmp_path}"], Spec(check=False)).stdout


def test_the_version_is_what_packer_can_read(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "builder.build.wrapper", "--version"]
    done = run(argv, Spec(env={"PYTHONPATH": str(ROOT)}, cwd=tmp_path))
    assert done.stdout.startswith("ansible-playbook [core 2.19.")
