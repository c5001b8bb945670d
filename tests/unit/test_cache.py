from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from builder.core.cache import ensure_entry
from builder.core.files import is_locked


def test_an_entry_is_made_once_and_under_its_lock(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(work: Path) -> None:
        assert is_locked(tmp_path / "cache/key.lock")
        assert not (tmp_path / "cache/key").exists()
        (work / "done").write_text("x")
        made.append(work)

    place = ensure_entry(tmp_path / "cache/key", "done", make)
    assert ensure_entry(place, "done", make) == place
    assert len(made) == 1
    assert place.stat().st_mode & 0o777 == 0o755
    assert not made[0].exists()


def test_a_failure_leaves_nothing_and_is_passed_on(tmp_path: Path) -> None:
    def fail(work: Path) -> None:
        (work / "half").write_text("x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ensure_entry(tmp_path / "key", "done", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["key.lock"]


def test_an_entry_without_its_marker_is_made_again(tmp_path: Path) -> None:
    (tmp_path / "key").mkdir()
    (tmp_path / "key/old").write_text("x")
    place = ensure_entry(tmp_path / "key", "done", lambda work: (work / "done").touch())
    assert [path.name for path in place.iterdir()] == ["done"]


def test_what_a_killed_process_left_goes_a_day_later(tmp_path: Path) -> None:
    for name, age in ((".new-old", 90_000), (".new-young", 100)):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    ensure_entry(tmp_path / "key", "done", lambda work: (work / "done").touch())
    assert sorted(path.name for path in tmp_path.iterdir()) == [".new-young", "key", "key.lock"]
