"""Kubernetes and container images from elsewhere: an air gap's folders, a package repository, a registry."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from builder.build.compile import compilation, find_compiled
from builder.build.oci import ImageContent, write_archive
from builder.core.digest import sha256_file
from builder.core.run import Spec, run
from builder.resolve.golang import find_go
from builder.resolve.gomodule import pinned
from tests.image.fake_registry import Stock, add_archive, serve_registry
from tests.image.fake_repository import build_repository, release_packages, serve, tool_packages
from tests.image.orchestrator import TARGET, Orchestrator

pytestmark = pytest.mark.root
VERSION = "v1.34.3"
OWN_IMAGE = "registry.example/team/agent:7"


@pytest.fixture(scope="module")
def programs() -> Path:
    """Return the folder of the Kubernetes programs that the image under test was built with."""
    pin = pinned("kubernetes", VERSION)
    assert pin is not None
    found = find_compiled(compilation(pin, find_go()))
    assert found is not None, "build the image first: it compiles what is taken from a folder here"
    return found


@pytest.fixture(scope="module")
def names(programs: Path) -> list[str]:
    """Return what the real kubeadm wants."""
    argv: list[str | Path] = [programs / "kubeadm", "config", "images", "list", "--kubernetes-version", VERSION]
    return run(argv, Spec(timeout=120)).stdout.split()


def small_image(folder: Path, name: str) -> Path:
    """Write an archive of an image that holds its own name and nothing else."""
    folder.mkdir(parents=True, exist_ok=True)
    content, archive = folder / "name", folder / f"{name.replace('/', '_').replace(':', '_')}.tar"
    content.write_text(name)
    write_archive(archive, [name], ImageContent({"/name": content}, ("/name",)))
    content.unlink()
    return archive


def manifest_of(orchestrator: Orchestrator) -> dict[str, Any]:
    return dict(json.loads((orchestrator.output / TARGET / "manifest.json").read_text()))


def test_everything_from_the_folders_of_an_air_gap(
    packer: Path, programs: Path, names: list[str], tmp_path: Path
) -> None:
    release = tmp_path / VERSION
    release.mkdir()
    for name in ("kubeadm", "kubelet", "kubectl"):
        shutil.copy(programs / name, release / name)
        (release / f"{name}.sha256").write_text(sha256_file(release / name))
    for name in names:
        small_image(tmp_path / "images", name)
    own = small_image(tmp_path / "own", OWN_IMAGE)
    settings = {
        "kubernetes": {"source": "url", "url": str(tmp_path / "{version}")},
        "images": {"source": "archive", "archives": str(tmp_path / "images"), "extra_archives": [str(own)]},
        "output": {"raw": True, "compress": False},
        "qemu": {"lane": "tree"},
    }
    orchestrator = Orchestrator(tmp_path / "o", packer, settings)
    done = orchestrator.run()
    assert done.code == 0, done.stderr
    manifest = manifest_of(orchestrator)
    assert sorted(image["name"] for image in manifest["contents"]["images"]) == sorted([*names, OWN_IMAGE])
    assert manifest["contents"]["components"]["kubeadm"] == VERSION
    assert manifest["lock"]["flavour"] == "upstream"
    assert [member["format"] for member in manifest["members"]] == ["qcow2", "raw"]
    for member in manifest["members"]:
        assert sha256_file(orchestrator.output / TARGET / member["name"]) == member["sha256"]


def test_an_image_that_no_archive_has_stops_it_before_the_build(packer: Path, names: list[str], tmp_path: Path) -> None:
    for name in names[:-2]:
        small_image(tmp_path / "images", name)
    (tmp_path / "images/broken.tar").write_text("no archive")
    settings = {"images": {"source": "archive", "archives": str(tmp_path / "images")}, "qemu": {"lane": "tree"}}
    orchestrator = Orchestrator(tmp_path / "o", packer, settings)
    done = orchestrator.run()
    assert done.code == 3, done.stderr
    assert all(name in done.stderr for name in names[-2:])
    assert "broken.tar" in done.stderr
    assert not orchestrator.packer_starts


def test_packages_from_a_repository_and_images_from_a_registry(packer: Path, names: list[str], tmp_path: Path) -> None:
    build_repository(tmp_path / "deb", [*release_packages("1.34.3", "2.1"), *tool_packages()])
    stock = Stock({}, {})
    digests = {}
    for name in names:
        repository, _, tag = name.removeprefix("registry.k8s.io/").rpartition(":")
        # Another registry than kubeadm's own has CoreDNS beside the others.
        repository = repository.removeprefix("coredns/")
        digests[f"{repository}:{tag}"] = add_archive(stock, small_image(tmp_path / "a", name), repository, tag)
    with serve(tmp_path / "deb") as url, serve_registry(stock) as port:
        settings = {
            "kubernetes": {"source": "packages", "repository": url},
            "images": {"source": "registry", "registry": f"127.0.0.1:{port}", "tls_verify": False},
            "qemu": {"lane": "tree"},
        }
        orchestrator = Orchestrator(tmp_path / "o", packer, settings)
        done = orchestrator.run()
        missing = orchestrator.run("--k8s", "v1.34.9")
    assert done.code == 0, done.stderr
    manifest = manifest_of(orchestrator)
    found = {image["name"]: image["digest"] for image in manifest["contents"]["images"]}
    assert found == {f"127.0.0.1:{port}/{name}": digest for name, digest in digests.items()}
    versions = {package["name"]: package["version"] for package in manifest["contents"]["packages"]}
    assert versions["kubeadm"] == versions["kubelet"] == versions["kubectl"] == "1.34.3-2.1"
    assert manifest["contents"]["components"]["crictl"] == "v1.34.0"
    assert missing.code == 3
    assert "1.34.3" in missing.stderr, "the nearest version that is there is named"
