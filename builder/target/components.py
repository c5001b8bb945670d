"""Which version of each component a build has: the option, else what its source gives, else what the series names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from builder.target.definitions import Compatibility, KubernetesDefinition, OsDefinition
from builder.target.options import Options
from builder.target.version import KubernetesVersion

CrictlSource = Literal["none", "packages", "url"]
CNI_PACKAGE = "containernetworking-plugins"


@dataclass(frozen=True, slots=True)
class Components:
    """The components beside Kubernetes. A version is `v2.1.4`, or empty when only the distribution knows it.

    `containerd_config` is the version of config.toml; `pause`, `etcd` and `coredns` are image tags.
    """

    containerd: str
    containerd_config: int
    cni: str
    crictl_source: CrictlSource
    crictl: str
    pause: str
    etcd: str
    coredns: str

    def pause_image(self, registry: str) -> str:
        """Return the full name of the pause image, as kubeadm names it."""
        return f"{registry}/pause:{self.pause}"


def components_of(
    options: Options,
    system: OsDefinition,
    series: KubernetesDefinition,
    version: KubernetesVersion,
    compatibility: Compatibility,
) -> Components:
    """Return the components of a build. Pure; `check_compatibility` says whether they go together."""
    containerd = containerd_version(options, system, series)
    crictl = crictl_source(options, series)
    tags = series.images_at(version)
    return Components(
        containerd=containerd,
        containerd_config=compatibility.config_schema(containerd),
        cni=_version(options.cni.version, options.cni.source, series.about.cni.default, system, CNI_PACKAGE),
        crictl_source=crictl,
        crictl=with_v(options.crictl.version or series.about.crictl.default) if crictl == "url" else "",
        pause=tags.pause,
        etcd=tags.etcd,
        coredns=tags.coredns,
    )


def containerd_version(options: Options, system: OsDefinition, series: KubernetesDefinition) -> str:
    """Return the version of containerd, such as `v2.1.4`; empty when only the distribution knows it."""
    asked = options.containerd
    return _version(asked.version, asked.source, series.about.containerd.default, system, "containerd")


def crictl_source(options: Options, series: KubernetesDefinition) -> CrictlSource:
    """Return where crictl comes from; `auto` is the Kubernetes repository, else a download where kubeadm needs it."""
    if options.crictl.source != "auto":
        return options.crictl.source
    if options.kubernetes.source == "packages":
        return "packages"
    return "url" if series.about.crictl_required else "none"


def with_v(version: str) -> str:
    """Return a version with its leading v; the empty text stays empty."""
    return version if version.startswith("v") or not version else f"v{version}"


def _version(asked: str, source: str, default: str, system: OsDefinition, package: str) -> str:
    if source == "packages":
        return with_v(system.about.packaged.get(package, ""))
    return with_v(asked or default)
