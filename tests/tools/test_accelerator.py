"""The probe guest really runs: its boot sector ends QEMU with the exit code that is looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.build import accelerator
from builder.build.accelerator import choose, compare, probe

QEMU = "qemu-system-x86_64"


def test_the_probe_guest_runs_emulated() -> None:
    found = probe(QEMU, "tcg")
    assert found.why_not == ""
    assert found.seconds < 10


def test_a_boot_sector_that_does_nothing_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    halt = b"\xfa\xf4".ljust(510, b"\0") + b"\x55\xaa"
    monkeypatch.setattr(accelerator, "boot_sector", lambda: halt)
    monkeypatch.setattr(accelerator, "PROBE_LIMIT_S", 3.0)
    assert "did not end within 3 s" in probe(QEMU, "tcg").why_not


def test_an_accelerator_that_qemu_does_not_have() -> None:
    assert "a guest does not start" in probe(QEMU, "no-such-thing").why_not


def test_auto_gives_a_reason_and_agrees_with_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    chosen = choose("auto")
    assert chosen.reason
    if chosen.name == "kvm":
        assert compare(QEMU) == ""
