from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from builder.build import imagestore
from builder.build.imagestore import APART, why_no_store
from builder.core.run import Completed, Spec
from builder.resolve.golang import Runner


def answers(returncode: int, calls: list[list[str]]) -> Runner:
    def runner(argv: Sequence[str | Path], _: Spec) -> Completed:
        calls.append([str(word) for word in argv])
        return Completed(tuple(calls[-1]), returncode, "", (), 0.0)

    return runner


def test_only_root_makes_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert why_no_store(tmp_path, answers(0, [])).startswith("only root can")


def test_the_tools_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(imagestore, "which", lambda tool: None if tool == "setpriv" else Path("/usr/bin") / tool)
    assert why_no_store(tmp_path, answers(0, [])) == "setpriv (package util-linux) is not installed"


@pytest.mark.parametrize(("returncode", "why"), [(0, ""), (32, "no overlay can be mounted in ")])
def test_the_probe_does_what_the_store_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, returncode: int, why: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(imagestore, "which", lambda tool: Path("/usr/bin") / tool)
    calls: list[list[str]] = []
    assert why_no_store(tmp_path, answers(returncode, calls)).startswith(why)
    assert calls[0][: len(APART)] == list(APART)
    # In the very folder, as it depends on its file system; nothing is left there.
    assert calls[0][-1].startswith(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_daemon_reads_a_configuration_of_its_own(tmp_path: Path) -> None:
    text = imagestore._config(tmp_path / "root", tmp_path / "state", tmp_path / "c.sock")
    assert f'root = "{tmp_path}/root"' in text
    assert "io.containerd.cri.v1.images" in text
    assert text.startswith("version = 2\n")
