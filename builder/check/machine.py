"""The virtual machine a check boots: its hardware as a QEMU command line, its first-boot data as NoCloud files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from builder.core.errors import PreflightError

DiskFormat = Literal["qcow2", "raw", "vmdk"]
Bus = Literal["virtio", "pvscsi", "sata", "ide", "nvme"]
Nic = Literal["virtio-net-pci", "vmxnet3", "e1000e"]
Firmware = Literal["bios", "uefi", "uefi-secure"]
Accelerator = Literal["kvm", "tcg"]

BUS_DEVICES: dict[Bus, tuple[str, ...]] = {
    "virtio": ("-device", "virtio-blk-pci,drive=disk,bootindex=1"),
    "pvscsi": ("-device", "pvscsi,id=scsi", "-device", "scsi-hd,bus=scsi.0,drive=disk,bootindex=1"),
    "sata": ("-device", "ich9-ahci,id=sata", "-device", "ide-hd,bus=sata.0,drive=disk,bootindex=1"),
    "ide": ("-device", "ide-hd,bus=ide.0,drive=disk,bootindex=1"),
    "nvme": ("-device", "nvme,serial=1,drive=disk,bootindex=1"),
}
FIRMWARE_FOLDERS = ("/usr/share/OVMF", "/usr/share/edk2/ovmf", "/usr/share/edk2/x64", "/usr/share/qemu")
# (code, variables): names in Debian and Ubuntu, Fedora and EL, Arch. The pair with Secure Boot holds Microsoft's keys.
FIRMWARE_NAMES: dict[Firmware, tuple[tuple[str, str], ...]] = {
    "bios": (),
    "uefi": (
        ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
        ("OVMF_CODE.fd", "OVMF_VARS.fd"),
        ("OVMF_CODE.4m.fd", "OVMF_VARS.4m.fd"),
    ),
    "uefi-secure": (
        ("OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.ms.fd"),
        ("OVMF_CODE.secboot.fd", "OVMF_VARS.secboot.fd"),
    ),
}


@dataclass(frozen=True, slots=True)
class DirectBoot:
    """A kernel and initramfs that QEMU starts itself, past firmware and boot loader, with a kernel command line."""

    kernel: Path
    initrd: Path
    arguments: str = "root=LABEL=root ro console=ttyS0 quiet"


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """How a disk is booted for a check.

    `disk` itself is never written: changes go to a temporary file that QEMU deletes, or, when `overlay` is given, to
    that qcow2, which is made if it is not there and can be booted again. `cpu` empty: host with KVM, qemu64 without
    (a fifth less work for TCG than `max`). `restricted`: no network but loopback and the forwarded ssh port; the
    guest gets an address, but neither a route nor a name server. `direct` skips the boot loader: for measurements only,
    as it would hide one that is broken. `timeout_s` bounds power-on to ssh.
    """

    disk: Path
    format: DiskFormat = "qcow2"
    overlay: Path | None = None
    bus: Bus = "virtio"
    nic: Nic = "virtio-net-pci"
    firmware: Firmware = "bios"
    memory_mib: int = 2304
    cpus: int = 2
    accelerator: Accelerator = "tcg"
    cpu: str = ""
    restricted: bool = False
    direct: DirectBoot | None = None
    hostname: str = "node-a"
    user: str = "check"
    timeout_s: float = 900.0


@dataclass(frozen=True, slots=True)
class Firm:
    """The two files of a UEFI firmware: `code` is shared and read-only, `variables` is a template to copy."""

    code: Path
    variables: Path


def find_firmware(kind: Firmware, folders: tuple[str, ...] = FIRMWARE_FOLDERS) -> Firm | None:
    """Return the firmware files of this machine, None for BIOS. Raises PreflightError when they are missing."""
    if kind == "bios":
        return None
    for folder in folders:
        for code, variables in FIRMWARE_NAMES[kind]:
            found = Firm(Path(folder, code), Path(folder, variables))
            if found.code.exists() and found.variables.exists():
                return found
    raise PreflightError(f"no {kind} firmware for QEMU is installed", hint="apt-get install ovmf")


def qemu_command(spec: GuestSpec, work: Path, port: int, firm: Firm | None) -> list[str]:
    """Return the QEMU command line; `work` holds seed.iso, serial.log and (UEFI) vars.fd, `port` leads to ssh."""
    # A plain IDE controller exists only on the older machine; on q35 the name `ide.0` is an AHCI port.
    machine = "pc" if spec.bus == "ide" else "q35"
    # graphics=off: SeaBIOS writes to the serial port, so that "No bootable device" can be read there.
    machine += {"bios": ",graphics=off", "uefi": "", "uefi-secure": ",smm=on"}[spec.firmware]
    command = ["qemu-system-x86_64", "-name", spec.hostname, "-nodefaults", "-no-user-config", "-no-reboot"]
    command += ["-machine", machine, "-accel", _accelerator(spec), "-cpu", cpu_model(spec)]
    command += ["-smp", str(spec.cpus), "-m", str(spec.memory_mib), "-display", "none", "-vga", "none"]
    command += ["-monitor", "none", "-serial", f"file:{_value(work / 'serial.log')}", "-device", "virtio-rng-pci"]
    command += ["-drive", _disk(spec), *BUS_DEVICES[spec.bus]]
    command += ["-drive", f"if=none,id=seed,format=raw,readonly=on,file={_value(work / 'seed.iso')}"]
    command += ["-device", "virtio-blk-pci,drive=seed"]
    restrict = "restrict=on," if spec.restricted else ""
    command += ["-netdev", f"user,id=net,{restrict}hostfwd=tcp:127.0.0.1:{port}-:22"]
    # No option ROM: firmware that finds no system must not go on to network boot for minutes.
    command += ["-device", f"{spec.nic},netdev=net,romfile="]
    if spec.direct:
        command += ["-kernel", str(spec.direct.kernel), "-initrd", str(spec.direct.initrd)]
        command += ["-append", spec.direct.arguments]
    return command + (_pflash(spec, work, firm) if firm else [])


def cpu_model(spec: GuestSpec) -> str:
    """Return the CPU model that the guest sees."""
    return spec.cpu or ("host" if spec.accelerator == "kvm" else "qemu64")


def seed_files(spec: GuestSpec, instance_id: str, public_key: str) -> dict[str, str]:
    """Return the NoCloud files of a first boot: one user with one key and sudo, no password.

    https://cloudinit.readthedocs.io/en/latest/reference/datasources/nocloud.html
    """
    user = {
        "name": spec.user,
        "shell": "/bin/bash",
        "sudo": "ALL=(ALL) NOPASSWD:ALL",
        "lock_passwd": True,
        "ssh_authorized_keys": [public_key.strip()],
    }
    # JSON is YAML: nothing has to be quoted by hand.
    return {
        "meta-data": json.dumps({"instance-id": instance_id, "local-hostname": spec.hostname}) + "\n",
        "user-data": "#cloud-config\n" + json.dumps({"users": [user]}) + "\n",
    }


def seed_command(work: Path) -> list[str]:
    """Return the command that packs the seed files of `work` into seed.iso."""
    files = [str(work / "meta-data"), str(work / "user-data")]
    return ["xorriso", "-as", "mkisofs", "-quiet", "-V", "cidata", "-J", "-r", "-o", str(work / "seed.iso"), *files]


def overlay_command(spec: GuestSpec, overlay: Path) -> list[str]:
    """Return the command that makes the qcow2 that takes the guest's writes."""
    return ["qemu-img", "create", "-q", "-f", "qcow2", "-F", spec.format, "-b", str(spec.disk.absolute()), str(overlay)]


def _value(path: Path) -> str:
    """Quote a path inside a QEMU option, where a comma ends the value."""
    return str(path).replace(",", ",,")


def _disk(spec: GuestSpec) -> str:
    common = "if=none,id=disk,discard=unmap,cache=unsafe"
    if spec.overlay:
        return f"{common},format=qcow2,file={_value(spec.overlay)}"
    return f"{common},snapshot=on,format={spec.format},file={_value(spec.disk)}"


def _accelerator(spec: GuestSpec) -> str:
    # The translation cache is 1 GiB by default; more than a booting node fills.
    return "kvm" if spec.accelerator == "kvm" else "tcg,thread=multi,tb-size=512"


def _pflash(spec: GuestSpec, work: Path, firm: Firm) -> list[str]:
    drives = ["-drive", f"if=pflash,format=raw,readonly=on,file={_value(firm.code)}"]
    drives += ["-drive", f"if=pflash,format=raw,file={_value(work / 'vars.fd')}"]
    if spec.firmware == "uefi-secure":
        # Only code in system management mode may write variables, and no way around it through S3 resume.
        drives += ["-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1"]
    return drives
