"""Which components go together: what cannot work is refused by a named rule, what nobody tested gets a warning."""

from __future__ import annotations

from dataclasses import dataclass

from builder.core.errors import Problem
from builder.target.components import containerd_version
from builder.target.definitions import KubernetesDefinition, OsDefinition
from builder.target.options import Options
from builder.target.version import KubernetesVersion, component_key, parse_version


@dataclass(frozen=True, slots=True)
class Findings:
    """What the rules say: `refused` cannot work, `warned` may."""

    refused: tuple[Problem, ...] = ()
    warned: tuple[Problem, ...] = ()


def check_compatibility(
    options: Options, system: OsDefinition, series: KubernetesDefinition, version: KubernetesVersion
) -> Findings:
    """Hold a build's components against the facts of its Kubernetes series. Pure."""
    refused = [*_without_effect(options)]
    refused += _crictl(options, series)
    containerd = _containerd(options, system, series)
    warned = _self_built(series, version) if options.kubernetes.source == "module" else []
    return Findings((*refused, *containerd.refused), (*containerd.warned, *warned))


def _without_effect(options: Options) -> list[Problem]:
    """A version that is asked for where the source decides it is a mistake, not a wish to pass over in silence."""
    problems = []
    for name, asked in (("containerd", options.containerd), ("cni", options.cni), ("crictl", options.crictl)):
        if asked.version and asked.source not in ("url", "module"):
            what = f"rule version-of-source: {name}.source {asked.source} decides the version, not {name}.version"
            problems.append(Problem(what, f"{name}.version", f"--set {name}.source=url, or leave the version out"))
    return problems


def _crictl(options: Options, series: KubernetesDefinition) -> list[Problem]:
    if series.about.crictl_required and options.crictl.source == "none":
        what = f"rule crictl-required: kubeadm {series.name} needs crictl"
        return [Problem(what, "crictl.source", "--set crictl.source=url")]
    if options.crictl.source == "packages" and options.kubernetes.source != "packages":
        what = "rule crictl-packages: the package cri-tools is in the Kubernetes repository, which is not used"
        return [Problem(what, "crictl.source", "--set crictl.source=url, or --set kubernetes.source=packages")]
    return []


def _containerd(options: Options, system: OsDefinition, series: KubernetesDefinition) -> Findings:
    version = containerd_version(options, system, series)
    if not version:
        return Findings()
    facts = series.about.containerd
    key, line = component_key(version), ".".join(version.removeprefix("v").split(".")[:2])
    packaged = options.containerd.source == "packages"
    owner = f"containerd {version}" + (f" of {system.name}'s packages" if packaged else "")
    way_out = f"--set containerd.version={facts.default}"
    if packaged:
        way_out = f"--set containerd.source=module {way_out} (or source url)"
    if key < component_key(facts.minimum):
        what = f"{owner} is too old for Kubernetes {series.name}, which wants {facts.minimum}"
        return Findings(refused=(Problem(f"rule containerd-minimum: {what}", "containerd", way_out),))
    what = ""
    tested = facts.tested.get(line)
    if tested is not None and key < component_key(tested):
        what = f"{owner} is older than {tested}, the oldest of its line tested with Kubernetes {series.name}"
    elif tested is None and key < max(map(component_key, facts.tested.values())):
        what = f"{owner} is of a line that is not tested with Kubernetes {series.name}"
    return Findings(warned=(Problem(f"rule containerd-tested: {what}", "containerd", way_out),) if what else ())


def _self_built(series: KubernetesDefinition, version: KubernetesVersion) -> list[Problem]:
    faults = []
    for entry in series.about.self_built:
        if entry.clean_from is None or version < parse_version(entry.clean_from):
            faults.append(Problem(f"rule self-built: {entry.fault}", str(version), entry.remedy))
    return faults
