"""The hardware, the seed and the messages of a guest, without starting one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from builder.check.guest import console_tail, ssh_options
from builder.check.machine import (
    BUS_DEVICES,
    DirectBoot,
    Firm,
    Firmware,
    GuestSpec,
    find_firmware,
    overlay_command,
    qemu_command,
    seed_command,
    seed_files,
)
from builder.core.errors import PreflightError

SPEC = GuestSpec(Path("/images/node.qcow2"))
WORK = Path("/work")
FIRM = Firm(Path("/fw/code.fd"), Path("/fw/vars.fd"))


def command_of(firm: Firm | None = None, **changes: object) -> list[str]:
    return qemu_command(replace(SPEC, **changes), WORK, 2222, firm)  # type: ignore[arg-type]


def values(command: list[str], option: str) -> list[str]:
    return [command[index + 1] for index, word in enumerate(command) if word == option]


def test_the_disk_itself_is_never_written() -> None:
    drives = values(command_of(), "-drive")
    assert drives[0] == "if=none,id=disk,discard=unmap,cache=unsafe,snapshot=on,format=qcow2,file=/images/node.qcow2"
    assert "readonly=on" in drives[1]
    drives = values(command_of(overlay=Path("/work/own.qcow2"), format="vmdk"), "-drive")
    assert drives[0] == "if=none,id=disk,discard=unmap,cache=unsafe,format=qcow2,file=/work/own.qcow2"


def test_the_overlay_names_its_base_absolutely() -> None:
    argv = overlay_command(replace(SPEC, format="vmdk"), Path("own.qcow2"))
    assert argv[-5:] == ["-F", "vmdk", "-b", "/images/node.qcow2", "own.qcow2"]


def test_a_comma_in_a_path_does_not_end_the_option() -> None:
    command = qemu_command(replace(SPEC, disk=Path("/a,b/c.raw"), format="raw"), Path("/w,x"), 1, None)
    assert values(command, "-drive")[0].endswith("file=/a,,b/c.raw")
    assert values(command, "-serial") == ["file:/w,,x/serial.log"]


@pytest.mark.parametrize("bus", BUS_DEVICES)
def test_every_bus_boots_from_the_disk(bus: str) -> None:
    devices = values(command_of(bus=bus), "-device")
    assert sum("drive=disk" in device and "bootindex=1" in device for device in devices) == 1


def test_a_plain_ide_controller_needs_the_older_machine() -> None:
    assert values(command_of(bus="ide"), "-machine") == ["pc,graphics=off"]
    assert values(command_of(FIRM, bus="sata", firmware="uefi"), "-machine") == ["q35"]


def test_ssh_is_forwarded_on_the_loopback_address_only() -> None:
    assert values(command_of(nic="vmxnet3"), "-netdev") == ["user,id=net,hostfwd=tcp:127.0.0.1:2222-:22"]
    assert "vmxnet3,netdev=net,romfile=" in values(command_of(nic="vmxnet3"), "-device")


def test_a_restricted_guest_has_no_network_but_the_forwarded_port() -> None:
    assert values(command_of(restricted=True), "-netdev") == ["user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:2222-:22"]


@pytest.mark.parametrize(
    ("accelerator", "asked", "model"), [("tcg", "", "qemu64"), ("kvm", "", "host"), ("tcg", "max", "max")]
)
def test_the_cpu_fits_the_accelerator(accelerator: str, asked: str, model: str) -> None:
    command = command_of(accelerator=accelerator, cpu=asked)
    assert values(command, "-cpu") == [model]
    assert values(command, "-accel")[0].split(",")[0] == accelerator


def test_uefi_shares_its_code_and_owns_its_variables() -> None:
    flash = [drive for drive in values(command_of(FIRM, firmware="uefi"), "-drive") if "pflash" in drive]
    assert flash == [
        "if=pflash,format=raw,readonly=on,file=/fw/code.fd",
        "if=pflash,format=raw,file=/work/vars.fd",
    ]


def test_a_direct_boot_brings_its_own_kernel() -> None:
    command = command_of(direct=DirectBoot(Path("/k"), Path("/i"), "root=LABEL=root"))
    assert [values(command, option) for option in ("-kernel", "-initrd", "-append")] == [
        ["/k"],
        ["/i"],
        ["root=LABEL=root"],
    ]
    assert "-kernel" not in command_of()


def test_secure_boot_protects_the_variables() -> None:
    command = command_of(FIRM, firmware="uefi-secure")
    assert values(command, "-machine") == ["q35,smm=on"]
    assert "driver=cfi.pflash01,property=secure,value=on" in values(command, "-global")


@pytest.mark.parametrize(
    ("kind", "code", "variables"),
    [
        ("uefi", "OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
        ("uefi", "OVMF_CODE.fd", "OVMF_VARS.fd"),
        ("uefi-secure", "OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.ms.fd"),
    ],
)
def test_firmware_is_found_under_the_names_of_distributions(
    tmp_path: Path, kind: Firmware, code: str, variables: str
) -> None:
    (tmp_path / code).touch()
    with pytest.raises(PreflightError, match="ovmf"):
        find_firmware(kind, (str(tmp_path),))
    (tmp_path / variables).touch()
    assert find_firmware(kind, ("/nowhere", str(tmp_path))) == Firm(tmp_path / code, tmp_path / variables)


def test_bios_needs_no_firmware_file() -> None:
    assert find_firmware("bios", ()) is None


def test_the_seed_gives_one_user_one_key_and_no_password() -> None:
    files = seed_files(replace(SPEC, hostname="node-b", user="probe"), "node-b-1", "ssh-ed25519 AAAA check\n")
    assert json.loads(files["meta-data"]) == {"instance-id": "node-b-1", "local-hostname": "node-b"}
    head, body = files["user-data"].split("\n", 1)
    assert head == "#cloud-config"
    assert json.loads(body)["users"] == [
        {
            "name": "probe",
            "shell": "/bin/bash",
            "sudo": "ALL=(ALL) NOPASSWD:ALL",
            "lock_passwd": True,
            "ssh_authorized_keys": ["ssh-ed25519 AAAA check"],
        }
    ]


def test_the_seed_has_the_label_that_cloud_init_looks_for() -> None:
    argv = seed_command(WORK)
    assert values(argv, "-V") == ["cidata"]
    assert argv[-2:] == ["/work/meta-data", "/work/user-data"]


def test_ssh_uses_nothing_of_the_callers_configuration() -> None:
    options = ssh_options(WORK, Path("/tmp/c"))
    assert options[:2] == ["-F", "none"]
    assert {"BatchMode=yes", "IdentitiesOnly=yes", "IdentityAgent=none", "ControlPath=/tmp/c/s"} <= set(options)


def test_the_end_of_a_console_is_readable() -> None:
    raw = b"\x1b[2J\x1b[01;01H\x1b[=3hBdsDxe: loading\r\n\x00\xff\r\n"
    raw += b"[  OK  ] Reached \x1b[0;1;39mtarget\x1b[0m\r\nlogin: "
    assert console_tail(raw, 2)[-1] == "login:"
    assert console_tail(raw, 2)[0] == "[  OK  ] Reached target"
    assert "BdsDxe: loading" in console_tail(raw, 9)
