"""The lane `vm`: Packer's qemu builder boots a disk, Ansible works in it over ssh."""

from __future__ import annotations

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
from builder.build.bootstrap import ensure_tree
from builder.build.convert import flatten, to_raw
from builder.build.disk import DiskSpec, export_boot_files, extract_boot_files, make_disk
from builder.build.ingredients import Recipe
from builder.build.payload import Payload, payload_disk, payload_disk_command
from builder.build.rebuild import write_rebuild
from builder.build.render import Guest, StageFolder, render_stage
from builder.build.sanitize import sanitize
from builder.build.site import Site, begun, build_stage, render, stage_inputs
from builder.core.errors import BuildError


def make_base(site: Site, recipe: Recipe, wish: BaseWish, image: Path | None) -> Base:
    """Return the base of a recipe, building it when no other process did meanwhile.

    It starts from `image` (a cloud image or installer, its sha256 checked) or, when that is None, from a bootstrap.
    """
    bases = site.cache / "bases"
    with making_base(bases, wish, site.run.path / "base") as place:
        found, why = find_base(bases, wish)
        if found is not None:
            site.run.note("base", why)
            return found
        stage, draft = StageFolder(place), draft_folder(bases, wish, place)
        start = draft / "start.qcow2"
        if not begun(stage):
            tree_key = _start_disk(site, start, draft) if image is None else ""
            (draft / "tree.key").write_text(tree_key)
            guest = _guest(site, image or start, (draft / "vmlinuz", draft / "initrd.img"))
            write_rebuild(render(site, stage_inputs(site, recipe.content, place, guest)), site.packer)
        build_stage(site, stage, "base")
        return _store(bases, wish, stage, draft)


def _start_disk(site: Site, disk: Path, folder: Path) -> str:
    """Make the disk of a bootstrapped tree, and its kernel beside it; return the tree's key."""
    if site.bootstrap is None:
        raise BuildError("this OS cannot be bootstrapped", hint="name an image in base.url")
    tree = ensure_tree(site.bootstrap, site.cache / "trees", site.note("tree"), site.run.path / "bootstrap.log")
    raw = folder / "start.raw"
    spec = DiskSpec(site.options.disk.size_gib * 1024, secure_boot=site.options.base.secure_boot, seed=tree.key)
    make_disk(tree.path, raw, spec)
    flatten(raw, disk, compress=False)
    raw.unlink()
    export_boot_files(tree.path, folder)
    return tree.key


def _guest(site: Site, source: Path, kernel: tuple[Path, Path]) -> Guest:
    # With KVM the boot loader costs nothing, and a boot through it proves more.
    direct = site.accelerator.name == "tcg" and all(path.exists() for path in kernel)
    return Guest(
        source=str(source),
        checksum="none",
        accelerator=site.accelerator,
        cpu=site.accelerator.cpu_model(site.route.cpu, site.route.tcg_cpu),
        cpus=site.route.cpus,
        memory_mib=site.route.memory_mib,
        ssh_timeout_s=site.route.ssh_timeout_s,
        kernel=kernel[0] if direct else None,
        initrd=kernel[1] if direct else None,
    )


def _store(bases: Path, wish: BaseWish, stage: StageFolder, draft: Path) -> Base:
    flatten(stage.disk, draft / "base.qcow2", compress=False)
    for name in ("vmlinuz", "initrd.img", "start.qcow2"):
        (draft / name).unlink(missing_ok=True)
    raw = draft / "base.raw"
    to_raw(draft / "base.qcow2", raw)
    try:
        extract_boot_files(raw, draft)
    except BuildError:
        # A disk that keeps its kernel elsewhere boots through its own loader.
        for name in ("vmlinuz", "initrd.img"):
            (draft / name).unlink(missing_ok=True)
    raw.unlink()
    record = new_record(wish, (draft / "tree.key").read_text(), stage.public_key.read_text())
    base = store_base(bases, wish, draft, record)
    stage.disk.unlink()  # last: a process that dies before this can still make the base of it
    return base


def build_node(site: Site, recipe: Recipe, base: Base | None, image: Path | None, payload: Payload) -> StageFolder:
    """Build the node stage on a base, or both stages at once where `base` is None; the disk is an overlay.

    The payload's disk is made once: a guest that an earlier process started may be reading it.
    """
    stage = StageFolder(site.run.path / "node")
    if not begun(stage):
        if base is None:
            start = site.run.path / "start"
            start.mkdir(exist_ok=True)
            if image is None:
                _start_disk(site, start / "start.qcow2", start)
            guest = _guest(site, image or start / "start.qcow2", (start / "vmlinuz", start / "initrd.img"))
        else:
            guest = _guest(site, base.disk, (base.kernel, base.initrd))
        disk = payload_disk(payload, site.run.path / "payload.img")
        render(site, stage_inputs(site, recipe.content, stage.path, guest, disk))
        write_rebuild(stage, site.packer, payload=payload_disk_command(payload, disk))
    build_stage(site, stage, "node")
    return stage


def clean_disk(site: Site, stage: StageFolder) -> Path:
    """Return a raw disk of what Packer left, without anything that was deleted in it."""
    raw = site.run.path / "clean.raw"
    if not raw.exists():
        sanitize(stage.disk, raw)
    return raw


def render_only(site: Site, recipe: Recipe) -> Path:
    """Write the stage folder of a recipe below the run folder; the disks and kernels it names are not made."""
    folder = site.run.path / recipe.content.stage
    source = site.run.path / ("start.qcow2" if recipe.content.stage != "node" else "base.qcow2")
    guest = _guest(site, source, (source.with_name("vmlinuz"), source.with_name("initrd.img")))
    payload = None if recipe.content.stage == "base" else site.run.path / "payload.img"
    return write_rebuild(render_stage(stage_inputs(site, recipe.content, folder, guest, payload)), site.packer).parent
