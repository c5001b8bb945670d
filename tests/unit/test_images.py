from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from builder.build.imageset import ImageParts, image_commands, needs_root, write_images
from builder.build.imagestore import StoredImage, parse_listing
from builder.build.oci import ImageContent, write_archive
from builder.core.digest import sha256_bytes
from builder.core.errors import BuildError, ConfigError, PreflightError
from builder.core.run import Completed, Spec
from builder.model.lock import Input
from builder.resolve.archive import read_archive
from builder.resolve.images import (
    ImageRequest,
    ImageTags,
    ModuleSource,
    archive_files,
    locate_archives,
    module_source,
    required_images,
    resolve_images,
    tag_of,
)

TAGS = ImageTags(etcd="3.6.5-0", coredns="v1.12.1", pause="3.10.1")
REQUIRED = required_images("v1.34.3", TAGS)
DIGEST = "sha256:" + "a" * 64


class FakeSkopeo:
    """Answers `skopeo inspect` with a digest, writes an archive for `skopeo copy`; fails for names with `secret`."""

    def __init__(self, tmp_path: Path) -> None:
        self.calls: list[list[str]] = []
        self.tmp_path = tmp_path

    def __call__(self, argv: Sequence[str | Path], spec: Spec) -> Completed:
        words = [str(word) for word in argv]
        self.calls.append(words)
        if "secret" in words[-1]:
            raise BuildError(f"{spec.what} failed (exit code 1)\n  | time=x\n  | unauthorized: access denied")
        if words[1] == "copy":
            pull_into(Path(words[-1].removeprefix("dir:")))
        return Completed(tuple(words), 0, DIGEST + "\n", (), 0.0)


def make(path: Path, *names: str, text: str = "program") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    program = path.parent / "program"
    program.write_text(text)
    write_archive(path, names, ImageContent({"/program": program}))
    program.unlink()
    return path


def pull_into(folder: Path) -> None:
    """Leave what `skopeo copy … dir:` leaves: the manifest, and each blob under its digest."""
    config, layer = b"{}", b"layer"
    folder.mkdir()
    (folder / sha256_bytes(config)).write_bytes(config)
    (folder / sha256_bytes(layer)).write_bytes(layer)
    kind = "application/vnd.docker.distribution.manifest.v2+json"
    manifest = {"mediaType": kind, "config": described(config), "layers": [described(layer), described(layer)]}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=3))


def described(data: bytes) -> dict[str, object]:
    return {"digest": f"sha256:{sha256_bytes(data)}", "size": len(data)}


def refuse(argv: Sequence[str | Path], _: Spec) -> Completed:
    raise AssertionError(f"nothing is to be started: {argv}")


def test_the_names_are_those_of_kubeadm() -> None:
    # Printed by the real kubeadm v1.34.3: kubeadm config images list --kubernetes-version v1.34.3
    assert sorted(REQUIRED) == sorted(
        [
            "registry.k8s.io/kube-apiserver:v1.34.3",
            "registry.k8s.io/kube-controller-manager:v1.34.3",
            "registry.k8s.io/kube-scheduler:v1.34.3",
            "registry.k8s.io/kube-proxy:v1.34.3",
            "registry.k8s.io/coredns/coredns:v1.12.1",
            "registry.k8s.io/pause:3.10.1",
            "registry.k8s.io/etcd:3.6.5-0",
        ]
    )


def test_another_registry_has_coredns_beside_the_others_and_no_plus_in_tags() -> None:
    names = required_images("v1.34.3+vmware.1", TAGS, "registry.corp:5000/k8s/")
    assert "registry.corp:5000/k8s/coredns:v1.12.1" in names
    assert "registry.corp:5000/k8s/kube-proxy:v1.34.3_vmware.1" in names


@pytest.mark.parametrize(
    ("name", "tag"),
    [("a.io/b:1", "1"), ("a.io:5000/b", ""), ("a.io/b:1@sha256:0", "1"), ("a.io:5000/b@sha256:0", "")],
)
def test_tags(name: str, tag: str) -> None:
    assert tag_of(name) == tag


def test_an_images_tag_says_what_is_compiled() -> None:
    sources = {module_source(name).image: module_source(name) for name in REQUIRED}
    assert sources["etcd"] == ModuleSource("etcd", "etcd", "v3.6.5")
    assert sources["coredns"] == ModuleSource("coredns", "coredns", "v1.12.1")
    assert sources["pause"] == ModuleSource("pause", "pause", "3.10.1")
    assert sources["kube-proxy"] == ModuleSource("kube-proxy", "kubernetes", "v1.34.3")
    with pytest.raises(ConfigError, match=r"no Go module is known for the image docker\.io/nginx:1"):
        module_source("docker.io/nginx:1")


def test_compiled_images_need_no_registry() -> None:
    inputs = resolve_images(ImageRequest("module", REQUIRED), refuse)
    assert [entry.name for entry in inputs] == sorted(REQUIRED)
    assert {entry.kind for entry in inputs} == {"image"}
    etcd = next(entry for entry in inputs if "etcd" in entry.name)
    assert (etcd.version, etcd.revision, etcd.digest) == ("3.6.5-0", "module etcd v3.6.5", None)
    assert needs_root(inputs)
    assert image_commands(inputs)["kubernetes"] == {
        "kube-apiserver",
        "kube-controller-manager",
        "kube-proxy",
        "kube-scheduler",
    }


def test_no_images_are_none() -> None:
    assert resolve_images(ImageRequest("none", REQUIRED), refuse) == ()


def test_registry_images_are_resolved_to_digests(tmp_path: Path) -> None:
    skopeo = FakeSkopeo(tmp_path)
    pinned = f"registry.corp/agent@{DIGEST}"
    inputs = resolve_images(ImageRequest("registry", REQUIRED, extra=("nginx:1", pinned), arch="arm64"), skopeo)
    assert {entry.digest for entry in inputs} == {DIGEST}
    assert {entry.name for entry in inputs} == {*REQUIRED, "docker.io/library/nginx:1", pinned}
    assert len(skopeo.calls) == len(REQUIRED) + 1
    assert all("--override-arch arm64" in " ".join(call) for call in skopeo.calls)


def test_every_image_that_is_refused_is_named_at_once(tmp_path: Path) -> None:
    request = ImageRequest(
        "none", (), extra=("registry.corp/secret-a:1", "registry.corp/b:1", "registry.corp/secret-c:1")
    )
    with pytest.raises(PreflightError) as caught:
        resolve_images(request, FakeSkopeo(tmp_path))
    assert [problem.where for problem in caught.value.problems] == [
        "registry.corp/secret-a:1",
        "registry.corp/secret-c:1",
    ]
    assert "unauthorized: access denied" in str(caught.value)


def test_archives_must_have_every_required_image(tmp_path: Path) -> None:
    folder = tmp_path / "archives"
    make(folder / "all.tar", *REQUIRED[:5])
    (folder / "notes.txt").write_text("not an archive")
    request = ImageRequest("archive", REQUIRED, archives=folder)
    with pytest.raises(PreflightError) as caught:
        resolve_images(request, refuse)
    assert len(caught.value.problems) == 1
    assert f"2 required images are in no archive: {REQUIRED[5]}, {REQUIRED[6]}" in str(caught.value)
    make(folder / "more.tar", *REQUIRED[5:])
    inputs = resolve_images(request, refuse)
    assert [entry.name for entry in inputs] == sorted(REQUIRED)
    assert locate_archives(request, inputs) == {
        folder / "all.tar": tuple(sorted(REQUIRED[:5])),
        folder / "more.tar": tuple(sorted(REQUIRED[5:])),
    }


def test_a_damaged_archive_is_an_error_even_when_it_is_not_needed(tmp_path: Path) -> None:
    make(tmp_path / "a/all.tar", *REQUIRED)
    (tmp_path / "a/broken.tar").write_bytes(b"\0" * 700)
    with pytest.raises(PreflightError, match=r"broken\.tar: "):
        resolve_images(ImageRequest("archive", REQUIRED, archives=tmp_path / "a"), refuse)


@pytest.mark.parametrize("folder", [None, Path("/no/such/folder")])
def test_the_folder_of_archives_must_be_there(folder: Path | None) -> None:
    with pytest.raises(PreflightError, match=r"images\.archives names no folder") as caught:
        resolve_images(ImageRequest("archive", REQUIRED, archives=folder), refuse)
    assert len(caught.value.problems) == 1


def test_own_images_come_with_any_source_and_replace_a_required_one(tmp_path: Path) -> None:
    own = make(tmp_path / "own.tar", "agent:7", REQUIRED[0])
    request = ImageRequest("module", REQUIRED, extra_archives=(own,))
    inputs = resolve_images(request, refuse)
    found = {entry.name: entry.revision or "" for entry in inputs}
    assert found["docker.io/library/agent:7"].startswith("archive sha256:")
    assert found[REQUIRED[0]].startswith("archive sha256:")
    assert found[REQUIRED[1]].startswith("module ")
    assert set(found) == {*REQUIRED, "docker.io/library/agent:7"}


def test_two_archives_with_one_name_and_other_content_are_refused(tmp_path: Path) -> None:
    first, second = make(tmp_path / "1.tar", "agent:7"), make(tmp_path / "2.tar", "agent:7", text="other")
    with pytest.raises(PreflightError, match=r"agent:7 is in .*1\.tar too, with other content"):
        resolve_images(ImageRequest("none", (), extra_archives=(first, second)), refuse)
    assert len(resolve_images(ImageRequest("none", (), extra_archives=(first, first)), refuse)) == 1


def test_an_archive_that_changes_after_the_lock_is_noticed(tmp_path: Path) -> None:
    request = ImageRequest("none", (), extra_archives=(make(tmp_path / "own.tar", "agent:7"),))
    inputs = resolve_images(request, refuse)
    make(tmp_path / "own.tar", "agent:7", text="other")
    with pytest.raises(PreflightError, match="no archive has the bytes that the lock names"):
        locate_archives(request, inputs)


def test_only_archives_are_looked_at(tmp_path: Path) -> None:
    for name in ("b.tar", "a.tar.gz", "readme.md", "c.tgz", "d.oci"):
        (tmp_path / name).write_text("")
    (tmp_path / "folder.tar").mkdir()
    assert [path.name for path in archive_files(tmp_path)] == ["a.tar.gz", "b.tar", "c.tgz", "d.oci"]


def test_each_image_becomes_an_archive(tmp_path: Path) -> None:
    binaries = tmp_path / "pause"
    binaries.mkdir()
    (binaries / "pause").write_text("pause")
    own = make(tmp_path / "own/own.tar", "agent:7")
    request = ImageRequest("module", (REQUIRED[5],), extra=("registry.corp:5000/app:1",), extra_archives=(own,))
    skopeo = FakeSkopeo(tmp_path)
    inputs = resolve_images(request, skopeo)
    pulled = tmp_path / "images"
    pulled.mkdir()
    parts = ImageParts(request, {"pause": binaries}, None, pulled)
    made = write_images(inputs, parts, tmp_path / "out", print, skopeo)
    names = [image.name for path in made for image in read_archive(path)]
    assert sorted(names) == ["docker.io/library/agent:7", "registry.corp:5000/app:1", "registry.k8s.io/pause:3.10.1"]
    assert skopeo.calls[-1][-2] == f"docker://registry.corp:5000/app@{DIGEST}"
    (app,) = [image for path in made for image in read_archive(path) if "corp" in image.name]
    with tarfile.open(next(path for path in made if "app" in path.name)) as archive:
        blob = archive.extractfile(f"blobs/sha256/{app.digest.removeprefix('sha256:')}")
        assert blob is not None
        assert b'"layers": [' in blob.read(), "the manifest stays byte for byte what the registry has"
    count = len(skopeo.calls)
    write_images(inputs, parts, tmp_path / "again", print, skopeo)
    assert len(skopeo.calls) == count


def test_an_image_without_a_digest_is_never_pulled(tmp_path: Path) -> None:
    entry = Input(name="registry.corp/app:1", kind="image", version="1")
    parts = ImageParts(ImageRequest("registry", (entry.name,)), {}, None, tmp_path)
    with pytest.raises(PreflightError, match="no digest"):
        write_images((entry,), parts, tmp_path / "out", print, refuse)


def test_the_listing_of_ctr() -> None:
    text = (
        "REF TYPE DIGEST SIZE PLATFORMS LABELS\n"
        f"registry.k8s.io/pause:3.10.1 application/vnd.oci.image.manifest.v1+json {DIGEST} 1.5 MiB linux/amd64 -\n"
        f"docker.io/library/a@{DIGEST} application/vnd.oci.image.manifest.v1+json {DIGEST} 1.5 MiB linux/amd64 -\n"
        f"{DIGEST} application/vnd.oci.image.manifest.v1+json {DIGEST} 1.5 MiB linux/amd64 io.cri=managed\n\n"
    )
    assert parse_listing(text) == (
        StoredImage(f"docker.io/library/a@{DIGEST}", DIGEST),
        StoredImage("registry.k8s.io/pause:3.10.1", DIGEST),
    )


def test_entries_are_what_goes_into_a_lock() -> None:
    entry = resolve_images(ImageRequest("module", REQUIRED[:1]), refuse)[0]
    assert Input.model_validate_json(json.dumps(entry.model_dump(mode="json"))) == entry
