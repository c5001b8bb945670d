"""Every option of a build: one field each, declared content (changes the image) or placement (where and how)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from builder.model.base import Value, content, placement

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
LOCATION = "location"
Location = Annotated[str, LOCATION]
"""A URL, or a path; a relative path in a file is relative to that file."""


class KubernetesOptions(Value):
    """Where kubeadm, kubelet and kubectl come from."""

    source: Literal["packages", "url", "module"] = content(
        "packages",
        "packages: a deb repository; url: a folder or base URL with binaries and .sha256 files; "
        "module: compiled from the Go module k8s.io/kubernetes",
    )
    repository: str = content(
        "https://pkgs.k8s.io/core:/stable:/{series}/deb/", "package repository; {series} becomes v1.34"
    )
    repository_key: Location = content(
        "", "signing key of the repository: URL or path; empty: Release.key in the repository"
    )
    url: Location = content(
        "https://dl.k8s.io/release/{version}/bin/linux/{arch}", "base URL or folder of the binaries, for source url"
    )


class ImagesOptions(Value):
    """Which container images are pre-loaded and where they come from."""

    source: Literal["registry", "archive", "module", "none"] = content(
        "registry",
        "registry: pulled by digest; archive: OCI or docker archives in a folder; "
        "module: compiled from Go modules; none: no images",
    )
    registry: str = content("registry.k8s.io", "registry that kubeadm uses (imageRepository)")
    tls_verify: bool = placement(
        True, "false: talk to a registry without TLS, or with a certificate that nobody vouches for"
    )
    archives: Path | None = placement(None, "folder of archives, for source archive")
    extra: tuple[str, ...] = content((), "more images to pull, by name or name@digest")
    extra_archives: tuple[Path, ...] = placement(
        (), "your own images, also unpublished ones: local OCI or docker archives"
    )


class ContainerdOptions(Value):
    """The container runtime."""

    source: Literal["packages", "url", "module"] = content(
        "packages", "packages: the distribution's; url: a release tarball; module: compiled from the Go module"
    )
    version: str = content(
        "", "version such as v2.1.4; empty: what the source gives (packages) or the Kubernetes series names"
    )
    url: Location = content(
        "https://github.com/containerd/containerd/releases/download/{version}/containerd-{number}-linux-{arch}.tar.gz",
        "URL or path of a release tarball, with a .sha256sum file beside it",
    )


class CniOptions(Value):
    """The CNI plugins in /opt/cni/bin."""

    source: Literal["packages", "url", "module"] = content("packages", "packages, url (release tarball) or module")
    version: str = content("", "version such as v1.8.0; empty: what the Kubernetes series names")
    url: Location = content(
        "https://github.com/containernetworking/plugins/releases/download/{version}/cni-plugins-linux-{arch}-{version}.tgz",
        "URL or path of a release tarball, with a .sha256 file beside it",
    )


class CrictlOptions(Value):
    """crictl: kubeadm needs it below 1.31; above, it is installed where the source has it."""

    source: Literal["auto", "none", "packages", "url"] = content(
        "auto", "auto: with packages from the Kubernetes repository, else none from 1.31 on"
    )
    version: str = content("", "version such as v1.34.0")
    url: Location = content(
        "https://github.com/kubernetes-sigs/cri-tools/releases/download/{version}/crictl-{version}-linux-{arch}.tar.gz",
        "URL or path of a release tarball, with a .sha256 file beside it",
    )


class BaseOptions(Value):
    """What the base image starts from."""

    source: Literal["bootstrap", "image", "iso"] = content(
        "bootstrap", "bootstrap: mmdebstrap from the mirror; image: a cloud image; iso: an installer ISO"
    )
    url: Location = content("", "URL or path of the cloud image or ISO")
    sha256: Sha256 | None = content(None, "sha256 of the cloud image or ISO; required with url")
    packages: tuple[str, ...] = content((), "more distribution packages for the base image")
    secure_boot: bool = content(False, "boot through shim and a signed GRUB")
    max_age_days: Annotated[int, Field(ge=0)] = placement(
        7, "a base older than this is built again, for security updates"
    )
    apt_sources: Path | None = placement(
        None,
        "apt source file to bootstrap with; default: the one of this host when it is of the same distribution "
        "and suite, else the distribution's mirror",
    )


class DiskOptions(Value):
    """The disk of the image."""

    size_gib: Annotated[int, Field(ge=3)] = content(8, "virtual size; the root file system grows at first boot")


class OutputOptions(Value):
    """Which files a run leaves."""

    raw: bool = placement(False, "also write a raw disk")
    compress: bool = placement(True, "compress the qcow2 (zstd)")


class BuildOptions(Value):
    """How builds are run."""

    single_stage: bool = content(False, "base and node in one Packer run, no cached base")
    user: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,30}$")] = placement(
        "builder", "user that Packer logs in as; it is gone from the finished image"
    )
    apt_proxy: str = placement("", "apt proxy during the build; not in the image")
    extra_vars: dict[str, str | int | bool | list[str]] = content({}, "more Ansible variables for your own roles")


class Options(Value):
    """All options of a build, infrastructure settings aside (those are the provider's own model)."""

    kubernetes: KubernetesOptions = KubernetesOptions()
    images: ImagesOptions = ImagesOptions()
    containerd: ContainerdOptions = ContainerdOptions()
    cni: CniOptions = CniOptions()
    crictl: CrictlOptions = CrictlOptions()
    base: BaseOptions = BaseOptions()
    disk: DiskOptions = DiskOptions()
    output: OutputOptions = OutputOptions()
    build: BuildOptions = BuildOptions()
