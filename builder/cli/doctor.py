"""`build-image doctor`: what this machine has for builds, what it lacks, and what to type."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pwd
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from builder.build.accelerator import choose
from builder.build.packer import OLDEST, find_packer, version_text
from builder.build.planning import compiled_packer
from builder.core.errors import BuildImageError, ExitCode
from builder.core.paths import cache_home, state_home
from builder.core.run import Completed, Spec, run, which
from builder.core.tools import PACKAGE_OF, existing, free_bytes, install_command
from builder.resolve.golang import find_go

Status = Literal["ok", "optional", "missing"]
Runner = Callable[[Sequence[str | Path], Spec], Completed]

GIB = 1 << 30
SPACE_NEEDED = 10 * GIB
BROKEN = "does not start"
SIGNS = {"ok": "ok", "optional": "-", "missing": "MISSING"}
# The first number with a dot in what a tool prints about itself.
NUMBER = re.compile(r"\d+\.\d+(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Check:
    """One finding. `status` is `missing` when no build can do without it; `fix` is what to type."""

    name: str
    found: str
    needed: str
    status: Status
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A command to look for: its arguments that print a version, the oldest one that is fit, what it is for."""

    command: str
    arguments: tuple[str, ...] = ("--version",)
    oldest: str = ""
    required: bool = True
    purpose: str = ""


TOOLS = (
    Tool("qemu-system-x86_64", oldest="6.2", purpose="lane vm"),
    Tool("qemu-img", oldest="6.2"),
    Tool("mmdebstrap", oldest="1.0", purpose="base.source bootstrap"),
    Tool("xorriso", ("-version",), purpose="lane vm"),
    Tool("mformat", purpose="base.source bootstrap"),
    Tool("sfdisk", purpose="base.source bootstrap"),
    Tool("mke2fs", ("-V",), oldest="1.46"),
    Tool("e2image", ("-V",), oldest="1.46"),
    Tool("grub-mkimage", purpose="base.source bootstrap"),
    Tool("ssh", ("-V",)),
    Tool("ssh-keygen", ()),
    Tool("skopeo", required=False, purpose="images.source registry"),
)


@dataclass(frozen=True, slots=True)
class FileCheck:
    """Files of which one has to exist."""

    name: str
    paths: tuple[str, ...]
    package: str
    required: bool
    purpose: str


FILES = (
    FileCheck("grub (BIOS)", ("/usr/lib/grub/i386-pc/diskboot.img",), "grub-pc-bin", True, "base.source bootstrap"),
    FileCheck("grub (UEFI)", ("/usr/lib/grub/x86_64-efi/linux.mod",), "grub-efi-amd64-bin", True, "boot by UEFI"),
    FileCheck(
        "ovmf", ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_CODE.fd"), "ovmf", False, "tests of UEFI"
    ),
)


def doctor_checks(runner: Runner = run, find: Callable[[str], Path | None] = which) -> list[Check]:
    """Look at this machine and return every finding; changes nothing, raises nothing."""
    return [
        python_check(sys.version_info[:3]),
        *(distribution_check(name, wanted) for name, wanted in (("ansible-core", "2.19"), ("ansible-runner", "2.4"))),
        *build_program_checks(runner),
        *(tool_check(tool, find(tool.command), runner) for tool in TOOLS),
        *(file_check(check, Path.exists) for check in FILES),
        accelerator_check(runner),
        space_check(free_bytes),
        user_namespace_check(os.geteuid(), find, Path("/proc/sys")),
    ]


def python_check(version: tuple[int, ...]) -> Check:
    """Say whether this Python is one that Ansible runs on."""
    fit = (3, 11) <= version[:2] < (3, 14)
    fix = "" if fit else "PYTHON=/path/to/python3.13 make setup"
    return Check("python", version_text(version), ">= 3.11, < 3.14", "ok" if fit else "missing", fix)


def distribution_check(name: str, wanted: str) -> Check:
    """Say which version of a Python package is installed beside this one."""
    try:
        found = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        found = ""
    fit = found == wanted or found.startswith(f"{wanted}.")
    return Check(name, found or "none", f"{wanted}.x", "ok" if fit else "missing", "" if fit else "make setup")


def build_program_checks(runner: Runner) -> list[Check]:
    """Look for Packer and Go: without Packer, Go compiles it; without both nothing can be built."""
    wanted = f">= {version_text(OLDEST)}"
    go, no_go = None, ""
    try:
        go = find_go(runner)
    except BuildImageError as error:
        no_go = error.problems[0].hint or "make setup"
    try:
        packer = find_packer(compiled_packer(), runner)
        fix = "" if packer or go else no_go
    except BuildImageError as error:
        packer, fix = None, str(error.problems[0].what)
    found = f"{version_text(packer.version)} ({packer.path})" if packer else "compiled when needed" if go else "none"
    return [
        Check("packer", found, wanted, "missing" if fix else "ok", fix),
        Check(
            "go",
            go.version.removeprefix("go") if go else "none",
            ">= 1.24 (sources module)",
            "ok" if go else "optional",
            no_go,
        ),
    ]


def tool_check(tool: Tool, path: Path | None, runner: Runner) -> Check:
    """Say whether a command is there and new enough."""
    absent: Status = "missing" if tool.required else "optional"
    needed = f">= {tool.oldest}" if tool.oldest else "any"
    needed += f" ({tool.purpose})" if tool.purpose else ""
    fix = install_command([PACKAGE_OF[tool.command]])
    if path is None:
        return Check(tool.command, "none", needed, absent, fix)
    found = tool_version(path, tool.arguments, runner) if tool.arguments else "there"
    if found == BROKEN:
        return Check(tool.command, found, needed, absent, f"{path} --version says why")
    fit = not tool.oldest or numbers(found) >= numbers(tool.oldest)
    return Check(tool.command, found, needed, "ok" if fit else absent, "" if fit else f"a newer {tool.command}")


def tool_version(path: Path, arguments: Sequence[str], runner: Runner) -> str:
    """Return the version that a command prints on any of its streams, `there` when it prints none."""
    try:
        done = runner([path, *arguments], Spec(timeout=30, check=False))
    except BuildImageError:
        return BROKEN
    found = NUMBER.search("\n".join([done.stdout, *done.tail]))
    return found[0] if found else "there"


def numbers(version: str) -> tuple[int, ...]:
    """Return a version as numbers that can be compared."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def file_check(check: FileCheck, exists: Callable[[Path], bool]) -> Check:
    """Say whether one of some files is there."""
    found = next((path for path in check.paths if exists(Path(path))), "")
    absent: Status = "missing" if check.required else "optional"
    fix = "" if found else install_command([check.package])
    return Check(check.name, "there" if found else "none", f"any ({check.purpose})", "ok" if found else absent, fix)


def accelerator_check(runner: Runner) -> Check:
    """Say what will run guests, and why."""
    try:
        chosen = choose("auto", runner=runner)
    except BuildImageError as error:
        return Check("accelerator", "unknown", "kvm or tcg", "optional", str(error.problems[0].what))
    found = f"{chosen.name} ({chosen.reason})"
    fix = "" if chosen.name == "kvm" else "builds work without KVM, but take minutes longer"
    return Check("accelerator", found, "kvm or tcg", "ok", fix)


def space_check(free: Callable[[Path], int]) -> Check:
    """Say how much room there is for caches and run folders."""
    least = min((cache_home(), state_home()), key=free)
    there = free(least)
    fit = there >= SPACE_NEEDED
    fix = "" if fit else "free space, or use another disk: --state DIR, $XDG_CACHE_HOME"
    found = f"{there / GIB:.0f} GiB free in {existing(least)}"
    return Check("disk space", found, f">= {SPACE_NEEDED // GIB} GiB", "ok" if fit else "missing", fix)


def user_namespace_check(user: int, find: Callable[[str], Path | None], settings: Path) -> Check:
    """Say whether a tree can be bootstrapped without root. `settings` is /proc/sys."""
    name, needed = "user namespaces", "for builds without root"
    if user == 0:
        return Check(name, "not needed: root", needed, "ok")
    if find("newuidmap") is None:
        return Check(name, "no newuidmap", needed, "missing", install_command(["uidmap"]))
    if not subordinate_ids(pwd.getpwuid(user).pw_name, Path("/etc/subuid")):
        fix = f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {pwd.getpwuid(user).pw_name}"
        return Check(name, "no ids in /etc/subuid", needed, "missing", fix)
    switches = {
        "kernel/unprivileged_userns_clone": "1",
        "kernel/apparmor_restrict_unprivileged_userns": "0",
    }
    for switch, wanted in switches.items():
        path = settings / switch
        if path.exists() and path.read_text().strip() != wanted:
            fix = f"sudo sysctl -w {switch.replace('/', '.')}={wanted}"
            return Check(name, f"{switch.replace('/', '.')} forbids them", needed, "missing", fix)
    return Check(name, "there", needed, "ok")


def subordinate_ids(user: str, table: Path) -> bool:
    """Say whether a user has a range in a table such as /etc/subuid."""
    return table.exists() and any(line.startswith(f"{user}:") for line in table.read_text().splitlines())


def doctor_command(as_json: bool) -> None:
    """Print all checks on stdout; exits with 3 when something is missing that a build needs."""
    import typer

    checks = doctor_checks()
    fit = all(check.status != "missing" for check in checks)
    if as_json:
        typer.echo(json.dumps({"ok": fit, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        print_table(checks)
    if not fit:
        raise typer.Exit(ExitCode.PREFLIGHT)


def print_table(checks: Sequence[Check]) -> None:
    """Print the checks as a table, and below it what to type."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("what", "found", "needed", ""):
        table.add_column(title, overflow="fold")
    colours = {"ok": "green", "optional": "yellow", "missing": "bold red"}
    for check in checks:
        table.add_row(check.name, check.found, check.needed, f"[{colours[check.status]}]{SIGNS[check.status]}[/]")
    console = Console(highlight=False)
    console.print(table)
    for check in checks:
        if check.fix:
            console.print(f"{check.name}: {check.fix}", markup=False, soft_wrap=True)
