"""Every kind of leftover is found, and a clean file system passes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from builder.check import leaks
from builder.check.leaks import Check, Report, check_disk, inspect, key_body, parse_listing

SHADOW = "root:*:19000:0:99999:7:::\ndaemon:!*:19000::::::\nsshd:!:19000::::::\n"
CLEAN: dict[str, str] = {
    "/etc/machine-id": "",
    "/etc/passwd": "root:x:0:0:root:/root:/bin/bash\nlist:x:38:38:Mailing List Manager:/var/list:/usr/sbin/nologin\n",
    "/etc/group": "root:x:0:\nsudo:x:27:\n",
    "/etc/shadow": SHADOW,
    "/etc/ssh/sshd_config": "UsePAM yes\n",
    "/etc/sudoers.d/README": "#\n",
    "/root/.bashrc": "x",
    "/var/lib/apt/lists/lock": "",
    "/var/log/cloud-init.log": "",
    "/var/log/wtmp": "x",
}


class Memory:
    """A file system in a dict; a path that ends with / is an empty folder."""

    def __init__(self, files: Mapping[str, str]) -> None:
        self.files = files

    def entries(self, folder: str) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        for path, text in self.files.items():
            if path.startswith(f"{folder}/"):
                name, slash, _ = path[len(folder) + 1 :].partition("/")
                if name:
                    found[name] = None if slash else len(text)
        return found

    def text(self, path: str) -> str:
        return self.files.get(path, "")


def changed(path: str, text: str) -> dict[str, str]:
    checks = inspect(Memory(CLEAN | {path: text}), "builder")
    return {check.name: check.detail for check in checks if not check.ok}


def test_a_clean_file_system_passes() -> None:
    checks = inspect(Memory(CLEAN), "builder")
    assert [check.name for check in checks if not check.ok] == []
    assert len(checks) == 9


@pytest.mark.parametrize(
    ("path", "text", "check", "told"),
    [
        ("/etc/machine-id", "0eae3ee338d640a89a6f16aa4a3235ed\n", "machine-id", "not empty"),
        ("/var/lib/dbus/machine-id", "0eae3ee338d640a89a6f16aa4a3235ed\n", "machine-id", "/var/lib/dbus"),
        ("/etc/ssh/ssh_host_rsa_key", "", "ssh host keys", "ssh_host_rsa_key"),
        ("/home/builder/", "", "builder user", "/home/builder is there"),
        ("/etc/passwd", "builder:x:1000:1000::/home/builder:/bin/bash\n", "builder user", "/etc/passwd"),
        ("/etc/passwd-", "builder:x:1000:1000::/home/builder:/bin/bash\n", "builder user", "/etc/passwd-"),
        ("/etc/group", "adm:x:4:syslog,builder\n", "builder user", "/etc/group"),
        ("/etc/subuid-", "builder:100000:65536\n", "builder user", "/etc/subuid-"),
        ("/root/.ssh/authorized_keys", "ssh-ed25519 AAAA\n", "authorized keys", "/root/.ssh"),
        ("/home/ann/.ssh/authorized_keys2", "ssh-ed25519 AAAA\n", "authorized keys", "/home/ann"),
        ("/etc/shadow", SHADOW + "ann:$y$j9T$abc:19000::::::\n", "passwords", "'ann' has a password hash"),
        ("/etc/shadow", SHADOW + "ann:!$6$abc:19000::::::\n", "passwords", "'ann' has a password hash"),
        ("/etc/shadow", SHADOW + "ann::19000::::::\n", "passwords", "'ann' has an empty password"),
        ("/etc/shadow-", "ann:$1$abc:19000::::::\n", "passwords", "/etc/shadow-"),
        ("/etc/sudoers.d/90-cloud-init-users", "x", "sudo rules", "90-cloud-init-users"),
        ("/var/lib/cloud/instance", "", "cloud-init state", "/var/lib/cloud/instance"),
        ("/var/lib/apt/lists/mirror_Packages", "x", "package lists", "mirror_Packages"),
        ("/var/log/journal/0eae/system.journal", "x", "logs", "/var/log/journal/0eae"),
        ("/var/log/cloud-init-output.log", "x", "logs", "cloud-init-output.log"),
    ],
)
def test_every_leftover_is_found(path: str, text: str, check: str, told: str) -> None:
    found = changed(path, text)
    assert list(found) == [check]
    assert told in found[check]


def test_an_uninitialized_machine_id_is_as_good_as_an_empty_one() -> None:
    assert changed("/etc/machine-id", "uninitialized\n") == {}


@pytest.mark.parametrize(("missing", "check"), [("/etc/machine-id", "machine-id"), ("/etc/shadow", "passwords")])
def test_what_must_be_there_is_missed(missing: str, check: str) -> None:
    files = {path: text for path, text in CLEAN.items() if path != missing}
    assert [each.name for each in inspect(Memory(files), "builder") if not each.ok] == [check]


def test_a_name_that_only_looks_like_the_user_is_not_the_user() -> None:
    assert changed("/etc/passwd", "builder2:x:1000:1000:builder of things:/home/builder2:/bin/sh\n") == {}


def test_a_long_list_is_cut() -> None:
    files = CLEAN | {f"/var/lib/apt/lists/{number}_Packages": "x" for number in range(9)}
    (found,) = [check for check in inspect(Memory(files), "builder") if not check.ok]
    assert found.detail.endswith("and 4 more")


def test_a_listing_of_debugfs_is_read() -> None:
    text = (
        "/2/040755/0/0/.//\n/2/040755/0/0/..//\n/14/100644/0/0/machine-id/0/\n/15/040755/0/0/ssh//\n"
        "/16/120777/0/0/mtab/19/\n/0/000000/0/0//0/\nssh_host: File not found by ext2_lookup \n"
    )
    assert parse_listing(text) == {"machine-id": 0, "ssh": None, "mtab": 19}


def test_bytes_in_free_space_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leaks, "DebugFs", lambda *_: Memory(CLEAN))
    disk = tmp_path / "disk.raw"
    disk.write_bytes(b"\0" * 5000 + b"AAAAC3NzaC1lZDI1NTE5" + b"\0" * 5000)
    needles = {"the build's ssh key": key_body("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 build\n"), "canary": b"not there"}
    report = check_disk(disk, 0, needles, "builder")
    assert not report.ok
    (problem,) = report.problems
    assert problem.where == "the build's ssh key"
    assert "5000" in problem.what
    assert [check.ok for check in report.checks] == [False] + [True] * 10


def test_a_report_without_failures_has_no_problems() -> None:
    assert Report(checks=(Check(name="a", ok=True, detail=""),)).problems == ()
