"""KVM is used only where the CPU has it, /dev/kvm opens, and a guest starts about as fast as emulated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from builder.build import accelerator
from builder.build.accelerator import PROBE_EXIT_CODE, Accelerator, boot_sector, choose, compare, cpu_flags
from builder.core.errors import BuildError, PreflightError
from builder.core.run import Completed, Spec

VERSION = Completed((), 0, "QEMU emulator version 7.2.22\n", (), 0.1)


class Machine:
    """Stands for QEMU: how many seconds, and which exit code, each accelerator has."""

    def __init__(self, kvm: tuple[float, int], tcg: tuple[float, int] = (0.2, PROBE_EXIT_CODE)) -> None:
        self.answers = {"kvm": kvm, "tcg": tcg}
        self.probes: list[str] = []

    def __call__(self, argv: Sequence[str | Path], spec: Spec) -> Completed:
        if "--version" in argv:
            return VERSION
        name = str(argv[list(argv).index("-accel") + 1])
        self.probes.append(name)
        seconds, code = self.answers[name]
        assert spec.timeout is not None
        if seconds > spec.timeout:
            raise BuildError(f"{spec.what} did not end within {spec.timeout:.0f} s")
        return Completed(tuple(map(str, argv)), code, "", ("kvm: failed",) if code != PROBE_EXIT_CODE else (), seconds)


@pytest.fixture
def able(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, text in (("CPU_INFO", "flags\t\t: fpu vmx\n"), ("KVM", ""), ("BOOT_ID", "boot-1\n")):
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(accelerator, name, tmp_path / name)
    return tmp_path


def test_kvm_where_a_guest_starts(able: Path) -> None:
    assert choose(runner=Machine((0.3, PROBE_EXIT_CODE))) == Accelerator("kvm", "a guest starts with it")


def test_no_flag_no_probe(able: Path) -> None:
    (able / "CPU_INFO").write_text("flags\t\t: fpu sse\n")
    machine = Machine((0.3, PROBE_EXIT_CODE))
    chosen = choose(runner=machine)
    assert chosen.name == "tcg"
    assert "neither vmx nor svm" in chosen.reason
    assert machine.probes == []


def test_a_device_that_does_not_open(able: Path) -> None:
    (able / "KVM").unlink()
    assert "does not open: No such file or directory" in choose(runner=Machine((0.3, PROBE_EXIT_CODE))).reason


@pytest.mark.parametrize(
    ("kvm", "reason"),
    [
        ((0.3, 1), "a guest does not start (kvm: failed)"),
        ((99.0, 0), "did not end within 10 s"),
        ((5.3, PROBE_EXIT_CODE), "a guest takes 5.3 s to start with it and 0.2 s without"),
    ],
    ids=["refused", "hangs", "slower than emulation"],
)
def test_kvm_that_is_there_and_does_not_work(able: Path, kvm: tuple[float, int], reason: str) -> None:
    chosen = choose(runner=Machine(kvm))
    assert chosen.name == "tcg"
    assert reason in chosen.reason


def test_a_busy_machine_does_not_lose_kvm() -> None:
    assert compare("qemu", Machine((4.0, PROBE_EXIT_CODE), tcg=(3.0, PROBE_EXIT_CODE))) == ""


def test_a_success_is_kept_until_the_next_boot(able: Path) -> None:
    machine = Machine((0.3, PROBE_EXIT_CODE))
    choose(runner=machine)
    choose(runner=machine)
    assert len(machine.probes) == 2
    (able / "BOOT_ID").write_text("boot-2\n")
    choose(runner=machine)
    assert len(machine.probes) == 4


def test_a_failure_is_kept_for_an_hour(able: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine((0.3, 1))
    choose(runner=machine)
    choose(runner=machine)
    assert len(machine.probes) == 2
    monkeypatch.setattr(accelerator, "FAILURE_HOLDS_S", 0.0)
    machine.answers["kvm"] = (0.3, PROBE_EXIT_CODE)
    assert choose(runner=machine).name == "kvm"


def test_kvm_that_was_asked_for_and_does_not_work_is_an_error(able: Path) -> None:
    with pytest.raises(PreflightError, match="KVM does not work: a guest does not start"):
        choose("kvm", runner=Machine((0.3, 1)))


def test_what_is_asked_for_is_not_probed() -> None:
    assert choose("tcg", runner=Machine((0.3, 1))) == Accelerator("tcg", "asked for")


def test_cpu_models() -> None:
    assert Accelerator("kvm", "").cpu_model("", "qemu64") == "host"
    assert Accelerator("tcg", "").cpu_model("", "Nehalem") == "Nehalem"
    assert Accelerator("kvm", "").cpu_model("max", "qemu64") == "max"


def test_flags_of_the_first_cpu() -> None:
    assert cpu_flags("processor\t: 0\nflags\t\t: fpu svm\n\nflags\t: other\n") == {"fpu", "svm"}
    assert cpu_flags("Features : fp asimd\n") == frozenset()


def test_the_boot_sector_is_one_that_a_bios_starts() -> None:
    assert len(boot_sector()) == 512
    assert boot_sector().endswith(b"\x55\xaa")
