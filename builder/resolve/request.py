"""What the resolver is asked: one selection, and the doors through which it looks things up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from builder.model.local import Bootstrap
from builder.model.lock import Input
from builder.model.target import Target
from builder.resolve.golang import find_go
from builder.resolve.gomodule import module_pin, pinned
from builder.resolve.web import Web
from builder.target.components import Components, components_of
from builder.target.options import Options
from builder.target.select import Selection
from builder.target.version import KubernetesVersion


def module_input(name: str, version: str) -> Input:
    """Return the lock input of a component that is compiled from its Go module.

    Raises PreflightError when no Go is found or the module proxy does not have the version.
    """
    own = pinned(name, version)
    return own.lock_input if own else module_pin(name, version, find_go()).lock_input


@dataclass(frozen=True, slots=True)
class ResolveRequest:
    """One selection to resolve. `bootstrap`: None when the OS cannot be bootstrapped on its infrastructure.

    `images` gives the inputs of the container images; `module` those of a Go module by component and version.
    """

    selection: Selection
    bootstrap: Bootstrap | None
    images: Callable[[ResolveRequest], Sequence[Input]]
    web: Web = field(default_factory=Web)
    module: Callable[[str, str], Input] = module_input

    @property
    def options(self) -> Options:
        """The options of the build."""
        return self.selection.options

    @property
    def target(self) -> Target:
        """The target that is resolved."""
        return self.selection.target

    @property
    def version(self) -> KubernetesVersion:
        """The Kubernetes version of the target."""
        return self.selection.version

    @property
    def components(self) -> Components:
        """The versions of the components."""
        chosen = self.selection
        return components_of(
            chosen.options, chosen.system, chosen.series, chosen.version, chosen.definitions.compatibility
        )
