"""Packer's log: its steps, without the noise."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from builder.core.events import append_event, read_lines

# With -timestamp-ui: `2026-11-24T06:40:01Z: ==> qemu.node: Waiting for SSH to become available...`
TIMESTAMP = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ: ?")
STEP = re.compile(r"^==> ([a-z0-9-]+)\.([a-z0-9_-]+): (.+)$")
DETAIL = re.compile(r"^ {4}([a-z0-9-]+)\.([a-z0-9_-]+): (.*)$")
# Packer 1.9 advises on every run to install plugins that it brings itself.
NOISE_BEGINS = "Warning: Bundled plugins used"
NOISE_ENDS = "Then run 'packer init' to manage installation of the plugins"
# Steps of which nobody learns anything.
DULL = ("Trying ", "Overriding default Qemu arguments", "Looking for available port", "Waiting 1s for boot")
ANSIBLE_COMMAND = re.compile(r"^Executing Ansible: .*/([a-z0-9_-]+\.yml)$")


def readable(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines of a log without time stamps, empty lines and the advice on bundled plugins."""
    noise = False
    for raw in lines:
        line = TIMESTAMP.sub("", raw).rstrip()
        if line.endswith(NOISE_BEGINS):
            noise = True
        elif noise:
            noise = not line.endswith(NOISE_ENDS)
        elif line:
            yield line


def step_text(line: str) -> str | None:
    """Return the text of a step line, or None for every other line and for steps that say nothing."""
    found = STEP.match(TIMESTAMP.sub("", line.rstrip()))
    if not found or found[3].startswith(DULL):
        return None
    command = ANSIBLE_COMMAND.match(found[3])
    return f"Running {command[1]}" if command else found[3]


def plain(line: str) -> str:
    """Return a line without the name of its source in front."""
    found = STEP.match(line) or DETAIL.match(line)
    return found[3] if found else line


class LogFollower:
    """Turns the steps of a growing log into events. Remembers on disk how far it came, so it can be made anew."""

    def __init__(self, log: Path, events: Path, stage: str, mark: Path) -> None:
        self.log = log
        self.events = events
        self.stage = stage
        self.mark = mark

    def follow(self) -> None:
        """Append an event for every step that was logged since the last call."""
        try:
            offset = begin = int(self.mark.read_text())
        except (OSError, ValueError):
            offset = begin = 0
        for line, end in read_lines(self.log, begin):
            offset = end
            text = step_text(line)
            if text:
                append_event(self.events, "step", self.stage, {"text": text})
        if offset != begin:
            self.mark.write_text(str(offset))
