"""A signed deb repository of the shape of pkgs.k8s.io on a real server: apt takes exactly what the lock names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from builder.core.digest import sha256_bytes
from builder.core.errors import PreflightError
from builder.core.run import Spec, run
from builder.model.lock import Input, Lock
from builder.resolve.kubernetes import package_versions, repository_address, repository_key
from builder.resolve.lock import resolve_lock
from builder.resolve.request import ResolveRequest
from builder.target.request import Ask
from builder.target.select import Models, select
from providers.qemu.settings import OsFacts, Settings
from tests.image.fake_repository import build_repository, release_packages, serve, tool_packages

MODELS = Models({"qemu": Settings}, {"qemu": OsFacts})


@dataclass(frozen=True, slots=True)
class Served:
    """A repository on a server: its URL and its armored key."""

    url: str
    key: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("repository") / "v1.34"
    revisions = [("1.34.2", "1.1"), ("1.34.3", "1.1"), ("1.34.3", "2.1"), ("1.34.4", "1.1")]
    releases = [package for version, revision in revisions for package in release_packages(version, revision)]
    key = build_repository(folder, [*releases, *tool_packages()])
    with serve(folder.parent) as url:
        yield Served(url + "{series}/", key)


def no_images(_: ResolveRequest) -> Sequence[Input]:
    return []


def request(served: Served, version: str) -> ResolveRequest:
    sets = ("containerd.source=module", "containerd.version=v2.1.4", f"kubernetes.repository={served.url}")
    selection = select(Ask("debian-12", version, "qemu", sets=sets), MODELS)
    assert isinstance(selection.facts, OsFacts)
    return ResolveRequest(selection, selection.facts.bootstrap, no_images)


def apt_sees(folder: Path, lock: Lock, key: str) -> str:
    """Return what apt would download for the packages of a lock, in an empty root of its own."""
    for name in ("lists/partial", "archives/partial", "etc/apt.conf.d", "etc/preferences.d", "etc/sources.list.d"):
        (folder / name).mkdir(parents=True)
    (folder / "status").write_text("")
    (folder / "key.asc").write_text(key)
    url = repository_address(lock)
    (folder / "etc/sources.list").write_text(f"deb [arch=amd64 signed-by={folder}/key.asc] {url} /\n")
    places = {
        "Dir::Etc": f"{folder}/etc",
        "Dir::State": str(folder),
        "Dir::State::status": f"{folder}/status",
        "Dir::Cache": str(folder),
        "APT::Architecture": "amd64",
        "APT::Sandbox::User": "",
        "Acquire::http::Proxy": "DIRECT",
    }
    options = [word for name, value in places.items() for word in ("-o", f"{name}={value}")]
    run(["apt-get", *options, "update"], Spec(timeout=60))
    # Every package alone: the dependencies on the distribution are not in this root.
    exact = [f"{name}={version}" for name, version in package_versions(lock).items()]
    return run(["apt-get", *options, "download", "--print-uris", *exact], Spec(timeout=60)).stdout


def test_apt_takes_exactly_what_the_lock_names(served: Served, tmp_path: Path) -> None:
    asked = request(served, "v1.34.3")
    lock = resolve_lock(asked)
    assert package_versions(lock) == {
        "kubeadm": "1.34.3-2.1",
        "kubelet": "1.34.3-2.1",
        "kubectl": "1.34.3-2.1",
        "cri-tools": "1.34.0-1.1",
        "kubernetes-cni": "1.7.1-1.1",
    }
    key = repository_key(asked.options.kubernetes, asked.version, asked.web)
    assert key == served.key
    suite = lock.find("suite", "kubernetes-repository")
    assert suite is not None
    assert suite.digest == f"sha256:{sha256_bytes(key.encode())}"
    rows = apt_sees(tmp_path, lock, key)
    for name in package_versions(lock):
        entry = lock.find("package", name)
        assert entry is not None
        assert f"'{entry.url}'" in rows
        assert f"SHA256:{(entry.digest or '').removeprefix('sha256:')}" in rows


def test_a_version_that_is_not_there_is_refused_with_its_neighbours(served: Served) -> None:
    with pytest.raises(
        PreflightError, match=r"v1\.34\.9 is not in the repository\n  -> nearest: v1\.34\.2, v1\.34\.3, v1\.34\.4"
    ):
        resolve_lock(request(served, "v1.34.9"))


def test_a_series_that_is_not_there_is_refused(served: Served) -> None:
    with pytest.raises(PreflightError, match=r"/v1\.33/: there is no deb repository"):
        resolve_lock(request(served, "v1.33.1"))
