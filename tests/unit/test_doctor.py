"""The doctor and the preflight: what is missing is named at once, with what to type."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import typer

from builder.cli import doctor
from builder.cli.doctor import (
    FILES,
    TOOLS,
    Check,
    FileCheck,
    Tool,
    distribution_check,
    doctor_checks,
    doctor_command,
    file_check,
    numbers,
    python_check,
    space_check,
    subordinate_ids,
    tool_check,
    user_namespace_check,
)
from builder.core.errors import PreflightError, Problem
from builder.core.run import Completed, Spec
from builder.core.tools import (
    BOOTSTRAP_TOOLS,
    BUILD_TOOLS,
    GUEST_TOOLS,
    PACKAGE_OF,
    TREE_TOOLS,
    existing,
    missing_space,
    missing_tools,
)
from providers import PROVIDERS
from providers.qemu import provider as module
from providers.qemu.provider import QemuProvider, memory_problems, tree_problems
from providers.qemu.settings import OsFacts, Settings

provider = QemuProvider()
QEMU = Tool("qemu-img", oldest="6.2")
ROOT = Path(__file__).resolve().parents[2]


def says(text: str) -> Callable[[Sequence[str | Path], Spec], Completed]:
    def answer(argv: Sequence[str | Path], spec: Spec) -> Completed:
        return Completed(tuple(map(str, argv)), 0, "", (text,), 0.1)

    return answer


def broken(argv: Sequence[str | Path], spec: Spec) -> Completed:
    raise PreflightError("cannot start")


@pytest.mark.parametrize(
    ("text", "found", "status"),
    [
        ("qemu-img version 7.2.22 (Debian 1:7.2+dfsg)", "7.2.22", "ok"),
        ("qemu-img version 6.2.0", "6.2.0", "ok"),
        ("qemu-img version 10.0", "10.0", "ok"),
        ("qemu-img version 6.1.9", "6.1.9", "missing"),
    ],
)
def test_a_tool_has_to_be_new_enough(text: str, found: str, status: str) -> None:
    check = tool_check(QEMU, Path("/usr/bin/qemu-img"), says(text))
    assert (check.found, check.status, bool(check.fix)) == (found, status, status != "ok")


def test_a_tool_that_is_not_there() -> None:
    fix = "sudo apt-get install --no-install-recommends qemu-utils"
    assert tool_check(QEMU, None, says("")) == Check("qemu-img", "none", ">= 6.2", "missing", fix)
    optional = Tool("skopeo", required=False, purpose="images.source registry")
    assert tool_check(optional, None, says("")).status == "optional"


def test_a_tool_that_does_not_start_is_missing_whatever_version_is_needed() -> None:
    check = tool_check(Tool("xorriso", ("-version",)), Path("/usr/bin/xorriso"), broken)
    assert (check.found, check.status) == ("does not start", "missing")


def test_versions_are_compared_as_numbers() -> None:
    assert numbers("1.10") > numbers("1.9")


@pytest.mark.parametrize(
    ("version", "status"), [((3, 10, 9), "missing"), ((3, 11, 0), "ok"), ((3, 13, 2), "ok"), ((3, 14, 0), "missing")]
)
def test_python(version: tuple[int, ...], status: str) -> None:
    assert python_check(version).status == status


def test_a_python_package() -> None:
    assert distribution_check("ansible-core", "2.19").status == "ok"
    assert distribution_check("ansible-core", "2.1").status == "missing"
    assert distribution_check("no-such-package", "1.0").found == "none"


def test_one_of_several_files_is_enough() -> None:
    check = FileCheck("ovmf", ("/a", "/b"), "ovmf", False, "tests")
    assert file_check(check, lambda path: path == Path("/b")).status == "ok"
    missing = file_check(check, lambda _: False)
    assert (missing.status, missing.fix) == ("optional", "sudo apt-get install --no-install-recommends ovmf")


def test_room_on_the_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert space_check(lambda _: 11 << 30).status == "ok"
    assert space_check(lambda _: 9 << 30).status == "missing"


@pytest.mark.parametrize(
    ("switch", "value", "status"),
    [
        ("kernel/unprivileged_userns_clone", "0", "missing"),
        ("kernel/unprivileged_userns_clone", "1", "ok"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "missing"),
    ],
)
def test_user_namespaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, switch: str, value: str, status: str) -> None:
    monkeypatch.setattr(doctor, "subordinate_ids", lambda *_: True)
    (tmp_path / "kernel").mkdir()
    (tmp_path / switch).write_text(f"{value}\n")
    check = user_namespace_check(1, lambda _: Path("/usr/bin/newuidmap"), tmp_path)
    assert check.status == status
    assert (f"sysctl -w {switch.replace('/', '.')}" in check.fix) is (status == "missing")


def test_user_namespaces_need_newuidmap_and_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert user_namespace_check(0, lambda _: None, tmp_path).status == "ok"
    assert user_namespace_check(1, lambda _: None, tmp_path).fix.endswith("uidmap")
    monkeypatch.setattr(doctor, "subordinate_ids", lambda *_: False)
    assert "--add-subuids" in user_namespace_check(1, lambda _: Path("/x"), tmp_path).fix


def test_a_user_has_a_range_only_by_the_whole_name(tmp_path: Path) -> None:
    table = tmp_path / "subuid"
    assert not subordinate_ids("ann", table)
    table.write_text("anna:100000:65536\n")
    assert not subordinate_ids("ann", table)
    assert subordinate_ids("anna", table)


def test_nothing_there_is_many_findings_and_no_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builder.build.packer.which", lambda _: None)
    monkeypatch.setattr("builder.resolve.golang.which", lambda _: None, raising=False)
    monkeypatch.setattr(doctor, "compiled_packer", lambda: None)
    monkeypatch.setattr(doctor, "find_go", lambda _: broken([], Spec()))
    checks = {check.name: check for check in doctor_checks(broken, lambda _: None)}
    assert {tool.command for tool in TOOLS} | {check.name for check in FILES} < set(checks)
    assert checks["qemu-system-x86_64"].status == "missing"
    assert checks["packer"].status == "missing"
    assert checks["skopeo"].status == "optional"


CHECKS = [Check("python", "3.11.7", ">= 3.11", "ok"), Check("xorriso", "none", "any", "missing", "apt [x]")]


def test_the_command_prints_json_and_ends_with_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "doctor_checks", lambda: CHECKS)
    with pytest.raises(typer.Exit) as ended:
        doctor_command(True)
    assert ended.value.exit_code == 3
    printed = json.loads(capsys.readouterr().out)
    assert printed["ok"] is False
    assert printed["checks"][1] == {
        "name": "xorriso",
        "found": "none",
        "needed": "any",
        "status": "missing",
        "fix": "apt [x]",
    }


def test_the_command_prints_a_table_and_what_to_type(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "doctor_checks", lambda: CHECKS)
    with pytest.raises(typer.Exit):
        doctor_command(False)
    text = capsys.readouterr().out
    assert "MISSING" in text
    assert "xorriso: apt [x]" in text
    monkeypatch.setattr(doctor, "doctor_checks", lambda: CHECKS[:1])
    doctor_command(False)


def test_every_tool_is_in_a_package_that_setup_installs() -> None:
    installed = {line for line in (ROOT / "requirements/apt.txt").read_text().splitlines() if line[:1] != "#"}
    assert set(PACKAGE_OF.values()) <= installed
    used = {*BUILD_TOOLS, *GUEST_TOOLS, *TREE_TOOLS, *BOOTSTRAP_TOOLS, *(tool.command for tool in TOOLS)}
    assert used <= set(PACKAGE_OF)
    assert {check.package for check in FILES} <= installed


def test_missing_tools_are_one_problem_with_one_line_to_type() -> None:
    there = {"mke2fs": Path("/sbin/mke2fs")}
    assert missing_tools(["xorriso", "mke2fs", "e2fsck"], "lane", there.get) == [
        Problem(
            "e2fsck, xorriso are not installed",
            "lane",
            "sudo apt-get install --no-install-recommends e2fsprogs xorriso",
        )
    ]
    assert missing_tools(["mke2fs"], "lane", there.get) == []


def test_room_is_added_up_for_folders_on_one_disk(tmp_path: Path) -> None:
    needs = {tmp_path / "state": 3 << 30, tmp_path / "cache" / "deep": 4 << 30}
    assert missing_space(needs, lambda _: 7 << 30) == []
    (problem,) = missing_space(needs, lambda _: 6 << 30)
    assert problem.what == "6.0 GiB free, 7.0 GiB needed"
    assert problem.where == f"{tmp_path / 'cache/deep'}, {tmp_path / 'state'}"


def test_a_folder_that_does_not_exist_yet_is_measured_by_the_one_above(tmp_path: Path) -> None:
    assert existing(tmp_path / "a" / "b") == tmp_path


def test_memory_for_the_guest() -> None:
    text = "MemTotal:       8000000 kB\nMemAvailable:   2097152 kB\n"
    assert memory_problems(2048, text) == []
    (problem,) = memory_problems(2049, text)
    assert problem.what == "2048 MiB of memory free, 2049 MiB for the guest"


def test_the_tree_lane_is_for_root() -> None:
    assert tree_problems(0) == []
    assert tree_problems(1000)[0].hint == "--set qemu.lane=vm builds without root"


def test_the_preflight_names_everything_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(module, "missing_tools", lambda names, why: missing_tools(names, why, lambda _: None))
    monkeypatch.setattr(module, "free_bytes", lambda _: 0)
    problems = provider.preflight(Settings(memory_mib=1 << 30))
    assert [problem.where for problem in problems] == [
        "qemu.lane vm",
        "qemu.memory_mib",
        str(tmp_path / "build-image"),
    ]


def test_the_route_of_a_target_comes_from_settings_and_facts() -> None:
    route = provider.local_route(Settings(cpus=4), OsFacts(tcg_cpu="Nehalem"))
    assert (route.cpus, route.tcg_cpu, route.lane) == (4, "Nehalem", "vm")


def test_the_provider_is_known_by_its_name() -> None:
    assert PROVIDERS[provider.name] == provider
