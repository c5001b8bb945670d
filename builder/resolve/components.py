"""containerd, runc, CNI plugins and crictl: each from its source, at the version asked for or the series names."""

from __future__ import annotations

from collections.abc import Callable

from builder.model.lock import Input
from builder.resolve.binaries import file_input, fill
from builder.resolve.request import ResolveRequest
from builder.target.components import CNI_PACKAGE

DIGEST_FILES = (".sha256sum", ".sha256")


def containerd_inputs(request: ResolveRequest) -> list[Input]:
    """Return the input `containerd`: a distribution `package`, a release `archive`, or a Go `module`."""
    options, version = request.options.containerd, request.components.containerd
    if options.source == "packages":
        return [_distribution(request, "containerd")]
    if options.source == "module":
        return [request.module("containerd", version)]
    return [_archive(request, "containerd", options.url, version)]


def runc_inputs(request: ResolveRequest) -> list[Input]:
    """Return the input `runc`: the distribution's package."""
    return [_distribution(request, "runc")]


def cni_inputs(request: ResolveRequest) -> list[Input]:
    """Return the input of the CNI plugins: a distribution `package`, a release `archive` or a `module` named cni."""
    options, version = request.options.cni, request.components.cni
    if options.source == "packages":
        return [_distribution(request, CNI_PACKAGE)]
    if options.source == "module":
        return [request.module("cni", version)]
    return [_archive(request, "cni", options.url, version)]


def crictl_inputs(request: ResolveRequest) -> list[Input]:
    """Return the release archive of crictl, or nothing: as a package it comes with the Kubernetes packages."""
    if request.components.crictl_source != "url":
        return []
    return [_archive(request, "crictl", request.options.crictl.url, request.components.crictl)]


PARTS: tuple[Callable[[ResolveRequest], list[Input]], ...] = (containerd_inputs, runc_inputs, cni_inputs, crictl_inputs)


def _distribution(request: ResolveRequest, package: str) -> Input:
    """Return a package of the distribution: its exact version is the mirror's matter, and noted in the manifest."""
    about = request.selection.system.about
    version = about.packaged.get(package, f"{about.distribution} {about.version}")
    return Input(name=package, kind="package", version=version)


def _archive(request: ResolveRequest, name: str, template: str, version: str) -> Input:
    location = fill(template, version, request.target.arch)
    return file_input(location, DIGEST_FILES, ("archive", name, version), request.web)
