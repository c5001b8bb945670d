"""The local route: what a build on this machine needs to know of an OS and of the site."""

from __future__ import annotations

from typing import Literal

from builder.model.base import Value


class Bootstrap(Value):
    """How a root tree of an OS is bootstrapped from its mirror."""

    suite: str
    mirror: str
    security_mirror: str = ""
    components: tuple[str, ...] = ("main",)
    keyring: str = "/usr/share/keyrings/debian-archive-keyring.gpg"
    kernel: str
    packages: tuple[str, ...]
    secure_boot_packages: tuple[str, ...] = ()


class LocalRoute(Value):
    """A provider's answer: how a local build of one target is run.

    `datasources` are those of cloud-init on the target's infrastructure, `tcg_cpu` the CPU model that this OS needs
    when it is emulated. The rest is where and with what this site builds.
    """

    lane: Literal["vm", "tree"]
    accelerator: Literal["auto", "kvm", "tcg"]
    cpus: int
    memory_mib: int
    cpu: str
    tcg_cpu: str
    ssh_timeout_s: int
    bootstrap: Bootstrap | None
    datasources: tuple[str, ...]
