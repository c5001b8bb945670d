from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from builder.build.imageroot import RootSpec, image_root, root_command, tidy_root
from builder.build.oci import ImageContent, copy_archive, write_archive
from builder.core.digest import sha256_bytes
from builder.core.errors import BuildError, PreflightError
from builder.core.run import Completed, Spec
from builder.resolve.archive import ArchiveImage, full_name, read_archive

PAUSE = "registry.k8s.io/pause:3.10.1"


def content(tmp_path: Path, text: str = "a program", **more: Any) -> ImageContent:
    (tmp_path / "program").write_text(text)
    return ImageContent({"/usr/local/bin/pause": tmp_path / "program"}, ("/usr/local/bin/pause",), **more)


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {entry.name: archive.extractfile(entry).read() for entry in archive if entry.isfile()}  # type: ignore[union-attr]


def pack(path: Path, files: Mapping[str, bytes | str]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            raw = data.encode() if isinstance(data, str) else data
            entry = tarfile.TarInfo(name)
            entry.size = len(raw)
            archive.addfile(entry, io.BytesIO(raw))
    return path


def docker_archive(path: Path, tags: list[str] | None, **changed: Any) -> Path:
    listing = [{"Config": "c.json", "RepoTags": tags, "Layers": ["l/layer.tar"], **changed}]
    return pack(path, {"manifest.json": json.dumps(listing), "c.json": "{}", "l/layer.tar": b"layer"})


def test_an_archive_reads_as_it_was_written(tmp_path: Path) -> None:
    digest = write_archive(tmp_path / "a.tar", [PAUSE, "example.org/pause:1"], content(tmp_path))
    assert read_archive(tmp_path / "a.tar") == (
        ArchiveImage(PAUSE, digest),
        ArchiveImage("example.org/pause:1", digest),
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "program"]


def test_every_digest_is_that_of_its_content(tmp_path: Path) -> None:
    digest = write_archive(tmp_path / "a.tar", [PAUSE], content(tmp_path, labels={"a": "b"}))
    files = members(tmp_path / "a.tar")
    for name, data in files.items():
        if name.startswith("blobs/"):
            assert name == f"blobs/sha256/{sha256_bytes(data)}"
    manifest = json.loads(files[f"blobs/{digest.replace(':', '/')}"])
    config = json.loads(files[f"blobs/{manifest['config']['digest'].replace(':', '/')}"])
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in manifest["layers"]]
    assert config["config"]["Entrypoint"] == ["/usr/local/bin/pause"]
    assert config["config"]["Labels"] == {"a": "b"}
    assert config["architecture"] == "amd64"
    layer = files[f"blobs/{manifest['layers'][0]['digest'].replace(':', '/')}"]
    with tarfile.open(fileobj=io.BytesIO(layer)) as opened:
        rows = [(entry.name, entry.mode, entry.uid, entry.mtime) for entry in opened]
    folders = [("usr", 0o755, 0, 0), ("usr/local", 0o755, 0, 0), ("usr/local/bin", 0o755, 0, 0)]
    assert rows == [*folders, ("usr/local/bin/pause", 0o755, 0, 0)]


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.tar", [PAUSE], content(tmp_path))
    (tmp_path / "program").unlink()
    write_archive(tmp_path / "b.tar", [PAUSE], content(tmp_path))
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()
    write_archive(tmp_path / "c.tar", [PAUSE], content(tmp_path, "another program"))
    assert (tmp_path / "a.tar").read_bytes() != (tmp_path / "c.tar").read_bytes()


def test_a_root_is_the_lower_layer(tmp_path: Path) -> None:
    root = pack(tmp_path / "root.tar", {"etc/protocols": "tcp"})
    digest = write_archive(tmp_path / "a.tar", [PAUSE], content(tmp_path, root=root))
    files = members(tmp_path / "a.tar")
    layers = json.loads(files[f"blobs/{digest.replace(':', '/')}"])["layers"]
    assert len(layers) == 2
    assert files[f"blobs/{layers[0]['digest'].replace(':', '/')}"] == root.read_bytes()


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_archive(tmp_path / "a.tar", [PAUSE], ImageContent({"/pause": tmp_path / "none"}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("app", "docker.io/library/app:latest"),
        ("app:1", "docker.io/library/app:1"),
        ("team/app:1", "docker.io/team/app:1"),
        ("localhost/app", "localhost/app:latest"),
        ("registry.corp:5000/app", "registry.corp:5000/app:latest"),
        ("registry.k8s.io/pause:3.10", "registry.k8s.io/pause:3.10"),
        ("registry.k8s.io/pause@sha256:ab", "registry.k8s.io/pause@sha256:ab"),
        ("app@sha256:ab", "docker.io/library/app@sha256:ab"),
    ],
)
def test_names_are_those_of_containerd(name: str, full: str) -> None:
    assert full_name(name) == full
    assert full_name(full) == full


def test_docker_archives_have_a_name_for_each_tag(tmp_path: Path) -> None:
    images = read_archive(docker_archive(tmp_path / "d.tar", ["app:1", "registry.corp/app:2"]))
    digest = f"sha256:{sha256_bytes(b'{}')}"
    assert images == (ArchiveImage("docker.io/library/app:1", digest), ArchiveImage("registry.corp/app:2", digest))
    assert read_archive(docker_archive(tmp_path / "n.tar", None))[0].name == ""


def test_compressed_archives_are_read(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.tar", [PAUSE], content(tmp_path))
    packed = tmp_path / "a.tar.gz"
    packed.write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    assert read_archive(packed) == read_archive(tmp_path / "a.tar")


def test_a_cut_archive_is_refused(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.tar", [PAUSE], content(tmp_path, "x" * 50_000))
    whole = (tmp_path / "a.tar").read_bytes()
    for length in (0, 100, 5_000, 30_000, len(whole) // 2):
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        with pytest.raises(PreflightError, match=r"cut\.tar: "):
            read_archive(tmp_path / "cut.tar")


def test_a_changed_manifest_is_refused(tmp_path: Path) -> None:
    digest = write_archive(tmp_path / "a.tar", [PAUSE], content(tmp_path))
    files = members(tmp_path / "a.tar")
    name = f"blobs/{digest.replace(':', '/')}"
    changed = pack(tmp_path / "b.tar", files | {name: files[name].replace(b"1970", b"1971") + b" "})
    with pytest.raises(PreflightError, match="does not fit its content"):
        read_archive(changed)
    del files[name]
    with pytest.raises(PreflightError, match="is missing"):
        read_archive(pack(tmp_path / "c.tar", files))


def test_a_lost_layer_is_noticed(tmp_path: Path) -> None:
    digest = write_archive(tmp_path / "a.tar", [PAUSE], content(tmp_path))
    files = members(tmp_path / "a.tar")
    layer = json.loads(files[f"blobs/{digest.replace(':', '/')}"])["layers"][0]["digest"]
    del files[f"blobs/{layer.replace(':', '/')}"]
    with pytest.raises(PreflightError, match=f"{layer} is missing or cut short"):
        read_archive(pack(tmp_path / "b.tar", files))
    with pytest.raises(PreflightError, match=r"other\.tar is missing"):
        read_archive(docker_archive(tmp_path / "d.tar", ["app:1"], Layers=["other.tar"]))


@pytest.mark.parametrize(
    "files",
    [
        {"readme.txt": "hello"},
        {"index.json": "no json"},
        {"index.json": "[]"},
        {"index.json": '{"manifests": 3}'},
        {"index.json": '{"manifests": [{"digest": "md5:1"}]}'},
        {"manifest.json": '[{"Layers": []}]'},
        {"manifest.json": "null"},
    ],
)
def test_what_is_no_image_is_refused_with_its_path(tmp_path: Path, files: dict[str, bytes | str]) -> None:
    path = pack(tmp_path / "odd.tar", files)
    with pytest.raises(PreflightError, match=r"odd\.tar: ") as caught:
        read_archive(path)
    assert "docker save" in caught.value.problems[0].hint


def test_an_unreadable_file_says_why(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match="No such file"):
        read_archive(tmp_path / "none.tar")
    with pytest.raises(PreflightError, match="Is a directory"):
        read_archive(tmp_path)


def test_a_copy_has_the_name_where_containerd_looks(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.tar", [PAUSE], content(tmp_path))
    files = members(tmp_path / "a.tar")
    index = json.loads(files["index.json"])
    index["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": "corp/pause:3"}
    bare = pack(tmp_path / "bare.tar", files | {"index.json": json.dumps(index)})
    images = copy_archive(bare, tmp_path / "copy.tar")
    assert [image.name for image in images] == ["docker.io/corp/pause:3"]
    copied = json.loads(members(tmp_path / "copy.tar")["index.json"])["manifests"][0]["annotations"]
    assert copied["io.containerd.image.name"] == "docker.io/corp/pause:3"
    assert read_archive(tmp_path / "copy.tar") == images


@pytest.mark.parametrize("name", ["latest", ""])
def test_an_image_without_a_name_is_not_copied(tmp_path: Path, name: str) -> None:
    write_archive(tmp_path / "a.tar", [PAUSE], content(tmp_path))
    files = members(tmp_path / "a.tar")
    index = json.loads(files["index.json"])
    index["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": name}
    bare = pack(tmp_path / "bare.tar", files | {"index.json": json.dumps(index)})
    with pytest.raises(PreflightError, match="an image without a name"):
        copy_archive(bare, tmp_path / "copy.tar")
    assert not (tmp_path / "copy.tar").exists()


def unpacked(path: Path) -> Path:
    """A tar archive as mmdebstrap leaves it: split /usr, documentation, the host's own resolv.conf."""
    pack(
        path,
        {
            "./usr/share/doc/kmod/copyright": "GPL",
            "./usr/share/doc/kmod/changelog.gz": "log",
            "./etc/resolv.conf": "nameserver 10.0.0.1",
            "./bin/kmod": "kmod",
            "./usr/sbin/xtables-nft-multi": "nft",
            "./var/lib/dpkg/status": "Package: kmod",
        },
    )
    with tarfile.open(path, "a") as archive:
        for name, kind, target in (
            ("./bin", tarfile.DIRTYPE, ""),
            ("./usr/bin", tarfile.DIRTYPE, ""),
            ("./bin/lsmod", tarfile.SYMTYPE, "kmod"),
            ("./bin/modprobe", tarfile.LNKTYPE, "./bin/kmod"),
            ("./dev/null", tarfile.CHRTYPE, ""),
        ):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname, entry.uname = kind, target, "someone"
            archive.addfile(entry)
    return path


def test_a_root_is_merged_and_small(tmp_path: Path) -> None:
    tidy_root(unpacked(tmp_path / "raw.tar"), tmp_path / "root.tar", {"/usr/sbin/iptables": "xtables-nft-multi"})
    with tarfile.open(tmp_path / "root.tar") as root:
        found = {entry.name: entry.linkname for entry in root}
        assert {entry.uname for entry in root} == {""}
    assert found == {
        "bin": "usr/bin",
        "usr/bin": "",
        "usr/bin/kmod": "",
        "usr/bin/lsmod": "kmod",
        "usr/bin/modprobe": "usr/bin/kmod",
        "usr/sbin/iptables": "xtables-nft-multi",
        "usr/sbin/xtables-nft-multi": "",
        "usr/share/doc/kmod/copyright": "",
        "var/lib/dpkg/status": "",
    }
    assert members(tmp_path / "root.tar")["usr/bin/kmod"] == b"kmod"


def test_a_root_is_made_once_and_an_old_one_serves_when_the_mirror_is_gone(tmp_path: Path) -> None:
    calls: list[list[str]] = []
    notes: list[str] = []

    def bootstrap(argv: Any, spec: Spec) -> Completed:
        calls.append([str(word) for word in argv])
        assert spec.input == "deb http://mirror bookworm main"
        if len(calls) > 1:
            raise BuildError("the mirror is gone")
        unpacked(Path(argv[-2]))
        return Completed(tuple(calls[-1]), 0, "", (), 0.0)

    spec = RootSpec("bookworm", "deb http://mirror bookworm main", ("kmod", "iptables"))
    first = image_root(spec, tmp_path, notes.append, runner=bootstrap)
    assert image_root(spec, tmp_path, notes.append, runner=bootstrap) == first
    assert len(calls) == 1
    assert calls[0][:3] == ["mmdebstrap", "--variant=extract", "--format=tar"]
    stale = RootSpec("bookworm", spec.sources, spec.packages, max_age_days=0)
    assert image_root(stale, tmp_path, notes.append, runner=bootstrap) == first
    assert notes[-1] == "an older root serves: the mirror is gone"
    with pytest.raises(BuildError, match="the mirror is gone"):
        image_root(RootSpec("trixie", spec.sources, spec.packages), tmp_path, notes.append, runner=bootstrap)


def test_the_apt_options_of_the_host_reach_mmdebstrap(tmp_path: Path) -> None:
    spec = RootSpec("bookworm", "", ("kmod",), arch="arm64", apt_options=('Acquire::http::Proxy "http://p:1"',))
    command = root_command(spec, tmp_path / "out")
    assert '--aptopt=Acquire::http::Proxy "http://p:1"' in command
    assert "--architectures=arm64" in command
    assert command[-3:] == ["bookworm", str(tmp_path / "out"), "-"]
