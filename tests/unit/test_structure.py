"""The house rules that a reader relies on: imports go down only, one module starts processes, modules stay small."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted([*ROOT.glob("builder/**/*.py"), *ROOT.glob("providers/**/*.py")])
LAYERS = [
    {"core"},
    {"model"},
    {"target"},
    {"provider"},
    {"resolve"},
    {"plan"},
    {"engine", "catalog", "build", "check", "package", "report", "ci", "schedule", "rehearsal"},
    {"pipeline"},
    {"providers"},
    {"cli"},
]
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}
STARTS_PROCESSES = {"builder/core/run.py", "builder/core/shim.py"}


def room_of(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] == "providers":
        return "providers"
    return parts[1] if parts[0] == "builder" and len(parts) > 1 else None


def imports_of(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
    return found


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down_only(path: Path) -> None:
    own = room_of(name_of(path))
    if own is None or own not in RANK:
        return
    for module in imports_of(path):
        room = room_of(module)
        if room is None or room == own or room not in RANK:
            continue
        assert RANK[room] < RANK[own], f"{own} must not import {room} ({module})"
        assert room != "providers" or own == "cli", f"only cli imports providers, not {own}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_only_core_run_and_shim_start_processes(path: Path) -> None:
    if path.relative_to(ROOT).as_posix() in STARTS_PROCESSES:
        return
    assert not {"subprocess", "pexpect", "pty"} & set(imports_of(path))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_say_what_they_do_and_stay_small(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "a module says in one line what it does"
    assert len(text.splitlines()) <= 400


def test_the_shim_needs_nothing_but_the_standard_library() -> None:
    path = ROOT / "builder/core/shim.py"
    assert not [name for name in imports_of(path) if name.split(".")[0] in {"builder", "providers", "pydantic"}]
