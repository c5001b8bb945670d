"""A run that lost its process is picked up once; one that ended, or is alive, never."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builder.build.runfolder import open_run

TARGET, KEY = "debian-12-v1.34.3-qemu", "f" * 64


def test_a_run_whose_process_died_is_picked_up(tmp_path: Path) -> None:
    with open_run(tmp_path, TARGET, KEY) as first:
        assert not first.resumed
    with open_run(tmp_path, TARGET, KEY) as second:
        assert second.resumed
        assert second.path == first.path


@pytest.mark.parametrize("status", ["done", "failed", "interrupted"])
def test_a_run_that_ended_is_never_picked_up(tmp_path: Path, status: str) -> None:
    with open_run(tmp_path, TARGET, KEY) as first:
        first.finish(status)  # type: ignore[arg-type]
    with open_run(tmp_path, TARGET, KEY) as second:
        assert second.path != first.path


def test_a_run_that_is_alive_is_left_alone(tmp_path: Path) -> None:
    with open_run(tmp_path, TARGET, KEY) as first, open_run(tmp_path, TARGET, KEY) as second:
        assert second.path != first.path


def test_a_run_of_other_content_is_left_alone(tmp_path: Path) -> None:
    with open_run(tmp_path, TARGET, KEY) as first:
        pass
    with open_run(tmp_path, TARGET, "0" * 64) as second:
        assert second.path != first.path


def test_a_broken_state_file_is_not_a_run(tmp_path: Path) -> None:
    with open_run(tmp_path, TARGET, KEY) as first:
        (first.path / "state.json").write_text('{"status": "runn')
    with open_run(tmp_path, TARGET, KEY) as second:
        assert second.path != first.path


def test_events_of_a_run_are_lines_of_json(tmp_path: Path) -> None:
    with open_run(tmp_path, TARGET, KEY) as run:
        run.note("base", "hello")
        row = json.loads(run.events.read_text())
    assert (row["kind"], row["stage"], row["data"]) == ("note", "base", {"text": "hello"})
