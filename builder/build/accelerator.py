"""KVM or TCG: KVM only where a guest was seen to start with it."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from builder.core.digest import sha256_value
from builder.core.errors import BuildImageError, PreflightError
from builder.core.files import write_json
from builder.core.paths import cache_home
from builder.core.run import Completed, Spec, run

Runner = Callable[[Sequence[str | Path], Spec], Completed]

KVM = Path("/dev/kvm")
CPU_INFO = Path("/proc/cpuinfo")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PROBE_LIMIT_S = 10.0
SLOW_S, SLOW_FACTOR = 1.0, 4.0
FAILURE_HOLDS_S = 3600.0
# isa-debug-exit ends QEMU with (value << 1) | 1. https://www.qemu.org/docs/master/specs/isa-debug-exit.html
EXIT_PORT = 0xF4
EXIT_VALUE = 0x15
PROBE_EXIT_CODE = (EXIT_VALUE << 1) | 1
QEMU_OPTIONS = {"kvm": "kvm", "tcg": "tcg,thread=multi,tb-size=512"}


@dataclass(frozen=True, slots=True)
class Accelerator:
    """What runs guests, and why it was chosen."""

    name: Literal["kvm", "tcg"]
    reason: str

    @property
    def qemu_options(self) -> str:
        """The value of QEMU's -accel."""
        return QEMU_OPTIONS[self.name]

    def cpu_model(self, asked: str, emulated: str) -> str:
        """Return the CPU model: the one asked for, else the host's with KVM, else the cheapest to emulate."""
        return asked or ("host" if self.name == "kvm" else emulated)


def choose(
    asked: Literal["auto", "kvm", "tcg"] = "auto", qemu: str = "qemu-system-x86_64", runner: Runner = run
) -> Accelerator:
    """Return the accelerator to use. `auto` is KVM when the CPU has it, /dev/kvm opens and a tiny guest starts.

    Raises PreflightError when KVM was asked for and does not work.
    """
    if asked == "tcg":
        return Accelerator("tcg", "asked for")
    why_not = why_no_kvm(qemu, runner)
    if not why_not:
        return Accelerator("kvm", "a guest starts with it")
    if asked == "kvm":
        raise PreflightError(f"KVM does not work: {why_not}", "qemu.accelerator", "--set qemu.accelerator=auto")
    return Accelerator("tcg", f"no KVM: {why_not}")


def why_no_kvm(qemu: str = "qemu-system-x86_64", runner: Runner = run) -> str:
    """Return why KVM cannot be used on this machine, or an empty text."""
    flags = cpu_flags(CPU_INFO.read_text(errors="replace"))
    if not flags & {"vmx", "svm"}:
        return "the CPU has neither vmx nor svm (a virtual machine without nested virtualisation?)"
    try:
        os.close(os.open(KVM, os.O_RDWR))
    except OSError as error:
        return f"{KVM} does not open: {error.strerror}"
    return _cached_probe(qemu, runner)


def cpu_flags(cpuinfo: str) -> frozenset[str]:
    """Return the flags of the first CPU in the text of /proc/cpuinfo."""
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return frozenset(value.split())
    return frozenset()


def _cached_probe(qemu: str, runner: Runner) -> str:
    """Probe once for each boot of this machine and version of QEMU. A failure is believed for an hour only: the
    machine may just have been busy."""
    version = runner([qemu, "--version"], Spec(timeout=30)).stdout.partition("\n")[0]
    key = sha256_value([BOOT_ID.read_text().strip(), version])
    path = cache_home() / "accelerator" / f"{key}.json"
    try:
        known = json.loads(path.read_text())
        if not known["why_not"] or time.time() - known["at"] < FAILURE_HOLDS_S:
            return str(known["why_not"])
    except (OSError, ValueError, KeyError):
        pass
    why_not = compare(qemu, runner)
    write_json(path, {"qemu": version, "why_not": why_not, "at": time.time()})
    return why_not


def compare(qemu: str, runner: Runner = run) -> str:
    """Return why KVM is no gain over emulation, or an empty text.

    Nested KVM that a hypervisor emulates in software starts the tiny guest, some twenty times slower than TCG does,
    and never gets a Linux kernel up (seen: 5.3 s against 0.23 s).
    """
    emulated = probe(qemu, "tcg", runner)
    found = probe(qemu, "kvm", runner)
    if found.why_not:
        return found.why_not
    if not emulated.why_not and found.seconds > SLOW_S + SLOW_FACTOR * emulated.seconds:
        return f"a guest takes {found.seconds:.1f} s to start with it and {emulated.seconds:.1f} s without"
    return ""


@dataclass(frozen=True, slots=True)
class Probe:
    """How a tiny guest started: why it did not (empty when it did), and the seconds it took."""

    why_not: str
    seconds: float


def boot_sector() -> bytes:
    """Return 512 bytes that a BIOS starts and that end QEMU: `mov al, VALUE; out PORT, al; hlt; jmp $`."""
    code = bytes([0xB0, EXIT_VALUE, 0xE6, EXIT_PORT, 0xF4, 0xEB, 0xFD])
    return code.ljust(510, b"\0") + b"\x55\xaa"


def probe(qemu: str, accelerator: str, runner: Runner = run) -> Probe:
    """Start a guest of one boot sector that ends QEMU with an exit code of its own, within 10 s.

    A machine may offer /dev/kvm and then hang: only a guest that ran proves it.
    """
    with tempfile.TemporaryDirectory(prefix="build-image-probe-") as folder:
        disk = Path(folder) / "boot.raw"
        disk.write_bytes(boot_sector())
        command: list[str | Path] = [qemu, "-machine", "pc", "-accel", accelerator, "-m", "16", "-nodefaults"]
        command += ["-no-user-config", "-display", "none", "-no-reboot", "-boot", "c"]
        command += ["-device", f"isa-debug-exit,iobase={EXIT_PORT:#x},iosize=1"]
        command += ["-drive", f"file={disk},format=raw,if=ide,snapshot=on"]
        try:
            done = runner(command, Spec(timeout=PROBE_LIMIT_S, check=False, what="the probe guest"))
        except BuildImageError as error:
            return Probe(error.problems[0].what.strip(), PROBE_LIMIT_S)
    if done.returncode == PROBE_EXIT_CODE:
        return Probe("", done.seconds)
    return Probe(f"a guest does not start ({'; '.join(done.tail) or f'exit code {done.returncode}'})", done.seconds)
