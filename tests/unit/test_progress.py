"""Progress: one picture of the events, three ways to show it, nothing on stdout."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from builder.build.progress import Follower, Lines, Live, RunView, Style, choose_style, draw, duration, shown

START = 1_795_500_000.0
EVENTS: list[dict[str, Any]] = [
    {"time": START, "kind": "run_start", "stage": "", "data": {"target": "debian-12-v1.34.3-qemu", "run_id": "r"}},
    {"time": START, "kind": "stage_start", "stage": "base", "data": {"why": "no base is cached"}},
    {"time": START + 2, "kind": "step", "stage": "base", "data": {"text": "Connected to SSH!"}},
    {"time": START + 3, "kind": "task_start", "stage": "base", "data": {"task": "Install", "role": "base"}},
    {
        "time": START + 50,
        "kind": "task",
        "stage": "base",
        "data": {"task": "Install", "role": "base", "result": "changed", "seconds": 47.0},
    },
    {
        "time": START + 51,
        "kind": "task",
        "stage": "base",
        "data": {"task": "Look", "role": "base", "result": "ok", "seconds": 0.5},
    },
    {"time": START + 60, "kind": "stage_end", "stage": "base", "data": {"status": "done", "seconds": 60.0}},
    {"time": START + 60, "kind": "stage_start", "stage": "node", "data": {"why": "it was asked for"}},
    {"time": START + 61, "kind": "task_start", "stage": "node", "data": {"task": "Copy [all]", "role": "kubernetes"}},
]
FAILED = {
    "time": START + 70,
    "kind": "task",
    "stage": "node",
    "data": {"task": "Copy [all]", "role": "kubernetes", "result": "failed", "seconds": 9.0, "message": "no"},
}


def lines(style: Style, verbose: bool = False, events: list[dict[str, Any]] = EVENTS) -> list[str]:
    stream = io.StringIO()
    renderer = Lines(stream, style, verbose)
    for event in events:
        renderer.event(event)
    renderer.tick()
    renderer.close()
    return stream.getvalue().split("\n")[:-1]


def test_plain_lines_have_the_time_and_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.localtime", __import__("time").gmtime)
    assert [line.split(" ", 1)[1] for line in lines("plain")] == [
        "base: no base is cached",
        "base: Connected to SSH!",
        "base: changed       47 s  base : Install",
        "base: done in 1 min 00 s",
        "node: it was asked for",
    ]
    assert all(line[2] == line[5] == ":" for line in lines("plain"))


def test_quick_tasks_that_change_nothing_are_shown_when_asked() -> None:
    assert not [line for line in lines("plain") if "Look" in line]
    assert [line for line in lines("plain", verbose=True) if "Look" in line]


def test_github_folds_every_stage_and_closes_the_last() -> None:
    assert lines("github") == [
        "::group::base: no base is cached",
        "Connected to SSH!",
        "changed       47 s  base : Install",
        "::endgroup::",
        "base: done in 1 min 00 s",
        "::group::node: it was asked for",
        "::endgroup::",
    ]


def test_gitlab_folds_every_stage_and_closes_the_last() -> None:
    found = lines("gitlab")
    assert found[0] == f"\x1b[0Ksection_start:{int(START)}:base\r\x1b[0Kbase: no base is cached"
    assert found[3] == f"\x1b[0Ksection_end:{int(START) + 60}:base\r\x1b[0K"
    assert found[-1].startswith("\x1b[0Ksection_end:")


def test_a_failed_task_is_always_shown() -> None:
    assert any("failed       9.0 s  kubernetes : Copy [all]" in line for line in lines("github", events=[FAILED]))


def picture(events: list[dict[str, Any]], now: float) -> str:
    view = RunView()
    for event in events:
        view.take(event)
    console = Console(file=io.StringIO(), width=80, legacy_windows=False)
    with console.capture() as capture:
        console.print(draw(view, now))
    return capture.get()


def test_the_live_view_shows_stages_and_the_current_task_with_its_time() -> None:
    rows = [row.split() for row in picture(EVENTS, START + 76).splitlines()]
    assert rows[0] == ["✓", "base", "1", "min", "00", "s", "2", "tasks,", "1", "changed"]
    assert rows[1][1:] == ["node", "16", "s", "it", "was", "asked", "for"]
    assert rows[2] == ["15", "s", "kubernetes", ":", "Copy", "[all]"]


def test_the_live_view_moves() -> None:
    assert picture(EVENTS, START + 76.0).splitlines()[1][0] != picture(EVENTS, START + 76.2).splitlines()[1][0]


def test_a_resumed_stage_starts_anew() -> None:
    again = {"time": START + 100, "kind": "stage_start", "stage": "base", "data": {"why": "again"}}
    view = RunView()
    for event in [*EVENTS, again]:
        view.take(event)
    assert (view.stages["base"].status, view.stages["base"].seconds) == ("", None)


def test_the_live_view_prints_failures_above_itself() -> None:
    stream = io.StringIO()
    live = Live(stream)
    for event in [*EVENTS, FAILED]:
        live.event(event)
    live.close()
    assert "failed       9.0 s  kubernetes : Copy [all]" in stream.getvalue()
    assert "changed       47 s" not in stream.getvalue()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("terminal", "environment", "style"),
    [
        (True, {"TERM": "xterm"}, "live"),
        (True, {"TERM": "dumb"}, "plain"),
        (True, {}, "plain"),
        (False, {"TERM": "xterm"}, "plain"),
        (True, {"TERM": "xterm", "CI": "true"}, "plain"),
        (True, {"TERM": "xterm", "GITHUB_ACTIONS": "true"}, "github"),
        (False, {"GITLAB_CI": "true", "CI": "true"}, "gitlab"),
    ],
)
def test_the_style_follows_ci_then_terminal(terminal: bool, environment: Mapping[str, str], style: Style) -> None:
    assert choose_style(Terminal() if terminal else io.StringIO(), environment) == style


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (10, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (65, "1 min 05 s")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_hours() -> None:
    assert duration(3_725) == "1 h 02 min"


def test_everything_is_shown_before_the_block_ends_and_broken_lines_are_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, stream = tmp_path / "events.jsonl", io.StringIO()
    with shown(path, stream, environment={}):
        path.write_text("{broken\n" + "".join(json.dumps(event) + "\n" for event in EVENTS))
    assert "base: done in 1 min 00 s" in stream.getvalue()
    assert capsys.readouterr().out == ""


def test_a_line_that_is_being_written_is_read_when_it_is_whole(tmp_path: Path) -> None:
    path, stream = tmp_path / "events.jsonl", io.StringIO()
    follower = Follower(path, Lines(stream, "github"))
    line = json.dumps(EVENTS[2]) + "\n"
    for size in (10, len(line), len(line)):
        path.write_text(line[:size])
        follower.step()
    assert stream.getvalue() == "Connected to SSH!\n"
