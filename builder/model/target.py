"""A target: one OS, one Kubernetes version, one infrastructure."""

from __future__ import annotations

from builder.model.base import Value


class Target(Value):
    """What image is asked for. `kubernetes` keeps its leading v, such as `v1.34.3`."""

    os: str
    kubernetes: str
    infra: str
    arch: str = "amd64"
    firmware: str = ""
    method: str = ""
    profiles: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The name of the target in files and clouds: fixed order, defaults left out, `+` written `---`."""
        arch = "" if self.arch == "amd64" else self.arch
        parts = [self.os, self.kubernetes, self.infra, arch, self.firmware, self.method, *self.profiles]
        return "-".join(part for part in parts if part).replace("+", "---")
