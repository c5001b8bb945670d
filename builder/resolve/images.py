"""Which container images a node needs, and from exactly which inputs they come."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from builder.core.digest import sha256_file
from builder.core.errors import BuildError, ConfigError, PreflightError, Problem
from builder.core.run import Spec, run
from builder.model.lock import Input
from builder.resolve.archive import ArchiveImage, full_name, read_archive
from builder.resolve.golang import Runner
from builder.resolve.gomodule import module_facts
from builder.resolve.request import ResolveRequest

DEFAULT_REGISTRY = "registry.k8s.io"
INSPECT_SECONDS = 120
PARALLEL = 4
FROM_ARCHIVE = "archive"
FROM_MODULE = "module"
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".oci", ".tar.xz", ".tar.bz2")


@dataclass(frozen=True, slots=True)
class ImageTags:
    """The tags of the images that kubeadm takes from elsewhere, as in cmd/kubeadm/app/constants/constants.go."""

    etcd: str
    coredns: str
    pause: str


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """Which images are wanted, and where they may come from.

    `required` holds full names; `extra` more names (a tag or a digest) from a registry or `archives`;
    `extra_archives` local files that are loaded with all that is in them.
    """

    source: Literal["registry", "archive", "module", "none"]
    required: tuple[str, ...]
    extra: tuple[str, ...] = ()
    archives: Path | None = None
    extra_archives: tuple[Path, ...] = ()
    arch: str = "amd64"
    tls_verify: bool = True


@dataclass(frozen=True, slots=True)
class ModuleSource:
    """What an image of source `module` is made of: the name in modules.yaml, its component and version."""

    image: str
    component: str
    version: str


def required_images(version: str, tags: ImageTags, registry: str = DEFAULT_REGISTRY) -> tuple[str, ...]:
    """Return the full names of all images that `kubeadm init` and `join` of a Kubernetes version need.

    The rules are kubeadm's own (https://github.com/kubernetes/kubernetes/blob/v1.34.3/cmd/kubeadm/app/images/images.go):
    `+` of a version becomes `_` in a tag, and CoreDNS has a folder of its own in the default registry alone.
    """
    registry = registry.rstrip("/")
    tag = "v" + version.removeprefix("v").replace("+", "_")
    names = [f"{registry}/kube-{part}:{tag}" for part in ("apiserver", "controller-manager", "scheduler", "proxy")]
    folder = "coredns/coredns" if registry == DEFAULT_REGISTRY else "coredns"
    names += [f"{registry}/{folder}:{tags.coredns}", f"{registry}/pause:{tags.pause}", f"{registry}/etcd:{tags.etcd}"]
    return tuple(names)


def pause_image(tags: ImageTags, registry: str = DEFAULT_REGISTRY) -> str:
    """Return the full name of the pause image, which containerd's configuration names too."""
    return f"{registry.rstrip('/')}/pause:{tags.pause}"


def tag_of(name: str) -> str:
    """Return the tag of an image name, "" when it has only a digest."""
    last = name.partition("@")[0].rpartition("/")[2]
    return last.partition(":")[2]


def module_source(name: str) -> ModuleSource:
    """Say from which component at which version an image of source `module` is compiled.

    The tag decides: `etcd:3.6.5-0` is etcd v3.6.5 in its first packaging. Raises ConfigError for an image that no
    Go module is known for.
    """
    image = name.partition("@")[0].rpartition("/")[2].partition(":")[0]
    facts = module_facts().images.get(image)
    if facts is None:
        raise ConfigError(
            f"no Go module is known for the image {name}", hint="name it in images.extra_archives, from an archive"
        )
    number = tag_of(name).removeprefix("v").replace("_", "+")
    if facts.component != "kubernetes":
        number = number.partition("-")[0]
    version = number if facts.component == "pause" else f"v{number}"
    return ModuleSource(image, facts.component, version)


def image_request(request: ResolveRequest) -> ImageRequest:
    """Return the images of a selection: what kubeadm needs, by the tags of its series, and the user's own."""
    options, components = request.options.images, request.components
    tags = ImageTags(components.etcd, components.coredns, components.pause)
    return ImageRequest(
        source=options.source,
        required=() if options.source == "none" else required_images(str(request.version), tags, options.registry),
        extra=options.extra,
        archives=options.archives,
        extra_archives=options.extra_archives,
        arch=request.target.arch,
        tls_verify=options.tls_verify,
    )


def image_inputs(request: ResolveRequest) -> list[Input]:
    """Return the lock entries of all images of a selection, and of the Go modules that only images come from.

    Raises PreflightError like `resolve_images`.
    """
    asked = image_request(request)
    images = resolve_images(asked)
    versions = {made.component: made.version for made in (compiled_from(entry) for entry in images) if made}
    if request.options.kubernetes.source == "module":
        versions.pop("kubernetes", None)
    return [*images, *(request.module(name, version) for name, version in sorted(versions.items()))]


def origin_of(entry: Input) -> str:
    """Return where a lock entry of kind `image` comes from: `archive`, `module`, or "" for a registry."""
    return (entry.revision or "").partition(" ")[0]


def compiled_from(entry: Input) -> ModuleSource | None:
    """Return from what a lock entry of kind `image` is compiled, or None for any other."""
    return module_source(entry.name) if entry.kind == "image" and origin_of(entry) == FROM_MODULE else None


def resolve_images(request: ImageRequest, runner: Runner = run) -> tuple[Input, ...]:
    """Return one lock entry (kind `image`) for each image that will be in the node's store, sorted by name.

    From a registry: `digest` is the manifest's. From an archive: `digest` is the file's and `revision` is
    `archive <digest of the image>`. Compiled: `revision` is `module <component> <version>`, whose pin is an entry
    of its own. Every image that cannot be had is named in one PreflightError.
    """
    problems: list[Problem] = []
    found: dict[str, Input] = {}
    wanted = list(dict.fromkeys(full_name(name) for name in (*request.required, *request.extra)))
    if request.source == "none":
        wanted = [full_name(name) for name in request.extra]
    stock = _stock(request, problems)
    _take_archives(request.extra_archives, found, problems)
    wanted = [name for name in wanted if name not in found]
    if request.source == "archive":
        found |= {name: stock[name] for name in wanted if name in stock}
        lacking = [full_name(name) for name in request.required if full_name(name) not in found]
        problems += _lacking(request, lacking)
        wanted = [name for name in wanted if name not in found and name not in lacking]
    elif request.source == "module":
        required = {full_name(name) for name in request.required}
        found |= {name: _compiled(name) for name in wanted if name in required}
        wanted = [name for name in wanted if name not in required]
    found |= _from_registry(wanted, request, problems, runner)
    if problems:
        raise PreflightError(problems)
    return tuple(found[name] for name in sorted(found))


def locate_archives(request: ImageRequest, inputs: Iterable[Input]) -> Mapping[Path, tuple[str, ...]]:
    """Return {archive: names wanted from it} for the lock entries that come from archives, found by their sha256.

    Raises PreflightError when a file is no longer what the lock says.
    """
    problems: list[Problem] = []
    files = [*request.extra_archives, *(archive_files(request.archives) if request.archives else ())]
    digests = {file: f"sha256:{sha256_file(file)}" for file in files if file.is_file()}
    found: dict[Path, list[str]] = {}
    for entry in inputs:
        if entry.kind != "image" or origin_of(entry) != FROM_ARCHIVE:
            continue
        file = next((path for path, digest in digests.items() if digest == entry.digest), None)
        if file is None:
            problems.append(Problem(f"no archive has the bytes that the lock names ({entry.digest})", entry.name))
        else:
            found.setdefault(file, []).append(entry.name)
    if problems:
        raise PreflightError(problems)
    return {file: tuple(names) for file, names in found.items()}


def archive_files(folder: Path) -> tuple[Path, ...]:
    """Return the files of a folder that may be image archives, by their names, sorted."""
    return tuple(sorted(path for path in folder.iterdir() if path.is_file() and path.name.endswith(ARCHIVE_SUFFIXES)))


def _stock(request: ImageRequest, problems: list[Problem]) -> dict[str, Input]:
    """Return what a folder of archives has, by name; only for source `archive`."""
    if request.source != "archive":
        return {}
    if request.archives is None or not request.archives.is_dir():
        problems.append(
            Problem("images.source is archive, but images.archives names no folder", str(request.archives or ""))
        )
        return {}
    stock: dict[str, Input] = {}
    _take_archives(archive_files(request.archives), stock, problems)
    return stock


def _take_archives(files: Iterable[Path], found: dict[str, Input], problems: list[Problem]) -> None:
    owner: dict[str, tuple[Path, ArchiveImage]] = {}
    for file in files:
        try:
            images = read_archive(file)
            digest = f"sha256:{sha256_file(file)}"
        except PreflightError as error:
            problems += error.problems
            continue
        for image in images:
            if not image.name:
                problems.append(Problem("an image without a name in it", str(file), "oci-archive:FILE:NAME names it"))
            elif image.name in owner and owner[image.name][1].digest != image.digest:
                problems.append(
                    Problem(f"{image.name} is in {owner[image.name][0]} too, with other content", str(file))
                )
            elif image.name not in owner:
                owner[image.name] = (file, image)
                found[image.name] = Input(
                    name=image.name,
                    kind="image",
                    version=tag_of(image.name),
                    revision=f"{FROM_ARCHIVE} {image.digest}",
                    digest=digest,
                )


def _lacking(request: ImageRequest, names: Sequence[str]) -> list[Problem]:
    if not names or request.archives is None or not request.archives.is_dir():
        return []
    text = f"{len(names)} required images are in no archive: {', '.join(names)}"
    return [Problem(text, str(request.archives), "each archive's index.json or manifest.json must have this very name")]


def _compiled(name: str) -> Input:
    made = module_source(name)
    return Input(
        name=name, kind="image", version=tag_of(name), revision=f"{FROM_MODULE} {made.component} {made.version}"
    )


def _from_registry(
    names: Sequence[str], request: ImageRequest, problems: list[Problem], runner: Runner
) -> Mapping[str, Input]:
    def ask(name: str) -> Input | Problem:
        if "@" in name:
            return Input(name=name, kind="image", version=tag_of(name), digest=name.partition("@")[2])
        argv = ["skopeo", "inspect", "--override-os", "linux", "--override-arch", request.arch]
        if not request.tls_verify:
            argv.append("--tls-verify=false")
        argv += ["--no-tags", "--format", "{{.Digest}}", f"docker://{name}"]
        try:
            digest = runner(argv, Spec(timeout=INSPECT_SECONDS, what=f"look-up of {name}")).stdout.strip()
        except BuildError as error:
            return Problem(f"cannot be resolved: {error.problems[0].what.splitlines()[-1].strip(' |')}", name)
        return Input(name=name, kind="image", version=tag_of(name), digest=digest)

    with ThreadPoolExecutor(PARALLEL) as pool:
        answers = dict(zip(names, pool.map(ask, names), strict=True))
    problems += [answer for answer in answers.values() if isinstance(answer, Problem)]
    return {name: answer for name, answer in answers.items() if isinstance(answer, Input)}
