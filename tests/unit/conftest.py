"""Unit tests start no process and open no connection."""

from __future__ import annotations

import socket
import subprocess
from typing import Any, NoReturn

import pytest
from hypothesis import settings

# A busy machine is no fault of the code: no example has a time limit.
settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def _no_processes_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **_: Any) -> NoReturn:
        raise AssertionError(f"a unit test must not start a process or open a connection: {args[:1]}")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
