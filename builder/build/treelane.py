"""The lane `tree`: no machine boots; Ansible works over ssh in namespaces over a copy-on-write root tree."""

from __future__ import annotations

import shutil
from pathlib import Path

from builder.build.bases import (
    Base,
    BaseWish,
    draft_folder,
    find_base,
    making_base,
    new_record,
    store_base,
)
from builder.build.bootstrap import Tree as RootTree
from builder.build.bootstrap import ensure_tree
from builder.build.disk import DiskSpec, disk_from_overlay
from builder.build.ingredients import Recipe
from builder.build.job import Companion
from builder.build.rebuild import write_rebuild
from builder.build.render import StageFolder, Tree, free_port, render_stage
from builder.build.site import Site, begun, build_stage, render, stage_inputs
from builder.build.treebox import TreeBox, finish_tree, treebox_command
from builder.core.errors import PreflightError


def root_tree(site: Site) -> RootTree:
    """Return the bootstrapped tree; raises PreflightError where this lane cannot run."""
    if site.bootstrap is None:
        raise PreflightError("the tree lane needs a bootstrapped base", "qemu.lane", "--set qemu.lane=vm")
    return ensure_tree(site.bootstrap, site.cache / "trees", site.note("tree"), site.run.path / "bootstrap.log")


def make_base(site: Site, recipe: Recipe, wish: BaseWish, tree: RootTree) -> Base:
    """Return the base layer of a recipe over a tree, building it when no other process did meanwhile."""
    bases = site.cache / "bases"
    with making_base(bases, wish, site.run.path / "base") as place:
        found, why = find_base(bases, wish)
        if found is not None:
            site.run.note("base", why)
            return found
        stage, draft = StageFolder(place), draft_folder(bases, wish, place)
        _build(site, recipe, stage, (tree.path,), draft / "box", None)
        record = new_record(wish, tree.key, stage.public_key.read_text())
        return store_base(bases, wish, draft, record)


def build_node(site: Site, recipe: Recipe, lowers: tuple[Path, ...], payload: Path | None) -> StageFolder:
    """Build the node stage (or both at once) over layers, the topmost first; what it changes lies in the run folder."""
    stage = StageFolder(site.run.path / "node")
    _build(site, recipe, stage, lowers, site.run.path / "box", payload)
    return stage


def _build(
    site: Site, recipe: Recipe, stage: StageFolder, lowers: tuple[Path, ...], box: Path, payload: Path | None
) -> None:
    companion = None
    if not begun(stage):
        shutil.rmtree(box, ignore_errors=True)
        port = free_port()
        render(site, stage_inputs(site, recipe.content, stage.path, Tree(port), payload))
        command = treebox_command(_box(stage, lowers, box, port, payload))
        write_rebuild(stage, site.packer, command, box)
        companion = Companion(tuple(command), port, str(stage.path / "box.log"))
    build_stage(site, stage, recipe.content.stage, companion)
    finish_tree(_box(stage, lowers, box, 0, payload))


def _box(stage: StageFolder, lowers: tuple[Path, ...], folder: Path, port: int, payload: Path | None) -> TreeBox:
    return TreeBox(lowers, folder, port, stage.public_key, payload, containerd_store=payload is not None)


def clean_disk(site: Site, lowers: tuple[Path, ...], seed: str) -> Path:
    """Return a raw disk of the finished tree; it never held anything else, so there is nothing to clean."""
    raw = site.run.path / "clean.raw"
    if not raw.exists():
        box = site.run.path / "box"
        layers = finish_tree(TreeBox(lowers, box, 0, box, None, containerd_store=(box / "containerd").is_dir()))
        spec = DiskSpec(site.options.disk.size_gib * 1024, secure_boot=site.options.base.secure_boot, seed=seed)
        disk_from_overlay(layers.lowers, layers.upper, raw, spec, layers.binds)
    return raw


def render_only(site: Site, recipe: Recipe) -> Path:
    """Write the stage folder of a recipe below the run folder; its port is a guess, as nothing listens yet."""
    folder = site.run.path / recipe.content.stage
    return write_rebuild(
        render_stage(stage_inputs(site, recipe.content, folder, Tree(free_port()))), site.packer
    ).parent
