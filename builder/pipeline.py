"""The order of the stages, once: target, resolve, plan, prepare, tree, base, node, finish, check."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from builder import __version__
from builder.build import treelane, vmlane
from builder.build.accelerator import Accelerator, choose
from builder.build.bases import Base, find_base
from builder.build.bootstrap import effective_sources, ensure_tree, host_apt_options
from builder.build.compile import packer_binary
from builder.build.convert import image_info, require_alone
from builder.build.fetch import Fetcher
from builder.build.filesystem import is_ext, read_table
from builder.build.finish import Outputs, prepare_output, write_disks, write_manifest
from builder.build.imageroot import RootSpec
from builder.build.ingredients import Facts
from builder.build.packer import OLDEST, Packer, read_packer
from builder.build.payload import Payload, PayloadSpec, prepare_payload
from builder.build.planning import Order, Planned, package_source, plan_build
from builder.build.render import StageFolder
from builder.build.runfolder import RunFolder, Status, open_run
from builder.build.site import Site
from builder.check.leaks import check_disk, key_body
from builder.core.errors import (
    BuildError,
    BuildImageError,
    CheckError,
    ConfigError,
    Interrupted,
    PreflightError,
    Problem,
    joined,
)
from builder.core.files import write_json
from builder.core.paths import cache_home
from builder.core.tools import BOOTSTRAP_TOOLS, missing_space, missing_tools
from builder.model.artifact import Contents, Manifest, Member, StageTime
from builder.model.lock import Lock
from builder.provider import Provider
from builder.resolve.golang import find_go
from builder.resolve.images import image_inputs, image_request
from builder.resolve.kubernetes import repository_address, repository_key
from builder.resolve.lock import resolve_lock
from builder.resolve.request import ResolveRequest
from builder.target.select import Selection

GIB = 1 << 30
STATE_BYTES = 3 * GIB  # the overlay and the clean disk of a node, sparse
OUTPUT_BYTES = 1 * GIB
HELP = "docs/how-to/find-out-why-a-build-failed.md"


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a user wants of a run beside the content of the image."""

    state: Path
    output: Path
    keep_on_failure: bool = False


@dataclass(slots=True)
class Clock:
    """The time of each stage of a run, in order."""

    run: RunFolder
    times: list[StageTime] = field(default_factory=list)

    @contextlib.contextmanager
    def stage(self, name: str, why: str) -> Iterator[None]:
        """Announce a stage, time it, and say how it ended."""
        started = time.monotonic()
        self.run.event("stage_start", name, why=why)
        status = "failed"
        try:
            yield
            status = "done"
        finally:
            seconds = round(time.monotonic() - started, 1)
            self.run.event("stage_end", name, status=status, seconds=seconds)
            self.times.append(StageTime(stage=name, seconds=seconds))


def machine_problems(selection: Selection, wishes: Wishes) -> list[Problem]:
    """Return what this machine lacks for a selection beside what its provider needs: programs, room on the disks."""
    options = selection.options
    problems = []
    if options.base.source == "bootstrap":
        problems += missing_tools(BOOTSTRAP_TOOLS, "base.source bootstrap")
    if options.images.source == "registry" or options.images.extra:
        problems += missing_tools(["skopeo"], "images from a registry")
    return [*problems, *missing_space({wishes.state: STATE_BYTES, wishes.output: OUTPUT_BYTES})]


def resolve(selection: Selection, provider: Provider, wishes: Wishes) -> Lock:
    """Return the lock of a selection after asking the provider what the machine lacks; all problems in one error."""
    route = provider.local_route(selection.settings, selection.facts)
    errors: list[BuildImageError] = []
    problems = [*provider.preflight(selection.settings), *machine_problems(selection, wishes)]
    if problems:
        errors.append(PreflightError(problems))
    lock = None
    try:
        lock = resolve_lock(ResolveRequest(selection, route.bootstrap, image_inputs))
    except BuildImageError as error:
        errors.append(error)
    if lock is None or errors:
        raise joined(errors)
    return lock


def _order(selection: Selection, provider: Provider, lock: Lock, wishes: Wishes) -> Order:
    route = provider.local_route(selection.settings, selection.facts)
    request = ResolveRequest(selection, route.bootstrap, image_inputs)
    options, about, components = selection.options, selection.system.about, request.components
    facts = Facts(
        os_family=about.os_family,
        distribution=about.distribution,
        version=about.version,
        codename=about.codename,
        datasources=route.datasources,
        containerd_version=components.containerd,
        containerd_config=components.containerd_config,
        pause_image=components.pause_image(options.images.registry),
        images=tuple(entry.name for entry in lock.of("image")),
        repository_url=repository_address(lock),
        repository_key=_repository_key(request),
    )
    payload = PayloadSpec(lock, options, image_request(request), cache=cache_home())
    names = Outputs(wishes.output, lock.target.id).names(options.output)
    return Order(lock, options, route, facts, payload, cache_home(), names)


def _repository_key(request: ResolveRequest) -> str:
    if request.options.kubernetes.source != "packages":
        return ""
    return repository_key(request.options.kubernetes, request.version, request.web)


def plan(selection: Selection, provider: Provider, wishes: Wishes) -> Planned:
    """Resolve and plan a selection: everything that --dry-run prints, and exactly what `build` does."""
    lock = resolve(selection, provider, wishes)
    return plan_build(_order(selection, provider, lock, wishes))


Watch = Callable[[RunFolder], AbstractContextManager[None]]


def build(planned: Planned, wishes: Wishes, watch: Watch = lambda _: contextlib.nullcontext()) -> Manifest:
    """Build what was planned; go on where an earlier process that died left the same build.

    `watch` surrounds the run, for progress. Raises BuildError, CheckError or Interrupted, each with the run
    folder among its problems; the run folder is kept whatever happens.
    """
    target_id = planned.order.lock.target.id
    outputs = prepare_output(wishes.output, target_id)
    started = time.monotonic()
    with open_run(wishes.state, target_id, planned.plan.fingerprint) as run:
        run.event("run_start", target=target_id, run_id=run.run_id)
        write_json(run.path / "lock.json", planned.order.lock.model_dump(mode="json"))
        write_json(run.path / "plan.json", planned.plan.model_dump(mode="json"))
        if run.resumed:
            run.note("", "an earlier run of this build lost its process: going on where it was")
        status: Status = "failed"
        try:
            with watch(run):
                manifest = _stages(planned, wishes, run, outputs)
            status = "done"
        except (KeyboardInterrupt, Interrupted) as error:
            status = "interrupted"
            raise Interrupted("interrupted", str(run.path), "type the same command to build again") from error
        except OSError as error:
            raise BuildError(_with_folder([Problem(str(error))], run)) from error
        except BuildImageError as error:
            for problem in error.problems:
                run.event("problem", what=problem.what, where=problem.where, hint=problem.hint)
            raise type(error)(_with_folder(error.problems, run)) from error
        finally:
            run.finish(status)
            run.event("run_end", status=status, seconds=round(time.monotonic() - started, 1))
    return manifest


def _with_folder(problems: Sequence[Problem], run: RunFolder) -> list[Problem]:
    return [*problems, Problem("logs, HCL and variables of this run are kept", str(run.path), f"see {HELP}")]


def _stages(planned: Planned, wishes: Wishes, run: RunFolder, outputs: Outputs) -> Manifest:
    order, clock = planned.order, Clock(run)
    reasons = {action.stage: action.why for action in planned.plan.actions}
    with clock.stage("prepare", reasons["prepare"]):
        note = partial(run.note, "prepare")
        packer = planned.packer or read_packer(packer_binary(find_go(), note, run.path / "compile.log"))
        payload = prepare_payload(_payload_spec(planned, run), note)
    if packer is None:
        raise BuildError("the compiled Packer does not answer", str(run.path / "compile.log"))
    site = Site(
        run=run,
        packer=packer,
        accelerator=_accelerator(order, run),
        route=order.route,
        options=order.options,
        cache=order.cache,
        bootstrap=planned.bootstrap,
        keep_on_failure=wishes.keep_on_failure,
    )
    lane = _tree_lane if order.route.lane == "tree" else _vm_lane
    node, raw, keys = lane(planned, site, clock, payload)
    with clock.stage("check", "no disk leaves that holds traces of its build"):
        _check(raw, keys, order)
    with clock.stage("finish", reasons["finish"]):
        members = write_disks(raw, outputs, order.options.output)
        require_alone(image_info(outputs.disk("qcow2")))
    manifest = _manifest(planned, site, Contents.model_validate_json(node.contents.read_bytes()), members, clock)
    write_manifest(manifest, outputs, run.path)
    _tidy(run)
    return manifest


def _payload_spec(planned: Planned, run: RunFolder) -> PayloadSpec:
    """Return the payload's inputs with the place of its log, and the packages' source for images that need a root."""
    root = None
    archive = package_source(planned.order)
    if archive is not None:
        root = RootSpec(archive.suite, effective_sources(archive), (), apt_options=host_apt_options())
    return replace(planned.order.payload, root=root, log=run.path / "payload.log")


def _accelerator(order: Order, run: RunFolder) -> Accelerator:
    if order.route.lane == "tree":
        return Accelerator("tcg", "no machine boots in the tree lane")
    found = choose(order.route.accelerator)
    run.note("prepare", f"accelerator {found.name}: {found.reason}")
    return found


Built = tuple[StageFolder, Path, dict[str, bytes]]
"""The node's stage folder, a clean raw disk, and the bytes that must not be on it by what they are."""


def _vm_lane(planned: Planned, site: Site, clock: Clock, payload: Payload) -> Built:
    base: Base | None = None
    image = _base_image(planned, site)
    if planned.base is not None and planned.wish is not None:
        base, why = find_base(site.cache / "bases", planned.wish)
        if base is None:
            if planned.bootstrap is not None:
                with clock.stage("tree", "the base starts from it"):
                    ensure_tree(planned.bootstrap, site.cache / "trees", site.note("tree"), site.run.path / "tree.log")
            with clock.stage("base", why):
                base = vmlane.make_base(site, planned.base, planned.wish, image)
    with clock.stage("node", "it was asked for"):
        node = vmlane.build_node(site, planned.node, base, image, payload)
    with clock.stage("clean", "deleted is not gone until it is cleaned offline"):
        raw = vmlane.clean_disk(site, node)
    return node, raw, _keys(node, base)


def _tree_lane(planned: Planned, site: Site, clock: Clock, payload: Payload) -> Built:
    with clock.stage("tree", "this lane works over it"):
        tree = treelane.root_tree(site)
    base: Base | None = None
    lowers: tuple[Path, ...] = (tree.path,)
    if planned.base is not None and planned.wish is not None:
        wish = replace(planned.wish, tree_key=tree.key)
        base, why = find_base(site.cache / "bases", wish)
        if base is None:
            with clock.stage("base", why):
                base = treelane.make_base(site, planned.base, wish, tree)
        lowers = (base.layer / "upper", tree.path)
    with clock.stage("node", "it was asked for"):
        node = treelane.build_node(site, planned.node, lowers, payload.path)
    with clock.stage("disk", "a bootable disk is made of the tree"):
        raw = treelane.clean_disk(site, lowers, planned.plan.fingerprint)
    return node, raw, _keys(node, base)


def _base_image(planned: Planned, site: Site) -> Path | None:
    found = planned.order.lock.find("disk", "base") or planned.order.lock.find("iso", "base")
    if found is None:
        return None
    return Fetcher(site.note("base")).fetch(found.url or "", (found.digest or "").removeprefix("sha256:"))


def _keys(node: StageFolder, base: Base | None) -> dict[str, bytes]:
    keys = {"the public key of the node build": key_body(node.public_key.read_text())}
    if base is not None:
        keys["the public key of the base build"] = key_body(base.record.public_key)
    return keys


def _check(raw: Path, keys: dict[str, bytes], order: Order) -> None:
    roots = [part.start for part in read_table(raw) if is_ext(raw, part.start)]
    if not roots:
        raise CheckError("the disk has no ext4 root file system", str(raw))
    report = check_disk(raw, roots[-1], keys, order.options.build.user)
    if not report.ok:
        raise CheckError(report.problems)


def _manifest(planned: Planned, site: Site, contents: Contents, members: tuple[Member, ...], clock: Clock) -> Manifest:
    return Manifest(
        tool_version=__version__,
        target=planned.order.lock.target,
        run_id=site.run.run_id,
        created_at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        lane=planned.order.route.lane,
        accelerator=site.accelerator.name,
        fingerprint=planned.plan.fingerprint,
        base_fingerprint=planned.plan.base_fingerprint,
        lock=planned.order.lock,
        contents=contents,
        members=members,
        stages=tuple(clock.times),
    )


def _tidy(run: RunFolder) -> None:
    """Remove what is large and made again when it is needed; logs, HCL, variables and job records stay."""
    for name in ("clean.raw", "payload.img"):
        (run.path / name).unlink(missing_ok=True)
    for name in ("box", "start", "node/out", "base/out"):
        shutil.rmtree(run.path / name, ignore_errors=True)


def render(planned: Planned, folder: Path) -> list[Path]:
    """Write the stage folders of a build under a folder and start nothing; return them.

    Raises ConfigError when there is something in the folder already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError("there is something in it already", str(folder), "name a new folder")
    site = Site(
        run=RunFolder(folder.absolute(), "render", planned.order.lock.target.id),
        packer=planned.packer or Packer(Path("packer"), OLDEST),
        accelerator=Accelerator("tcg", "nothing is started"),
        route=planned.order.route,
        options=planned.order.options,
        cache=planned.order.cache,
        bootstrap=planned.bootstrap,
    )
    lane = treelane if planned.order.route.lane == "tree" else vmlane
    recipes = [recipe for recipe in (planned.base, planned.node) if recipe is not None]
    return [lane.render_only(site, recipe) for recipe in recipes]
