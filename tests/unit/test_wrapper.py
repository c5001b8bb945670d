"""The Ansible wrapper: ansible-runner's events become ours, failures keep their cause, secrets stay out."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from builder.build import wrapper
from builder.model.event import Event

# Recorded from ansible-core 2.19.14 under ansible-runner 2.4.3, cut to what is read and to what must not be.
TASK_START: dict[str, Any] = {
    "event": "playbook_on_task_start",
    "created": "2026-11-24T06:24:38.036",
    "event_data": {
        "task": "Install the packages",
        "role": "base",
        "task_path": "/p/base.yml:5",
        "is_conditional": False,
    },
}
CHANGED: dict[str, Any] = {
    "event": "runner_on_ok",
    "event_data": {
        "task": "Install the packages",
        "role": "base",
        "host": "default",
        "task_path": "/p/base.yml:5",
        "duration": 0.494321,
        "res": {"changed": True, "stdout": "hello", "invocation": {"module_args": {"_raw_params": "echo hello"}}},
    },
}
STATS: dict[str, Any] = {
    "event": "playbook_on_stats",
    "event_data": {
        "ok": {"default": 5},
        "changed": {"default": 2},
        "failures": {"default": 1},
        "dark": {},
        "skipped": {},
    },
}


def failed(result: dict[str, Any], **fields: Any) -> dict[str, Any]:
    data = {"task": "Fails", "host": "default", "task_path": "/p/node.yml:9", "duration": 0.03, "ignore_errors": None}
    return {"event": "runner_on_failed", "event_data": data | {"res": result} | fields}


def only(event: dict[str, Any]) -> dict[str, Any]:
    row = wrapper.translate(event)
    assert row is not None
    assert row[0] == "task"
    return row[1]


def test_a_started_task_has_its_name_and_role() -> None:
    assert wrapper.translate(TASK_START) == ("task_start", {"task": "Install the packages", "role": "base"})


def test_a_changed_task_has_every_field_of_the_contract() -> None:
    assert only(CHANGED) == {
        "task": "Install the packages",
        "role": "base",
        "host": "default",
        "result": "changed",
        "seconds": 0.49,
        "path": "/p/base.yml:5",
    }


def test_stats_are_summed_over_hosts() -> None:
    assert wrapper.translate(STATS) == ("stats", {"ok": 5, "changed": 2, "failed": 1, "unreachable": 0, "skipped": 0})


@pytest.mark.parametrize("name", ["playbook_on_start", "runner_on_start", "runner_item_on_ok", "verbose"])
def test_events_that_nobody_reads_are_left_out(name: str) -> None:
    assert wrapper.translate({"event": name, "event_data": {"task": "x"}}) is None


def test_an_ignored_failure_is_not_a_failure() -> None:
    assert only(failed({"msg": "no"}, ignore_errors=True))["result"] == "ignored"


def test_a_failed_command_keeps_the_last_thirty_lines_with_stderr_at_the_end() -> None:
    printed = "\n".join(f"line {number}" for number in range(60))
    row = only(failed({"msg": "non-zero return code", "rc": 1, "stdout": printed, "stderr": "E: no space"}))
    assert row["message"] == "non-zero return code"
    assert row["stderr"].splitlines() == [f"line {number}" for number in range(31, 60)] + ["E: no space"]


def test_a_crashed_module_says_why() -> None:
    row = only(failed({"msg": "MODULE FAILURE", "module_stderr": "sh: 1: python3: not found\r\n", "module_stdout": ""}))
    assert row["stderr"] == "sh: 1: python3: not found"


def test_a_missing_traceback_is_no_output() -> None:
    assert only(failed({"msg": "no", "exception": "(traceback unavailable)"}))["stderr"] == ""


def test_failed_items_of_a_loop_are_named_with_their_output() -> None:
    items = [
        {"item": "a", "changed": False, "stdout": "fine"},
        {"item": "b", "failed": True, "msg": "non-zero return code", "stderr": "b is wrong"},
        {"censored": "the output has been hidden"},
    ]
    row = only(failed({"msg": "One or more items failed", "results": items}))
    assert row["message"] == "One or more items failed\nitem b: non-zero return code"
    assert row["stderr"] == "b is wrong"


def test_a_censored_failure_says_that_it_is_censored() -> None:
    assert only(failed({"censored": "the output has been hidden"}))["message"] == "the output has been hidden"


def test_an_unreachable_host_has_its_message() -> None:
    event = failed({"msg": "Failed to connect to the host via ssh", "unreachable": True}) | {
        "event": "runner_on_unreachable"
    }
    row = only(event)
    assert (row["result"], row["message"]) == ("unreachable", "Failed to connect to the host via ssh")


def journal(folder: Path, *secrets: str) -> wrapper.Journal:
    return wrapper.Journal(folder / "events.jsonl", "node", secrets)


def test_the_journal_writes_valid_events_and_one_line_a_task(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sink = journal(tmp_path)
    assert [sink.take(event) for event in (TASK_START, CHANGED, STATS)] == [False, False, False]
    events = [Event.model_validate_json(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(event.kind, event.stage) for event in events] == [
        ("task_start", "node"),
        ("task", "node"),
        ("stats", "node"),
    ]
    assert capsys.readouterr().out == "changed        0.49 s  base : Install the packages\n"
    assert sink.failed_tasks == 0


def test_secrets_reach_neither_the_event_file_nor_the_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = 'pass"word\nwith two lines'
    names = {"BUILD_IMAGE_SECRETS": "TOKEN, OTHER", "TOKEN": secret, "OTHER": "abc"}
    sink = journal(tmp_path, *wrapper.secret_values(names))
    sink.take(failed({"msg": f"token was {secret}", "stderr": "it was\nwith two lines\n"}))
    written = (tmp_path / "events.jsonl").read_text()
    assert json.loads(written)["data"]["message"] == "token was ***"
    for text in (written, capsys.readouterr().out):
        assert "word" not in text
        assert "with two lines" not in text
    assert sink.failed_tasks == 1


def test_short_values_are_not_masked_and_longer_ones_come_first() -> None:
    names = {"BUILD_IMAGE_SECRETS": "A,B,C,MISSING", "A": "abcd", "B": "abcdef", "C": "yes"}
    assert wrapper.secret_values(names) == ("abcdef", "abcd")
    assert wrapper.masked({"x": ["abcdef", 3, {"y": "abcd."}]}, ("abcdef", "abcd")) == {"x": ["***", 3, {"y": "***."}]}


def test_output_outside_of_tasks_is_kept_for_the_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sink = journal(tmp_path, "hunter22")
    sink.take({"event": "error", "stdout": "[ERROR]: the role 'bse' was not found\n\nhunter22", "event_data": {}})
    assert list(sink.tail) == ["[ERROR]: the role 'bse' was not found", "hunter22"]
    assert capsys.readouterr().out == "[ERROR]: the role 'bse' was not found\n***\n"


def test_the_private_folder_leaves_room_for_a_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/var/tmp")
    assert wrapper.short_temporary_folder() == "/var/tmp"
    monkeypatch.setattr(tempfile, "tempdir", "/var/lib/" + "x" * 80)
    assert wrapper.short_temporary_folder() == "/tmp"


@pytest.mark.parametrize("arguments", [[], ["--version"]])
def test_questions_go_straight_to_ansible_playbook(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    asked: list[list[str]] = []

    class Gone(Exception):
        pass

    def execvp(_file: str, words: list[str]) -> None:
        asked.append(words)
        raise Gone

    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setattr("os.execvp", execvp)
    with pytest.raises(Gone):
        wrapper.main(arguments)
    assert asked == [["ansible-playbook", *arguments]]


def test_a_failure_outside_of_tasks_becomes_a_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def play(_argv: Any, folder: Path, sink: wrapper.Journal) -> tuple[str, int]:
        assert folder.stat().st_mode & 0o777 == 0o700
        sink.take({"event": "error", "stdout": "[ERROR]: not found"})
        return "failed", 1

    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setenv("BUILD_IMAGE_EVENTS", str(tmp_path / "events.jsonl"))
    monkeypatch.setenv("BUILD_IMAGE_STAGE", "base")
    monkeypatch.setattr(wrapper, "play", play)
    assert wrapper.main(["-i", "localhost,", "base.yml"]) == 1
    event = Event.model_validate_json((tmp_path / "events.jsonl").read_text())
    assert (event.kind, event.stage, event.data["where"]) == ("problem", "base", "base.yml")
    assert "[ERROR]: not found" in event.data["what"]
