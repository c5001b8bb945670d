"""The fingerprint: one sha256 over all that decides what is in an image, and over nothing else."""

from __future__ import annotations

from collections.abc import Mapping

from builder.core.digest import sha256_bytes, sha256_value
from builder.model.base import Value

KEY_VERSION = 1
"""Raised by hand when the same ingredients begin to give another image."""


class Ingredients(Value):
    """What counts. `files` are the rendered HCL, content values and unattended files, `roles` the playbooks and roles,
    each {name: sha256}; `tools` are {name: version} of what runs the build; `parent` is the fingerprint of the base.
    """

    lock_digest: str
    files: dict[str, str]
    roles: dict[str, str]
    tools: dict[str, str]
    parent: str = ""
    key_version: int = KEY_VERSION

    @property
    def fingerprint(self) -> str:
        """The hex sha256; equal if and only if all ingredients are equal."""
        return sha256_value(self.model_dump(mode="json"))


def file_digests(files: Mapping[str, bytes]) -> dict[str, str]:
    """Return {name: sha256} for the content files of a rendered stage."""
    return {name: sha256_bytes(data) for name, data in sorted(files.items())}


def difference(old: Ingredients, new: Ingredients) -> str:
    """Say in a few words what changed between two fingerprints, for the reason of a plan; empty when nothing did."""
    changes = []
    if old.key_version != new.key_version:
        changes.append("build-image itself")
    if old.lock_digest != new.lock_digest:
        changes.append("the inputs")
    for kind in ("files", "roles", "tools"):
        before: dict[str, str] = getattr(old, kind)
        after: dict[str, str] = getattr(new, kind)
        changes += [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    if old.parent != new.parent:
        changes.append("the base")
    if len(changes) > 3:
        changes = [*changes[:3], f"{len(changes) - 3} more"]
    return f"{', '.join(changes)} changed" if changes else ""
