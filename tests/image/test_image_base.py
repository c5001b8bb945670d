"""`base.source: image`: a base that starts from a finished disk with cloud-init, as distributions publish them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from builder import pipeline
from builder.build.bootstrap import ensure_tree
from builder.build.convert import flatten, image_info
from builder.build.disk import DiskSpec, make_disk
from builder.check.guest import booted
from builder.check.machine import GuestSpec
from builder.cli.run import choose
from builder.core.digest import sha256_file
from builder.core.paths import cache_home
from builder.model.artifact import Manifest
from builder.target.request import Ask, Request
from tests.image.conftest import BOOT_SECONDS, Acceleration
from tests.image.orchestrator import EXAMPLE, TARGET, Orchestrator

SOURCE_MIB = 3072


@pytest.fixture(scope="module")
def cloud_image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a qcow2 as a distribution would publish it: the bootstrap's disk, smaller than the one asked for."""
    folder = tmp_path_factory.mktemp("cloud")
    request = Request(Ask("debian-12", "v1.34.3", "qemu", EXAMPLE))
    selection, provider = choose(request)
    bootstrap = pipeline.plan(selection, provider, pipeline.Wishes(folder / "state", folder / "out")).bootstrap
    assert bootstrap is not None
    tree = ensure_tree(bootstrap, cache_home() / "trees", lambda _: None)
    make_disk(tree.path, folder / "disk.raw", DiskSpec(SOURCE_MIB))
    flatten(folder / "disk.raw", folder / "cloud.qcow2", compress=False)
    (folder / "disk.raw").unlink()
    yield folder / "cloud.qcow2"
    (folder / "cloud.qcow2").unlink()


@pytest.fixture(scope="module")
def orchestrator(cloud_image: Path, packer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orchestrator]:
    settings = {
        "base": {"source": "image", "url": str(cloud_image), "sha256": sha256_file(cloud_image)},
        # What the other tests prove already is left out: this one is about where the base comes from.
        "images": {"source": "none"},
        "disk": {"size_gib": 5},
        "qemu": {"lane": "vm"},
    }
    made = Orchestrator(tmp_path_factory.mktemp("image-base") / "o", packer, settings)
    yield made
    made.clean_up()


@pytest.fixture(scope="module")
def manifest(orchestrator: Orchestrator) -> Manifest:
    done = orchestrator.run(timeout=3000)
    assert done.code == 0, done.stderr
    return Manifest.model_validate_json((orchestrator.output / TARGET / "manifest.json").read_bytes())


def test_both_stages_were_built_each_once(orchestrator: Orchestrator, manifest: Manifest) -> None:
    assert [Path(start[0]).name for start in orchestrator.packer_starts] == ["base", "node"]
    assert [stage.stage for stage in manifest.stages].count("base") == 1
    assert "tree" not in [stage.stage for stage in manifest.stages]


def test_the_lock_names_the_image_by_its_content(manifest: Manifest, cloud_image: Path) -> None:
    (disk,) = manifest.lock.of("disk")
    assert disk.digest == f"sha256:{sha256_file(cloud_image)}"
    assert not manifest.lock.of("suite"), "nothing was bootstrapped for it"


def test_the_source_is_untouched_and_the_result_needs_nothing_of_it(
    orchestrator: Orchestrator, manifest: Manifest, cloud_image: Path
) -> None:
    result = image_info(orchestrator.output / TARGET / f"{TARGET}.qcow2")
    assert result.backing == ""
    assert result.size == 5 << 30
    assert image_info(cloud_image).size == SOURCE_MIB << 20


def test_the_result_boots_as_a_node(
    orchestrator: Orchestrator, manifest: Manifest, acceleration: Acceleration, tmp_path: Path
) -> None:
    disk = orchestrator.output / TARGET / f"{TARGET}.qcow2"
    spec = GuestSpec(disk, accelerator=acceleration, restricted=True, timeout_s=BOOT_SECONDS[acceleration])
    with booted(spec, tmp_path / "guest") as guest:
        guest.run("cloud-init status --wait", check=False, timeout=900)
        assert guest.output("systemctl --failed --plain --no-legend") == ""
        assert guest.output("kubeadm version -o short") == manifest.target.kubernetes
        assert int(guest.output("df --output=size -B1 / | tail -n1")) > 4 << 30
