"""Where kubeadm, kubelet and kubectl come from: a package repository, a folder of binaries, or their Go module."""

from __future__ import annotations

from builder.core.errors import ConfigError, PreflightError
from builder.model.lock import Input, Lock
from builder.resolve.binaries import program_inputs
from builder.resolve.packages import (
    CRICTL_PACKAGE,
    PROGRAMS,
    REPOSITORY,
    choose_packages,
    package_inputs,
    read_repository,
    repository_url,
)
from builder.resolve.request import ResolveRequest
from builder.resolve.web import NotThere, Web
from builder.target.options import KubernetesOptions
from builder.target.version import KubernetesVersion

ARMOR = "-----BEGIN PGP PUBLIC KEY BLOCK-----"
SELF_BUILT = "self-built"


def flavour_of(request: ResolveRequest) -> str:
    """Return who made the Kubernetes programs: the flavour of the version, or self-built when we compile them."""
    return SELF_BUILT if request.options.kubernetes.source == "module" else request.version.flavour


def kubernetes_inputs(request: ResolveRequest) -> list[Input]:
    """Return the inputs of the Kubernetes programs by `kubernetes.source`.

    packages: kind `package`, with the Debian version as revision, and the repository as `suite`
    `kubernetes-repository` with the digest of its key; url: kind `binary`; module: one `module` named kubernetes.
    Raises PreflightError when the version is not there, with the nearest ones where they are known.
    """
    options = request.options.kubernetes
    if options.source == "packages":
        return _from_packages(request)
    if options.source == "url":
        return program_inputs(PROGRAMS, options.url, str(request.version), request.target.arch, request.web)
    if request.version.suffix:
        what = f"the Go module k8s.io/kubernetes has no version of flavour {request.version.flavour}"
        raise ConfigError(what, str(request.version), "kubernetes.source packages or url has vendors' versions")
    return [request.module("kubernetes", str(request.version))]


def _from_packages(request: ResolveRequest) -> list[Input]:
    options = request.options.kubernetes
    url = repository_url(options.repository, request.version)
    repository = read_repository(url, options.repository_key, request.target.arch, request.web)
    with_crictl = request.components.crictl_source == "packages"
    chosen = choose_packages(repository, request.version, with_crictl)
    if request.options.crictl.source == "packages" and CRICTL_PACKAGE not in chosen:
        raise PreflightError(f"the repository has no {CRICTL_PACKAGE}", url, "--set crictl.source=url or none")
    key = repository_key(options, request.version, request.web)
    return [*package_inputs(repository, chosen, key.encode())]


def repository_key(options: KubernetesOptions, version: KubernetesVersion, web: Web) -> str:
    """Return the armored public key of the package repository, for apt in the guest.

    Raises PreflightError when it is not there or is no armored key.
    """
    location = options.repository_key or f"{repository_url(options.repository, version)}Release.key"
    try:
        text = web.text(location)
    except NotThere as error:
        hint = "name it with kubernetes.repository_key (URL or path)"
        raise PreflightError("the repository's signing key is not there", location, hint) from error
    if ARMOR not in text:
        raise PreflightError("it is no armored public key", location, f"the file has a line {ARMOR}")
    return text


def package_versions(lock: Lock) -> dict[str, str]:
    """Return {package: Debian version} of what is installed from the Kubernetes repository; empty for other sources."""
    return {entry.name: entry.revision for entry in lock.of("package") if entry.revision}


def repository_address(lock: Lock) -> str:
    """Return the address of the Kubernetes package repository in a lock; empty for other sources."""
    found = lock.find("suite", REPOSITORY)
    return (found.url or "") if found else ""
