"""Site settings of the qemu provider, and its part of an OS file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from builder.model.base import Value, content, placement


class Settings(Value):
    """Where and with what a QEMU build runs."""

    lane: Literal["vm", "tree"] = placement(
        "vm", "vm: Packer's qemu builder; tree: sshd in namespaces over a copy-on-write tree (root only, seconds)"
    )
    accelerator: Literal["auto", "kvm", "tcg"] = placement(
        "auto", "auto: KVM when a guest really starts with it, else TCG"
    )
    cpus: Annotated[int, placement(ge=1, le=64)] = Field(2, "virtual CPUs of the build VM")
    memory_mib: Annotated[int, placement(ge=512)] = Field(2048, "memory of the build VM")
    cpu: str = placement("", "CPU model; empty: host with KVM, else the one the OS file names for TCG")
    ssh_timeout_s: Annotated[int, placement(ge=10)] = Field(900, "how long a VM may take to answer ssh")


class Bootstrap(Value):
    """How a root tree of this OS is bootstrapped."""

    suite: str
    mirror: str
    security_mirror: str = ""
    components: tuple[str, ...] = ("main",)
    keyring: str = "/usr/share/keyrings/debian-archive-keyring.gpg"
    kernel: str
    packages: tuple[str, ...]
    secure_boot_packages: tuple[str, ...] = ()


class OsFacts(Value):
    """The qemu part of an OS file."""

    bootstrap: Bootstrap | None = None
    tcg_cpu: str = "qemu64"
    datasources: tuple[str, ...] = ("NoCloud", "ConfigDrive", "None")
