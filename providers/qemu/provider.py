"""The qemu provider: what it needs of this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from builder.core.errors import Problem
from builder.core.paths import cache_home
from builder.core.tools import BUILD_TOOLS, GUEST_TOOLS, TREE_TOOLS, free_bytes, missing_space, missing_tools
from builder.model.base import Value
from builder.model.local import LocalRoute
from providers.qemu.settings import OsFacts, Settings, local_route

GIB = 1 << 30
CACHE_BYTES = 4 * GIB  # a tree and its base disk, the payload of one Kubernetes version
MEMORY_INFO = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class QemuProvider:
    """Images for QEMU and everything that takes a qcow2."""

    name: str = "qemu"
    settings_model: type[Value] = Settings
    facts_model: type[Value] = OsFacts

    def preflight(self, settings: Value) -> list[Problem]:
        """Return what this machine lacks for the lane that is asked for, all at once."""
        assert isinstance(settings, Settings)
        if settings.lane == "tree":
            problems = [*tree_problems(os.geteuid()), *missing_tools([*BUILD_TOOLS, *TREE_TOOLS], "qemu.lane tree")]
        else:
            problems = [*missing_tools([*BUILD_TOOLS, *GUEST_TOOLS], "qemu.lane vm")]
            problems += memory_problems(settings.memory_mib, MEMORY_INFO.read_text())
        return [*problems, *missing_space({cache_home(): CACHE_BYTES}, free_bytes)]

    def local_route(self, settings: Value, facts: Value) -> LocalRoute:
        """Return how this site builds an image of an OS with QEMU."""
        assert isinstance(settings, Settings)
        assert isinstance(facts, OsFacts)
        return local_route(settings, facts)


def tree_problems(user: int) -> list[Problem]:
    """Return why a user cannot build in a tree: mounts and namespaces are root's."""
    if user == 0:
        return []
    return [Problem("the tree lane needs root", "qemu.lane", "--set qemu.lane=vm builds without root")]


def memory_problems(wanted_mib: int, memory_info: str) -> list[Problem]:
    """Return a problem when a guest of this size does not fit into the memory that is free now.

    `memory_info` is the text of /proc/meminfo, whose unit is KiB.
    """
    fields = dict(line.split(":", 1) for line in memory_info.splitlines() if ":" in line)
    free_mib = int(fields["MemAvailable"].split()[0]) // 1024
    if free_mib >= wanted_mib:
        return []
    hint = f"end other programs, or --set qemu.memory_mib={max(512, free_mib // 2)}"
    return [Problem(f"{free_mib} MiB of memory free, {wanted_mib} MiB for the guest", "qemu.memory_mib", hint)]
