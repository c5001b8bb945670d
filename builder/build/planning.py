"""From a lock to a plan: looks at caches and tools, starts no build. --dry-run ends here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path

from builder.build.bases import BaseWish, find_base
from builder.build.bootstrap import BootstrapSpec, find_tree
from builder.build.compile import compilation, find_compiled, host_arch
from builder.build.ingredients import (
    Facts,
    Recipe,
    base_inputs,
    base_vars,
    node_inputs,
    node_vars,
    recipe,
    stage_content,
)
from builder.build.packer import Packer, find_packer, version_text
from builder.build.payload import PayloadSpec, look_at_payload
from builder.build.render import Source, Stage
from builder.core.errors import BuildImageError
from builder.model.local import LocalRoute
from builder.model.lock import Lock
from builder.model.plan import Action, Plan
from builder.plan.actions import Found, PlanInputs, make_plan
from builder.resolve.golang import find_go
from builder.resolve.gomodule import pinned
from builder.target.options import Options

SOURCES: Mapping[str, Source] = {"bootstrap": "disk", "image": "disk", "iso": "iso"}


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be built, resolved and with its surroundings; `cache` is the folder of all caches."""

    lock: Lock
    options: Options
    route: LocalRoute
    facts: Facts
    payload: PayloadSpec
    cache: Path
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan and what it was made from. `base` is None in a single-stage build, `packer` until it is compiled."""

    order: Order
    plan: Plan
    node: Recipe
    base: Recipe | None
    wish: BaseWish | None
    bootstrap: BootstrapSpec | None
    packer: Packer | None


def plan_build(order: Order) -> Planned:
    """Return what must be done for an order, with reasons. Asks the mirror for its Release file, builds nothing.

    Raises PreflightError when there is neither a Packer nor a Go to compile one.
    """
    packer = find_packer(compiled_packer())
    if packer is None:
        find_go()
    tools = tool_versions(packer)
    source, lane = SOURCES[order.options.base.source], order.route.lane
    bootstrap = bootstrap_spec(order)
    tree, why_tree = find_tree(bootstrap, order.cache / "trees") if bootstrap else (None, "")
    base, wish = None, None
    if not order.options.build.single_stage:
        content = stage_content("base", lane, source, order.options, base_vars(order.lock, order.options, order.facts))
        base = recipe(content, base_inputs(order.lock), tools)
        group = f"{order.lock.target.os}-{order.lock.target.infra}-{lane}"
        # A layer stands on its tree; without one, no key fits.
        tree_key = (tree.key if tree else "none") if lane == "tree" else None
        wish = BaseWish(group, base.ingredients, order.options.base.max_age_days, tree_key)
    look = look_at_payload(order.payload)
    stage: Stage = "single" if base is None else "node"
    variables = node_vars(order.lock, order.options, order.facts) | {"images_mode": look.images_mode}
    content = stage_content(stage, lane, source if base is None else "disk", order.options, variables)
    parent = base.ingredients.fingerprint if base else ""
    compiler = {"go": find_go().version} if order.lock.of("module") else {}
    node = recipe(content, node_inputs(order.lock), tools | compiler, parent)
    found_base, why_base = find_base(order.cache / "bases", wish) if wish else (None, "")
    plan = make_plan(
        PlanInputs(
            lock=order.lock,
            lane=lane,
            base_fingerprint=parent,
            fingerprint=node.ingredients.fingerprint,
            payload=Found(look.ready, look.why),
            tree=Found(tree is not None, why_tree) if bootstrap else None,
            base=Found(found_base is not None, why_base) if wish else None,
            outputs=order.outputs,
        )
    )
    return Planned(order, _with_tools(plan, packer), node, base, wish, bootstrap, packer)


def _with_tools(plan: Plan, packer: Packer | None) -> Plan:
    if packer is not None:
        return plan
    why = "no Packer >= 1.9.4 is on PATH and it was not compiled on this machine yet"
    action = Action(stage="prepare", name=f"Packer {pinned_packer()}", action="run", why=why)
    return plan.model_copy(update={"actions": (action, *plan.actions)})


def pinned_packer() -> str:
    """Return the version of the Packer that is compiled when none is on PATH: `1.9.4`."""
    pin = pinned("packer")
    return pin.version.removeprefix("v") if pin else ""


def compiled_packer() -> Path | None:
    """Return the compiled Packer of the cache, or None."""
    pin = pinned("packer")
    try:
        go = find_go()
    except BuildImageError:
        return None
    folder = find_compiled(compilation(pin, go, host_arch())) if pin else None
    return folder / "packer" if folder else None


def tool_versions(packer: Packer | None) -> dict[str, str]:
    """Return {tool: version} of what decides how a build goes."""
    return {
        "packer": version_text(packer.version) if packer else pinned_packer(),
        "ansible-core": installed_version("ansible-core"),
    }


def bootstrap_spec(order: Order) -> BootstrapSpec | None:
    """Return how the root tree is bootstrapped, or None when the base starts from an image or installer."""
    return package_source(order) if order.options.base.source == "bootstrap" else None


def package_source(order: Order) -> BootstrapSpec | None:
    """Return how a root tree of this OS can be bootstrapped, whatever the base starts from; None when it cannot be.

    The root of the kube-proxy image has packages of the distribution, also in an image that starts from a cloud image.
    """
    facts, options = order.route.bootstrap, order.options.base
    if facts is None:
        return None
    return BootstrapSpec(
        distribution=order.facts.distribution,
        suite=facts.suite,
        mirror=facts.mirror,
        security_mirror=facts.security_mirror,
        components=facts.components,
        keyring=facts.keyring,
        kernel=facts.kernel,
        packages=facts.packages,
        secure_boot_packages=facts.secure_boot_packages if options.secure_boot else (),
        datasources=order.route.datasources,
        architecture=order.lock.target.arch,
        apt_sources=options.apt_sources,
        max_age_days=options.max_age_days,
    )
