"""Site settings of the qemu provider, and its part of an OS file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from builder.model.base import Value, placement
from builder.model.local import Bootstrap, LocalRoute


class Settings(Value):
    """Where and with what a QEMU build runs."""

    lane: Literal["vm", "tree"] = placement(
        "vm", "vm: Packer's qemu builder; tree: sshd in namespaces over a copy-on-write tree (root only, seconds)"
    )
    accelerator: Literal["auto", "kvm", "tcg"] = placement(
        "auto", "auto: KVM when a guest really starts with it, else TCG"
    )
    cpus: Annotated[int, Field(ge=1, le=64)] = placement(2, "virtual CPUs of the build VM")
    memory_mib: Annotated[int, Field(ge=512)] = placement(2048, "memory of the build VM")
    cpu: str = placement("", "CPU model; empty: host with KVM, else the one the OS file names for TCG")
    ssh_timeout_s: Annotated[int, Field(ge=10)] = placement(900, "how long a VM may take to answer ssh")


class OsFacts(Value):
    """The qemu part of an OS file."""

    bootstrap: Bootstrap | None = None
    tcg_cpu: str = "qemu64"
    datasources: tuple[str, ...] = ("NoCloud", "ConfigDrive", "None")


def local_route(settings: Settings, facts: OsFacts) -> LocalRoute:
    """Return how this site builds an image of an OS with QEMU."""
    return LocalRoute(
        lane=settings.lane,
        accelerator=settings.accelerator,
        cpus=settings.cpus,
        memory_mib=settings.memory_mib,
        cpu=settings.cpu,
        tcg_cpu=facts.tcg_cpu,
        ssh_timeout_s=settings.ssh_timeout_s,
        bootstrap=facts.bootstrap,
        datasources=facts.datasources,
    )
