"""From a lock to what decides the content of each stage: Ansible's variables, rendered files, roles, tools."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from builder.build.render import PLAYBOOKS, Content, Lane, Source, Stage, content_files
from builder.core.digest import sha256_value, tree_digests
from builder.core.paths import share
from builder.model.lock import Lock
from builder.plan.fingerprint import Ingredients, file_digests
from builder.resolve.kubernetes import package_versions
from builder.target.options import Options

BASE = "base"
"""The input that a base is made from; the others belong to Kubernetes."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the variables of the roles come from, beside lock and options. `key` is the repository's, armored."""

    os_family: str
    distribution: str
    version: str
    codename: str
    datasources: tuple[str, ...]
    containerd_version: str
    containerd_config: int
    pause_image: str
    images: tuple[str, ...]
    repository_url: str = ""
    repository_key: str = ""


def base_vars(lock: Lock, options: Options, facts: Facts) -> dict[str, Any]:
    """Return the Ansible variables of the base stage: nothing of them depends on Kubernetes."""
    return {
        "os_family": facts.os_family,
        "distribution": facts.distribution,
        "distribution_version": facts.version,
        "distribution_codename": facts.codename,
        "architecture": lock.target.arch,
        "infra": lock.target.infra,
        "base_packages": list(options.base.packages),
        "cloud_init_datasources": list(facts.datasources),
    }


def node_vars(lock: Lock, options: Options, facts: Facts) -> dict[str, Any]:
    """Return the Ansible variables of the node stage; a user's own variables win.

    How images come in (`images_mode`) is known when the caches were looked at, and is added there.
    """
    crictl = lock.find("package", "cri-tools") or lock.find("archive", "crictl")
    crictl_source = "none" if crictl is None else "packages" if crictl.kind == "package" else "url"
    return base_vars(lock, options, facts) | {
        "kubernetes_version": lock.target.kubernetes,
        "kubernetes_source": options.kubernetes.source,
        "kubernetes_package_versions": package_versions(lock),
        "kubernetes_repository": {"url": facts.repository_url, "key": facts.repository_key},
        "containerd_source": options.containerd.source,
        "containerd_version": facts.containerd_version,
        "containerd_config_schema": facts.containerd_config,
        "containerd_pause_image": facts.pause_image,
        "cni_source": options.cni.source,
        "cni_version": options.cni.version,
        "crictl_source": crictl_source,
        "images_expected": sorted(facts.images),
        **options.build.extra_vars,
    }


@dataclass(frozen=True, slots=True)
class Recipe:
    """The content of one stage and everything that counts in its fingerprint."""

    content: Content
    ingredients: Ingredients


def recipe(content: Content, inputs: Any, tools: Mapping[str, str], parent: str = "") -> Recipe:
    """Return the recipe of a stage; `inputs` is the JSON value of the lock's part that belongs to it. Reads roles."""
    ingredients = Ingredients(
        lock_digest=sha256_value(inputs),
        files=file_digests(content_files(content)),
        roles=role_digests(content.stage),
        tools=dict(tools),
        parent=parent,
    )
    return Recipe(content, ingredients)


def base_inputs(lock: Lock) -> Any:
    """Return the part of a lock that a base is made from, as JSON: the same for every Kubernetes version."""
    kept = [entry.model_dump(mode="json") for entry in lock.inputs if entry.name == BASE]
    return {"os": lock.target.os, "infra": lock.target.infra, "arch": lock.target.arch, "inputs": kept}


def node_inputs(lock: Lock) -> Any:
    """Return the whole lock as JSON, without the time of its resolution."""
    return lock.model_dump(mode="json", exclude={"resolved_at"})


def stage_content(stage: Stage, lane: Lane, source: Source, options: Options, variables: Mapping[str, Any]) -> Content:
    """Return what decides the content of a stage."""
    return Content(
        stage=stage, lane=lane, disk_size_gib=options.disk.size_gib, ansible_vars=dict(variables), source=source
    )


def role_digests(stage: Stage) -> dict[str, str]:
    """Return {path: sha256} of a stage's playbooks, every file of the roles they name, and the scripts roles share."""
    folder = share("playbooks")
    found = [folder / "files"]
    for name in PLAYBOOKS[stage]:
        found.append(folder / name)
        for play in yaml.safe_load((folder / name).read_text()):
            found += [folder / "roles" / role["role"] for role in play["roles"]]
    return dict(tree_digests(folder, found))
