"""What a person sees while a run goes on: a live view on a terminal, folded lines in CI, dated lines elsewhere."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TextIO

from builder.core.events import read_lines

if TYPE_CHECKING:
    from rich.console import RenderableType

Style = Literal["live", "github", "gitlab", "plain"]
TICK_S = 0.25
SLOW_TASK_S = 10.0
SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
STATUS_SIGNS = {"done": "✓", "failed": "✗"}


@dataclass(slots=True)
class StageView:
    """One stage as far as it is known. Times are seconds since the epoch."""

    name: str
    why: str = ""
    started: float = 0.0
    seconds: float | None = None
    status: str = ""
    step: str = ""
    task: str = ""
    since: float = 0.0
    done: int = 0
    changed: int = 0


@dataclass(slots=True)
class RunView:
    """Everything that events told about a run; the same events always give the same view."""

    target: str = ""
    stages: dict[str, StageView] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def take(self, event: Mapping[str, Any]) -> None:
        """Take in one event (model/event.py)."""
        kind, data, at = str(event["kind"]), event.get("data", {}), float(event["time"])
        if kind == "run_start":
            self.target = str(data.get("target", ""))
            return
        name = str(event.get("stage", ""))
        if not name:
            return
        stage = self.stages.setdefault(name, StageView(name, started=at))
        if kind == "stage_start":
            stage.why, stage.started, stage.seconds, stage.status = str(data.get("why", "")), at, None, ""
        elif kind == "stage_end":
            stage.seconds, stage.status = float(data.get("seconds", 0)), str(data.get("status", ""))
            stage.step = stage.task = ""
        elif kind == "step":
            stage.step, stage.task, stage.since = str(data.get("text", "")), "", at
        elif kind == "task_start":
            stage.task, stage.since = task_name(data), at
        elif kind == "task":
            stage.done += 1
            stage.changed += data.get("result") == "changed"
            stage.task, stage.since = "", at
        elif kind == "note":
            stage.step, stage.since = str(data.get("text", "")), at


def task_name(data: Mapping[str, Any]) -> str:
    """Return `role : task` as Ansible writes it."""
    return " : ".join(part for part in (str(data.get("role", "")), str(data.get("task", ""))) if part)


def duration(seconds: float) -> str:
    """Return seconds as people read them: 4.2 s, 1 min 05 s, 1 h 02 min."""
    if round(seconds) < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def choose_style(stream: TextIO, environment: Mapping[str, str]) -> Style:
    """Return how to show progress: by the CI system first, then by whether somebody looks at a terminal."""
    if environment.get("GITHUB_ACTIONS") == "true":
        return "github"
    if environment.get("GITLAB_CI") == "true":
        return "gitlab"
    capable = environment.get("TERM", "dumb") != "dumb" and not environment.get("CI")
    return "live" if stream.isatty() and capable else "plain"


def line_text(event: Mapping[str, Any], verbose: bool) -> str | None:
    """Return the line for one event, None for those that are left out; problems are printed as errors at the end."""
    data = event.get("data", {})
    match event["kind"]:
        case "step" | "note":
            return str(data.get("text", ""))
        case "task":
            bad = data.get("result") in ("failed", "unreachable")
            if bad or verbose or data.get("result") == "changed" or data.get("seconds", 0) >= SLOW_TASK_S:
                return f"{data['result']:9} {duration(data['seconds']):>8}  {task_name(data)}"
        case "stats":
            return ", ".join(f"{data[name]} {name}" for name in ("ok", "changed", "failed", "unreachable", "skipped"))
    return None


class Renderer(Protocol):
    """Shows events. `tick` is called several times a second."""

    def event(self, event: Mapping[str, Any]) -> None:
        """Show one event."""
        ...

    def tick(self) -> None:
        """Show that time passes."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was."""
        ...


class Lines:
    """Plain lines: with time stamps, or with the folding of a CI system."""

    def __init__(self, stream: TextIO, style: Style, verbose: bool = False) -> None:
        self.stream = stream
        self.style = style
        self.verbose = verbose
        self.open = ""

    def event(self, event: Mapping[str, Any]) -> None:
        """Print what an event says."""
        stage, data = str(event.get("stage", "")), event.get("data", {})
        at = float(event["time"])
        if event["kind"] == "stage_start":
            self._fold(stage, f"{stage}: {data.get('why', '')}".rstrip(": "), at)
        elif event["kind"] == "stage_end":
            self._unfold(at)
            self._print(at, f"{stage}: {data.get('status', '')} in {duration(float(data.get('seconds', 0)))}")
        else:
            text = line_text(event, self.verbose)
            for line in (text or "").splitlines():
                self._print(at, f"{stage + ': ' if stage and self.style == 'plain' else ''}{line}")

    def tick(self) -> None:
        """Plain lines do not move."""

    def close(self) -> None:
        """End an open fold, so that what follows is seen."""
        self._unfold(time.time())

    def _fold(self, stage: str, title: str, at: float) -> None:
        self._unfold(at)
        self.open = re.sub(r"[^a-z0-9_.-]", "_", stage.lower())
        if self.style == "github":
            self._raw(f"::group::{title}")
        elif self.style == "gitlab":
            # https://docs.gitlab.com/ci/jobs/job_logs/#custom-collapsible-sections
            self._raw(f"\x1b[0Ksection_start:{int(at)}:{self.open}\r\x1b[0K{title}")
        else:
            self._print(at, title)

    def _unfold(self, at: float) -> None:
        if self.open and self.style == "github":
            self._raw("::endgroup::")
        elif self.open and self.style == "gitlab":
            self._raw(f"\x1b[0Ksection_end:{int(at)}:{self.open}\r\x1b[0K")
        self.open = ""

    def _print(self, at: float, text: str) -> None:
        stamp = time.strftime("%H:%M:%S", time.localtime(at))
        self._raw(f"{stamp} {text}" if self.style == "plain" else text)

    def _raw(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


class Live:
    """A view that redraws itself on a terminal: stages, the current step, the current task with its time."""

    def __init__(self, stream: TextIO, verbose: bool = False) -> None:
        from rich.console import Console
        from rich.live import Live as RichLive

        self.view = RunView()
        self.verbose = verbose
        self.console = Console(file=stream, highlight=False)
        self.live = RichLive(console=self.console, auto_refresh=False, transient=False)
        self.live.start()

    def event(self, event: Mapping[str, Any]) -> None:
        """Take an event into the view; failures, and with `verbose` everything, scroll by above it."""
        self.view.take(event)
        text = line_text(event, self.verbose)
        if text and (self.verbose or event.get("data", {}).get("result") in ("failed", "unreachable")):
            self.console.print(text, markup=False)

    def tick(self) -> None:
        """Redraw, with the time that passed."""
        self.live.update(draw(self.view, time.time()), refresh=True)

    def close(self) -> None:
        """Draw a last time and give the terminal back."""
        self.tick()
        self.live.stop()


def draw(view: RunView, now: float) -> RenderableType:
    """Return the picture of a run: one row for each stage, and below it what it is doing."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    table.add_column(width=1)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="ellipsis", no_wrap=True)
    for stage in view.stages.values():
        running = stage.seconds is None
        sign = SPINNER[int(now * 8) % len(SPINNER)] if running else STATUS_SIGNS.get(stage.status, "·")
        passed = now - stage.started if running else stage.seconds or 0.0
        tasks = f"{stage.done} tasks, {stage.changed} changed" if stage.done else ""
        table.add_row(sign, Text(stage.name, style="bold"), duration(passed), Text(tasks or stage.why, style="dim"))
        doing = stage.task or stage.step
        if running and doing:
            table.add_row("", "", duration(now - stage.since), Text(doing))
    return table


class Follower:
    """Reads the event stream of a run as it grows and shows it."""

    def __init__(self, events: Path, renderer: Renderer, offset: int = 0) -> None:
        self.events = events
        self.renderer = renderer
        self.offset = offset

    def step(self) -> None:
        """Show what came since the last call."""
        for line, offset in read_lines(self.events, self.offset):
            self.offset = offset
            with contextlib.suppress(ValueError):
                self.renderer.event(json.loads(line))
        self.renderer.tick()


@contextlib.contextmanager
def shown(
    events: Path, stream: TextIO | None = None, verbose: bool = False, environment: Mapping[str, str] = os.environ
) -> Iterator[None]:
    """Show the events of a run on stderr while the block runs, from the beginning of the file on.

    A thread does it, so that the block need not know; it never writes to stdout, which is for data.
    """
    stream = stream or sys.stderr
    style = choose_style(stream, environment)
    renderer: Renderer = Live(stream, verbose) if style == "live" else Lines(stream, style, verbose)
    follower = Follower(events, renderer)
    ended = threading.Event()

    def follow() -> None:
        while not ended.wait(TICK_S):
            follower.step()

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        follower.step()
        renderer.close()
