"""The payload of a node build: every binary and image that is not a distribution package, made before the build."""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from builder.build.compile import Compilation, compilation, compile_module, find_compiled, host_arch
from builder.build.fetch import Fetcher, unpack
from builder.build.imageroot import ImageRoot, RootSpec, image_root
from builder.build.imageset import ImageParts, image_commands, needs_root, write_images
from builder.build.imagestore import make_store, why_no_store
from builder.core import paths
from builder.core.cache import ensure_entry
from builder.core.digest import sha256_value, tree_digests
from builder.core.errors import BuildError, PreflightError, Problem
from builder.core.files import write_json
from builder.core.run import Spec, run
from builder.model.lock import Input, Lock
from builder.resolve.archive import full_name
from builder.resolve.golang import Go, Runner, find_go
from builder.resolve.gomodule import ModulePin, module_facts, module_pin
from builder.resolve.images import ImageRequest
from builder.target.options import Options

KEY_VERSION = 1
PROGRAMS = ("kubeadm", "kubelet", "kubectl")
STORE, IMAGES, BINARIES, CONTAINERD, CNI = "containerd-store", "images", "bin", "containerd/bin", "cni"
RECORD = "payload.json"
LABEL = "PAYLOAD"
MEBIBYTE, BLOCK = 1 << 20, 4096
DISK_HEADROOM = 1.05
KEEP_SECONDS = 14 * 86400

Note = Callable[[str], None]
ImagesMode = Literal["none", "store", "import"]


@dataclass(frozen=True, slots=True)
class PayloadSpec:
    """What a payload is made from.

    `lock` says which inputs, `options` which source each part has, `images` where archives lie. `root` says where
    the packages of the kube-proxy image come from (its packages, links and arch are filled in here); needed for
    `images.source: module` alone. `go` is looked for when something has to be compiled and none is given.
    """

    lock: Lock
    options: Options
    images: ImageRequest
    root: RootSpec | None = None
    go: Go | None = None
    cache: Path = field(default_factory=paths.cache_home)
    log: Path | None = None

    @property
    def arch(self) -> str:
        """The architecture of the node."""
        return self.lock.target.arch

    @property
    def image_inputs(self) -> tuple[Input, ...]:
        """The images, in the order of the lock."""
        return self.lock.of("image")


@dataclass(frozen=True, slots=True)
class Payload:
    """A finished payload folder; read-only for whoever uses it, as other builds share it.

    `files` is {path: sha256} but for the store, `image_names` what `ctr -n k8s.io images ls` must show.
    """

    path: Path
    key: str
    images_mode: ImagesMode
    image_names: tuple[str, ...]
    files: Mapping[str, str]


def prepare_payload(spec: PayloadSpec, note: Note, runner: Runner = run) -> Payload:
    """Return the payload folder of a lock, making what is not in the cache: compile, download, pull, load.

    In it: `bin/` (kubeadm, kubelet, kubectl, crictl), `containerd/bin/`, `cni/` for parts that are not
    distribution packages; `containerd-store/` (mode store) or `images/*.tar` (mode import); `payload.json`.
    Raises PreflightError when an input cannot be had or kubeadm wants other images than the lock has, BuildError
    when a compilation or an import fails. The folder appears whole or not at all.
    """
    maker = _Maker(spec, note, runner)
    cache = spec.cache / "payloads"
    cache.mkdir(parents=True, exist_ok=True)
    mode = _images_mode(spec, cache, note, runner)
    maker.compile()
    root = maker.image_root()
    key = _key(spec, maker, root, mode)
    place = ensure_entry(cache / key, RECORD, lambda work: maker.fill(work, root, mode))
    # Its age is the time since it was last used.
    os.utime(place / RECORD)
    _prune(cache, key)
    record = json.loads((place / RECORD).read_text())
    names = tuple(full_name(entry.name) for entry in spec.image_inputs)
    return Payload(place, key, mode, names, record["files"])


@dataclass(frozen=True, slots=True)
class PayloadLook:
    """What a look at the caches tells of a payload that was not prepared yet."""

    images_mode: ImagesMode
    ready: bool
    why: str


def look_at_payload(spec: PayloadSpec, runner: Runner = run) -> PayloadLook:
    """Say how images will get into the node, and whether everything that takes long is in the cache. Makes nothing."""
    maker = _Maker(spec, lambda _: None, runner)
    cache = _folder(spec.cache / "payloads")
    mode = _images_mode(spec, cache, maker.note, runner)
    wanted = maker.compilations()
    modules = spec.cache / "modules"
    lacking = [item.pin for item in wanted if find_compiled(item, modules) is None]
    if lacking:
        names = ", ".join(f"{pin.component} {pin.version}" for pin in lacking)
        return PayloadLook(mode, False, f"not compiled on this machine yet: {names}")
    why = "everything that is compiled is in the cache" if wanted else "it is put together from downloads and packages"
    return PayloadLook(mode, bool(wanted), why)


def payload_disk(payload: Payload, out: Path, runner: Runner = run) -> Path:
    """Write an ext4 image with label PAYLOAD that holds the payload, just large enough; return its path.

    Nothing is mounted and no loop device is used. Raises BuildError when mke2fs fails; `out` is then gone.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        runner(payload_disk_command(payload, out), Spec(what="the payload's disk", timeout=1800))
    except BaseException:
        out.unlink(missing_ok=True)
        raise
    return out


def payload_disk_command(payload: Payload, out: Path) -> list[str]:
    """Return the command that writes the payload's disk."""
    size, count = _usage(payload.path)
    size = int((size + count * 512) * DISK_HEADROOM) + 16 * MEBIBYTE
    argv = ["mke2fs", "-q", "-F", "-t", "ext4", "-L", LABEL, "-m", "0", "-N", str(count + 64)]
    argv += ["-O", "^has_journal,^resize_inode", "-E", "root_owner=0:0,lazy_itable_init=1"]
    return [*argv, "-d", str(payload.path), str(out), f"{-(-size // MEBIBYTE)}M"]


def check_image_list(kubeadm: Path, version: str, registry: str, names: Sequence[str], runner: Runner = run) -> None:
    """Raise PreflightError when the real kubeadm wants images that are not among `names`; asks no network."""
    argv: list[str | Path] = [kubeadm, "config", "images", "list", "--kubernetes-version", version]
    done = runner([*argv, "--image-repository", registry], Spec(timeout=120, what="kubeadm's list of images"))
    wanted = [full_name(line.strip()) for line in done.stdout.splitlines() if line.strip()]
    lacking = sorted(set(wanted) - set(names))
    if lacking or not wanted:
        series = ".".join(version.removeprefix("v").split(".")[:2])
        hint = f"correct the tags in builder/data/kubernetes/{series}.yaml, or lay a file of your own over it"
        what = f"kubeadm {version} wants other images than are resolved: {', '.join(lacking) or 'it names none'}"
        raise PreflightError(Problem(what, str(kubeadm), hint))


class _Maker:
    """Makes the parts of one payload; holds what several of them share: Go, compiled folders, downloads."""

    def __init__(self, spec: PayloadSpec, note: Note, runner: Runner) -> None:
        self.spec, self.note, self.runner = spec, note, runner
        self.fetcher = Fetcher(note, spec.cache / "downloads")
        self.binaries: dict[str, Path] = {}

    @functools.cached_property
    def go(self) -> Go:
        return self.spec.go or find_go(self.runner)

    def compilations(self) -> list[Compilation]:
        """Return what must be compiled: each component once, with the commands of the node and of its images."""
        options, wanted = self.spec.options, image_commands(self.spec.image_inputs)
        sources = {"containerd": options.containerd.source, "cni": options.cni.source}
        if options.kubernetes.source == "module":
            wanted.setdefault("kubernetes", set()).update(PROGRAMS)
        for name, source in sources.items():
            if source == "module":
                wanted[name] = set(module_facts().components[name].commands)
        return [
            compilation(self.pin(name), self.go, self.spec.arch, sorted(commands))
            for name, commands in sorted(wanted.items())
        ]

    def pin(self, component: str) -> ModulePin:
        entry = self.spec.lock.find("module", component)
        if entry is None:
            raise PreflightError("the lock has no module of it", component)
        pin = module_pin(component, entry.version, self.go, self.runner)
        if pin.lock_input.digest != entry.digest:
            raise PreflightError("its go.mod and go.sum are no longer what the lock says", f"{component} {pin.version}")
        return pin

    def compile(self) -> None:
        cache = self.spec.cache / "modules"
        for wanted in self.compilations():
            self.binaries[wanted.pin.component] = compile_module(
                wanted, self.note, log=self.spec.log, cache=cache, runner=self.runner
            )

    def image_root(self) -> ImageRoot | None:
        if not needs_root(self.spec.image_inputs):
            return None
        given = self.spec.root
        if given is None:
            raise PreflightError("the kube-proxy image needs an apt source for its packages", "base.apt_sources")
        facts = module_facts().images["kube-proxy"]
        wanted = RootSpec(
            suite=given.suite,
            sources=given.sources,
            packages=facts.root,
            links=facts.links,
            arch=self.spec.arch,
            apt_options=given.apt_options,
            max_age_days=given.max_age_days,
        )
        return image_root(wanted, _folder(self.spec.cache / "images"), self.note, self.spec.log, self.runner)

    def fill(self, work: Path, root: ImageRoot | None, mode: ImagesMode) -> None:
        """Fill a new folder with all parts and write its record."""
        self._programs(work)
        self._containerd(work)
        self._cni(work)
        kubeadm, required = work / BINARIES / "kubeadm", self.spec.images.required
        if required and kubeadm.is_file() and self.spec.arch == host_arch():
            registry = self.spec.options.images.registry
            check_image_list(kubeadm, self.spec.lock.target.kubernetes, registry, required, self.runner)
        if mode != "none":
            self._images(work, root, mode)
        parts = [work / name for name in (BINARIES, "containerd", CNI, IMAGES) if (work / name).is_dir()]
        write_json(work / RECORD, {"files": dict(tree_digests(work, parts))})

    def _programs(self, work: Path) -> None:
        options = self.spec.options
        if options.kubernetes.source == "module":
            for name in PROGRAMS:
                _place(self.binaries["kubernetes"] / name, work / BINARIES / name)
        for entry in self.spec.lock.of("binary"):
            _place(self._download(entry), work / BINARIES / entry.name)
        crictl = self.spec.lock.find("archive", "crictl")
        if crictl is not None:
            self._unpacked(crictl, work / BINARIES, ("crictl",))

    def _containerd(self, work: Path) -> None:
        source = self.spec.options.containerd.source
        if source == "module":
            for name in module_facts().components["containerd"].commands:
                _place(self.binaries["containerd"] / name, work / CONTAINERD / name)
        elif source == "url":
            names = tuple(module_facts().components["containerd"].commands)
            self._unpacked(self._archive("containerd"), work / CONTAINERD, names)

    def _cni(self, work: Path) -> None:
        source = self.spec.options.cni.source
        if source == "module":
            for name in module_facts().components["cni"].commands:
                _place(self.binaries["cni"] / name, work / CNI / name)
        elif source == "url":
            self._unpacked(self._archive("cni"), work / CNI, ())

    def _images(self, work: Path, root: ImageRoot | None, mode: ImagesMode) -> None:
        parts = ImageParts(self.spec.images, self.binaries, root, _folder(self.spec.cache / "images"))
        folder = work / IMAGES
        archives = write_images(self.spec.image_inputs, parts, folder, self.note, self.runner)
        if mode == "import":
            return
        stored = make_store(work / CONTAINERD, archives, work / STORE, self.note, self.spec.log)
        shutil.rmtree(folder)
        wanted = {full_name(entry.name) for entry in self.spec.image_inputs}
        lacking = sorted(wanted - {image.name for image in stored})
        if lacking:
            raise BuildError(f"containerd's store lacks {', '.join(lacking)}", str(work))

    def _archive(self, name: str) -> Input:
        entry = self.spec.lock.find("archive", name)
        if entry is None:
            raise PreflightError("the lock has no release archive of it", name)
        return entry

    def _download(self, entry: Input) -> Path:
        if not entry.url or not entry.digest:
            raise PreflightError("the lock has no address and digest of it", entry.name)
        return self.fetcher.fetch(entry.url, entry.digest.partition(":")[2])

    def _unpacked(self, entry: Input, out: Path, names: Sequence[str]) -> None:
        """Take programs out of a release archive by file name, whatever folder they lie in; all when none is named."""
        with tempfile.TemporaryDirectory(prefix=".unpack-", dir=self.spec.cache) as folder:
            tree = Path(folder) / "tree"
            unpack(self._download(entry), tree)
            files = {path.name: path for path in sorted(tree.rglob("*")) if path.is_file() and not path.is_symlink()}
            programs = names or tuple(name for name, path in files.items() if path.stat().st_mode & 0o100)
            lacking = [name for name in programs if name not in files]
            if lacking or not programs:
                raise PreflightError(f"there is no {', '.join(lacking) or 'program'} in it", entry.url or entry.name)
            for name in programs:
                _place(files[name], out / name)


def _images_mode(spec: PayloadSpec, cache: Path, note: Note, runner: Runner) -> ImagesMode:
    if not spec.image_inputs:
        return "none"
    if spec.options.containerd.source == "packages":
        why = "containerd is the distribution's own"
    elif spec.arch != host_arch():
        why = f"this machine cannot run a containerd for {spec.arch}"
    else:
        why = why_no_store(cache, runner)
    if why:
        note(f"images are loaded in the guest: {why}")
    return "import" if why else "store"


def _key(spec: PayloadSpec, maker: _Maker, root: ImageRoot | None, mode: ImagesMode) -> str:
    kinds = ("module", "binary", "archive", "image")
    inputs = [entry.model_dump(mode="json") for entry in spec.lock.inputs if entry.kind in kinds]
    sources = {
        "kubernetes": spec.options.kubernetes.source,
        "containerd": spec.options.containerd.source,
        "cni": spec.options.cni.source,
    }
    return sha256_value(
        {
            "version": KEY_VERSION,
            "inputs": inputs,
            "sources": sources,
            "compiled": {name: folder.name for name, folder in sorted(maker.binaries.items())},
            "images": {name: image.model_dump(mode="json") for name, image in sorted(module_facts().images.items())},
            "root": root.sha256 if root else "",
            "mode": mode,
            "arch": spec.arch,
        }
    )


def _prune(cache: Path, used: str) -> None:
    """Delete payloads that no build has used for weeks; what they are made from stays in the other caches."""
    limit = time.time() - KEEP_SECONDS
    for record in cache.glob(f"*/{RECORD}"):
        if record.parent.name != used and record.stat().st_mtime < limit:
            shutil.rmtree(record.parent, ignore_errors=True)


def _place(source: Path, target: Path) -> None:
    """Put a program into the payload: a copy, as a hard link would share the mode of the cache's file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755)


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _usage(root: Path) -> tuple[int, int]:
    """Return the size of all files in bytes, rounded up to blocks, and the number of inodes."""
    size = count = 0
    for folder, folders, files in os.walk(root):
        count += 1 + len(files)
        size += BLOCK * (1 + len(folders))
        for name in files:
            size += -(-(Path(folder) / name).lstat().st_size // BLOCK) * BLOCK
    return size, count
