"""Root trees of the Debian family: made by mmdebstrap, cached by what decides their content and by age."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2

from builder.build.aptsource import (
    Archive,
    Source,
    definition_sources,
    format_sources,
    host_sources,
    parse_sources,
    release_urls,
)
from builder.core.digest import sha256_bytes, sha256_value, tree_digests
from builder.core.errors import BuildError, PreflightError, Problem
from builder.core.files import file_lock, write_json
from builder.core.paths import share
from builder.core.run import Spec, run, which

KEY_VERSION = 1
TIME_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
FINAL_SOURCES = "etc/build-image/apt.sources.final"
"""In every tree: the public apt sources, which the clean-up at the end of a build moves into place."""

# Manual pages, translations and documentation are not for a node; licences stay.
DPKG_OPTIONS = (
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/info/*",
)
# How this host's apt reaches its mirror; used for the bootstrap only, never kept in a tree.
HOST_APT_OPTIONS = (
    "Acquire::http::Proxy",
    "Acquire::https::Proxy",
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
)

TIMEOUT = httpx2.Timeout(15, connect=5)
Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class BootstrapSpec:
    """What a root tree is made of. `apt_sources` and `max_age_days` say how it is got; they are not in its key.

    `packages` holds everything beside the essential set and the kernel; `secure_boot_packages` is empty when the
    disk boots without Secure Boot. `kernel` may be empty for a tree that never boots.
    """

    distribution: str
    suite: str
    mirror: str
    security_mirror: str
    components: tuple[str, ...]
    keyring: str
    kernel: str
    packages: tuple[str, ...]
    secure_boot_packages: tuple[str, ...] = ()
    datasources: tuple[str, ...] = ("NoCloud", "ConfigDrive", "None")
    architecture: str = "amd64"
    apt_sources: Path | None = None
    max_age_days: int = 7

    @property
    def archive(self) -> Archive:
        """The part that says where packages come from."""
        return Archive(self.distribution, self.suite, self.mirror, self.security_mirror, self.components, self.keyring)

    @property
    def all_packages(self) -> tuple[str, ...]:
        """Every package that is asked for by name, each once, sorted."""
        kernel = (self.kernel,) if self.kernel else ()
        return tuple(sorted({*kernel, *self.packages, *self.secure_boot_packages}))


@dataclass(frozen=True, slots=True)
class Tree:
    """A cached root tree: a directory, or (made without root) a tar archive. `created_at` is UTC, ISO 8601."""

    path: Path
    key: str
    created_at: str

    @property
    def is_archive(self) -> bool:
        """Whether the tree is a tar archive; only root can keep the owners of files in a directory."""
        return self.path.suffix == ".tar"


def family_key(spec: BootstrapSpec, sources: str, scripts: Mapping[str, str]) -> str:
    """Return the key of all trees that differ only in the state of the mirror."""
    fields = asdict(spec) | {"apt_sources": None, "max_age_days": None, "packages": spec.all_packages}
    fields |= {"components": list(spec.components), "datasources": list(spec.datasources)}
    return sha256_value({"version": KEY_VERSION, "spec": fields, "sources": sources, "scripts": dict(scripts)})


def tree_key(spec: BootstrapSpec, sources: str, scripts: Mapping[str, str], release: str) -> str:
    """Return the key of one tree: its family and `release`, the sha256 of the mirror's Release file."""
    return sha256_value({"family": family_key(spec, sources, scripts), "release": release})


def effective_sources(spec: BootstrapSpec, etc: Path = Path("/etc")) -> str:
    """Return the apt sources (deb822 text) a tree is bootstrapped from.

    The file that was asked for, else the host's own of the same distribution and suite, else the definition's
    mirrors. Raises PreflightError when the file cannot be read or has no source of the suite.
    """
    if spec.apt_sources is None:
        return format_sources(host_sources(spec.archive, etc) or definition_sources(spec.archive))
    try:
        found = parse_sources(spec.apt_sources.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise PreflightError(f"cannot read the apt source file: {error}", str(spec.apt_sources)) from error
    if not release_urls(found, spec.suite):
        raise PreflightError(
            f"no source of suite {spec.suite} in it", str(spec.apt_sources), "the option is base.apt_sources"
        )
    return format_sources(found)


def find_tree(spec: BootstrapSpec, cache: Path) -> tuple[Tree | None, str]:
    """Return the cached tree to use and why, or None and why one must be made. Asks the mirror, makes nothing."""
    return _look(spec, cache, _wanted(spec))


def ensure_tree(spec: BootstrapSpec, cache: Path, note: Note, log: Path | None = None) -> Tree:
    """Return a root tree for `spec` out of `cache` (the folder of all trees), making it when needed.

    `note` gets lines for people; `log` all output of mmdebstrap. Two processes that need the same tree make it
    once. Raises PreflightError when the mirror cannot be reached and no older tree is there, BuildError when the
    bootstrap fails; a half-made tree is deleted.
    """
    wanted = _wanted(spec)
    with file_lock(cache / f"{wanted.key or wanted.family}.lock"):
        tree, why = _look(spec, cache, wanted)
        note(why)
        if tree is not None:
            return tree
        if not wanted.key:
            raise PreflightError(
                f"the mirror of {spec.distribution} {spec.suite} does not answer and no tree is cached",
                ", ".join(release_urls(parse_sources(wanted.sources), spec.suite)),
                "check the network, or name a mirror that can be reached in base.apt_sources",
            )
        tree = _make(spec, cache, wanted, note, log)
        _prune(cache, wanted, spec.max_age_days)
        return tree


def rootless() -> bool:
    """Say whether trees and file systems are made in a user namespace, because this process is not root."""
    return os.geteuid() != 0


def unshared(argv: Sequence[str | Path]) -> list[str | Path]:
    """Return a command that runs as root of a user namespace where ids are mapped as in a rootless bootstrap.

    mmdebstrap's own helper and no other: `unshare --map-auto --map-root-user` maps 0 to the caller and 1 to the
    first subordinate id, which puts every owner in a tree off by one without an error.
    """
    return ["mmdebstrap", "--unshare-helper", *argv] if rootless() else list(argv)


@dataclass(frozen=True, slots=True)
class _Wanted:
    sources: str
    family: str
    release: str
    key: str


def _wanted(spec: BootstrapSpec) -> _Wanted:
    sources = effective_sources(spec)
    scripts = _scripts()
    release = _release_digest(parse_sources(sources), spec.suite)
    key = tree_key(spec, sources, scripts, release) if release else ""
    return _Wanted(sources, family_key(spec, sources, scripts), release, key)


def _scripts() -> dict[str, str]:
    folder = share("templates") / "bootstrap"
    return {**tree_digests(folder, [folder]), "dpkg": sha256_value(DPKG_OPTIONS)}


def _release_digest(sources: Iterable[Source], suite: str) -> str:
    """Return the sha256 of the suite's Release file, or "" when no mirror answers."""
    proxies = _host_proxies()
    silent: set[str] = set()
    for url in release_urls(sources, suite):
        mirror = url.rpartition("/dists/")[0]
        if mirror in silent:
            continue
        try:
            proxy = proxies.get(url.partition("://")[0])
            answer = httpx2.get(url, timeout=TIMEOUT, follow_redirects=True, proxy=proxy)
        except httpx2.HTTPError:
            silent.add(mirror)
            continue
        if answer.is_success:
            return sha256_bytes(answer.content)
    return ""


def _records(cache: Path, family: str) -> list[tuple[Tree, bool]]:
    """Return the cached trees of a family, the newest first, each with whether it is under its own key."""
    found = []
    for file in cache.glob("*/tree.json"):
        record = json.loads(file.read_text())
        path = file.parent / record["name"]
        if record["family"] == family and path.exists():
            found.append((Tree(path, record["key"], record["created_at"]), file.parent.name == record["key"]))
    return sorted(found, key=lambda entry: entry[0].created_at, reverse=True)


def _look(spec: BootstrapSpec, cache: Path, wanted: _Wanted) -> tuple[Tree | None, str]:
    known = [tree for tree, current in _records(cache, wanted.family) if current]
    name = f"{spec.distribution} {spec.suite}"
    if not wanted.key:
        if known:
            age = _age(known[0]).days
            return known[0], f"the mirror does not answer: the newest cached tree of {name} is used, {age} days old"
        return None, f"no root tree of {name} is cached, and the mirror does not answer"
    fitting = [tree for tree in known if tree.key == wanted.key]
    if not fitting:
        what = "the mirror has a new release" if known else "no root tree with these packages is cached"
        return None, f"{what}: {name} is bootstrapped"
    if _age(fitting[0]) >= timedelta(days=spec.max_age_days):
        return None, f"the cached tree of {name} is older than {spec.max_age_days} days: it is bootstrapped again"
    return fitting[0], f"the cached tree of {name} from {fitting[0].created_at} is used"


def _age(tree: Tree) -> timedelta:
    return datetime.now(UTC) - datetime.strptime(tree.created_at, TIME_FORMAT).replace(tzinfo=UTC)


def _make(spec: BootstrapSpec, cache: Path, wanted: _Wanted, note: Note, log: Path | None) -> Tree:
    name = "root.tar" if rootless() else "root"
    created_at = datetime.now(UTC).strftime(TIME_FORMAT)
    work = Path(tempfile.mkdtemp(prefix=".new-", dir=cache))
    try:
        work.chmod(0o755)
        _bootstrap(spec, wanted.sources, work / name, note, log)
        record = {"key": wanted.key, "family": wanted.family, "release": wanted.release, "name": name}
        record |= {"created_at": created_at, "sources": wanted.sources}
        write_json(work / "tree.json", record | {"packages": list(spec.all_packages), "suite": spec.suite})
        place = cache / wanted.key
        if place.exists():
            # A build may still stand on the old tree: it is only set aside, and deleted a day after its time.
            place.rename(cache / f"{wanted.key}.{created_at.replace(':', '')}")
        work.rename(place)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return Tree(place / name, wanted.key, created_at)


def _bootstrap(spec: BootstrapSpec, sources: str, target: Path, note: Note, log: Path | None) -> None:
    # In /tmp and readable by all: in a rootless bootstrap the hooks run as a mapped user who cannot enter our home.
    with tempfile.TemporaryDirectory(prefix="build-image-hooks-") as folder:
        hooks = Path(folder)
        _write_hooks(spec, hooks)
        run(
            mmdebstrap_command(spec, target, hooks, host_apt_options()),
            Spec(
                input=sources,
                env={"INITRD": "No"},  # see customize.sh
                log=log,
                on_line=lambda line: _tell(line, note),
                what=f"bootstrap of {spec.distribution} {spec.suite}",
                hint=_hint(spec),
            ),
        )
    if not target.exists():
        raise BuildError("mmdebstrap ended without a tree", str(target))


def _tell(line: str, note: Note) -> None:
    if line.startswith("I: ") and "-hook" not in line:
        note(line.removeprefix("I: "))


def mmdebstrap_command(spec: BootstrapSpec, target: Path, hooks: Path, apt_options: Sequence[str]) -> list[str]:
    """Return the command that makes a tree at `target`; the apt sources go to its standard input."""
    command = ["mmdebstrap", "--variant=minbase", f"--architectures={spec.architecture}"]
    command += ["--mode=unshare", "--format=tar"] if rootless() else ["--mode=root", "--format=directory"]
    # The check is for mmdebstrap's own choice of mirror; in a rootless run it leaves a folder in /tmp.
    command += ["--skip=cleanup/apt/lists,check/signed-by", f"--include={','.join(spec.all_packages)}"]
    command += ['--aptopt=Acquire::Languages "none"', '--aptopt=APT::Install-Recommends "false"']
    command += [f"--aptopt={option}" for option in apt_options]
    command += [f"--dpkgopt={option}" for option in DPKG_OPTIONS]
    command += [f'--{name}-hook=sh {hooks}/{name}.sh "$1" {hooks}' for name in ("essential", "customize")]
    return [*command, spec.suite, str(target), "-"]


def _write_hooks(spec: BootstrapSpec, hooks: Path) -> None:
    shutil.copytree(share("templates") / "bootstrap", hooks, dirs_exist_ok=True)
    final = hooks / "customize" / FINAL_SOURCES
    final.parent.mkdir(parents=True)
    final.write_text(format_sources(definition_sources(spec.archive)))
    listed = f"datasource_list: [{', '.join(spec.datasources)}]\n"
    (hooks / "customize/etc/cloud/cloud.cfg.d/92-datasources.cfg").write_text(listed)
    for path in (hooks, *hooks.rglob("*")):
        path.chmod(0o755 if path.is_dir() or path.suffix == ".sh" else 0o644)


def host_apt_options() -> tuple[str, ...]:
    """Return how this host's apt reaches its mirror, as lines of an apt configuration."""
    if which("apt-config") is None:
        return ()
    lines = run(["apt-config", "dump"], Spec(check=False)).stdout.splitlines()
    return tuple(line.rstrip(";") for line in lines if line.split(" ")[0] in HOST_APT_OPTIONS and '""' not in line)


def _host_proxies() -> dict[str, str]:
    """Return {scheme: address} of the proxies that this host's apt uses."""
    pairs = (option.partition(" ")[::2] for option in host_apt_options())
    named = {name.split("::")[1]: value.strip('"') for name, value in pairs if name.endswith("::Proxy")}
    return {scheme: address for scheme, address in named.items() if address != "DIRECT"}


def _hint(spec: BootstrapSpec) -> str:
    if spec.keyring and not Path(spec.keyring).exists():
        return f"{spec.keyring} is not on this machine: apt install {spec.distribution}-archive-keyring"
    return "; ".join(problem.what for problem in rootless_problems()) if rootless() else ""


def rootless_problems(subuid: Path = Path("/etc/subuid")) -> list[Problem]:
    """Say what this account lacks for a rootless bootstrap: the id-mapping tool, a range of subordinate ids."""
    found = []
    if which("newuidmap") is None:
        found.append(Problem("rootless bootstrap needs newuidmap", hint="apt install uidmap"))
    names = {getpass.getuser(), str(os.getuid())}
    lines = subuid.read_text().splitlines() if subuid.exists() else []
    if not any(line.partition(":")[0] in names for line in lines):
        hint = f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {getpass.getuser()}"
        found.append(Problem("rootless bootstrap needs subordinate ids for this user", str(subuid), hint))
    return found


def _prune(cache: Path, wanted: _Wanted, max_age_days: int) -> None:
    """Delete older trees of the same family, a day after the last build that may have started from one."""
    limit = timedelta(days=max_age_days + 1)
    for tree, _ in _records(cache, wanted.family):
        if tree.path.parent.name != wanted.key and _age(tree) > limit:
            shutil.rmtree(tree.path.parent, ignore_errors=True)
