from __future__ import annotations

import io
import json
import os
import tarfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from builder.build import payload as payload_module
from builder.build.compile import executable_name
from builder.build.imageroot import RootSpec
from builder.build.imagestore import StoredImage
from builder.build.oci import ImageContent, write_archive
from builder.build.payload import PayloadSpec, check_image_list, look_at_payload, payload_disk, prepare_payload
from builder.core.digest import sha256_bytes, sha256_file
from builder.core.errors import BuildError, PreflightError
from builder.core.run import Completed, Spec
from builder.model.lock import Input, Lock
from builder.model.target import Target
from builder.resolve.archive import read_archive
from builder.resolve.golang import Go
from builder.resolve.gomodule import pinned
from builder.resolve.images import ImageRequest, ImageTags, required_images, resolve_images
from builder.target.options import CniOptions, ContainerdOptions, ImagesOptions, KubernetesOptions, Options

GO = Go(Path("/opt/go/bin/go"), "go1.26.8")
TARGET = Target(os="debian-12", kubernetes="v1.34.3", infra="qemu")
REQUIRED = required_images("v1.34.3", ImageTags("3.6.5-0", "v1.12.1", "3.10.1"))


class FakeTools:
    """Stands in for go, kubeadm, mmdebstrap, unshare and mke2fs; counts what is started."""

    def __init__(self, images: Sequence[str] = REQUIRED) -> None:
        self.images = images
        self.started: list[str] = []

    def __call__(self, argv: Sequence[str | Path], spec: Spec) -> Completed:
        words = [str(word) for word in argv]
        name = Path(words[0]).name
        self.started.append(name)
        text = ""
        if name == "go":
            out = Path(words[words.index("-o") + 1])
            for package in words[words.index("-o") + 2 :]:
                (out / executable_name(package)).write_text(package)
        elif name == "kubeadm":
            text = "".join(f"{image}\n" for image in self.images)
        elif name == "mmdebstrap":
            tarfile.open(words[-2], "w").close()
        return Completed(tuple(words), 0, text, (), 0.0)


def lock(*inputs: Input) -> Lock:
    return Lock(target=TARGET, flavour="self-built", inputs=inputs)


def module(name: str, version: str) -> Input:
    pin = pinned(name, version)
    assert pin is not None
    return pin.lock_input


def of_modules(tmp_path: Path) -> PayloadSpec:
    request = ImageRequest("module", REQUIRED)
    inputs = [*resolve_images(request), module("kubernetes", "v1.34.3"), module("containerd", "v2.1.4")]
    inputs += [
        module("cni", "v1.8.0"),
        module("etcd", "v3.6.5"),
        module("coredns", "v1.12.1"),
        module("pause", "3.10.1"),
    ]
    options = Options(
        kubernetes=KubernetesOptions(source="module"),
        images=ImagesOptions(source="module"),
        containerd=ContainerdOptions(source="module"),
        cni=CniOptions(source="module"),
    )
    root = RootSpec("bookworm", "deb http://mirror bookworm main", ())
    return PayloadSpec(lock(*inputs), options, request, root, GO, tmp_path / "cache")


def without_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload_module, "why_no_store", lambda *_: "only root can")
    monkeypatch.setattr(payload_module, "host_arch", lambda: "amd64")


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_everything_from_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_store(monkeypatch)
    tools, notes = FakeTools(), list[str]()
    made = prepare_payload(of_modules(tmp_path), notes.append, tools)
    assert made.images_mode == "import"
    assert made.image_names == tuple(sorted(REQUIRED))
    assert {"bin/kubeadm", "bin/kubelet", "bin/kubectl", "containerd/bin/containerd", "cni/bridge"} <= set(made.files)
    assert "bin/kube-apiserver" not in made.files
    archives = sorted((made.path / "images").glob("*.tar"))
    assert [image.name for path in archives for image in read_archive(path)] == sorted(REQUIRED)
    assert (made.path / "bin/kubeadm").stat().st_mode & 0o777 == 0o755
    record = json.loads((made.path / "payload.json").read_text())
    assert record["files"] == dict(made.files)
    assert record["files"]["bin/kubelet"] == sha256_file(made.path / "bin/kubelet")
    assert set(names_in(made.path)) == {*made.files, "payload.json"}
    assert tools.started.count("go") == 6
    assert "images are loaded in the guest: only root can" in notes


def test_the_second_call_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_store(monkeypatch)
    first = prepare_payload(of_modules(tmp_path), print, FakeTools())
    tools = FakeTools()
    assert prepare_payload(of_modules(tmp_path), print, tools) == first
    assert tools.started == []


def test_a_look_says_what_must_be_compiled_and_makes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_store(monkeypatch)
    spec, tools = of_modules(tmp_path), FakeTools()
    look = look_at_payload(spec, tools)
    assert (look.images_mode, look.ready) == ("import", False)
    assert "kubernetes v1.34.3" in look.why
    assert tools.started == []
    prepare_payload(spec, print, FakeTools())
    assert look_at_payload(spec, tools).ready
    assert not look_at_payload(of_urls(tmp_path), tools).ready


def test_payloads_that_nobody_uses_are_deleted(tmp_path: Path) -> None:
    spec = of_urls(tmp_path)
    first = prepare_payload(spec, print, FakeTools())
    other = replace(spec, lock=lock(*spec.lock.inputs[:3], *spec.lock.inputs[3:5]))
    second = prepare_payload(other, print, FakeTools())
    assert first.path.is_dir()
    old = time.time() - 15 * 86400
    os.utime(first.path / "payload.json", (old, old))
    os.utime(second.path / "payload.json", (old, old))
    prepare_payload(other, print, FakeTools())
    assert not first.path.exists()
    assert second.path.is_dir()


def test_a_ready_store_takes_the_place_of_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_store(monkeypatch)
    monkeypatch.setattr(payload_module, "why_no_store", lambda *_: "")

    def store(containerd: Path, archives: Sequence[Path], out: Path, *_: object) -> tuple[StoredImage, ...]:
        assert (containerd / "ctr").is_file()
        (out / "io.containerd.metadata.v1.bolt").mkdir(parents=True)
        return tuple(StoredImage(image.name, image.digest) for path in archives for image in read_archive(path))

    monkeypatch.setattr(payload_module, "make_store", store)
    made = prepare_payload(of_modules(tmp_path), print, FakeTools())
    assert made.images_mode == "store"
    assert (made.path / "containerd-store/io.containerd.metadata.v1.bolt").is_dir()
    assert not (made.path / "images").exists()
    monkeypatch.setattr(payload_module, "make_store", lambda *_: ())
    other = replace(of_modules(tmp_path), cache=tmp_path / "other")
    with pytest.raises(BuildError, match=r"containerd's store lacks registry\.k8s\.io/coredns"):
        prepare_payload(other, print, FakeTools())
    assert [path.suffix for path in (tmp_path / "other/payloads").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("arch", "source", "why"),
    [
        ("arm64", "module", "this machine cannot run a containerd for amd64"),
        ("amd64", "packages", "containerd is the distribution's own"),
    ],
)
def test_why_a_guest_must_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arch: str, source: str, why: str
) -> None:
    without_store(monkeypatch)
    monkeypatch.setattr(payload_module, "host_arch", lambda: arch)
    spec, notes = of_modules(tmp_path), list[str]()
    options = spec.options.model_copy(update={"containerd": ContainerdOptions.model_validate({"source": source})})
    assert prepare_payload(replace(spec, options=options), notes.append, FakeTools()).images_mode == "import"
    assert f"images are loaded in the guest: {why}" in notes


def test_kubeadm_has_the_last_word_on_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_store(monkeypatch)
    tools = FakeTools([*REQUIRED[:-1], "registry.k8s.io/etcd:3.6.6-0"])
    with pytest.raises(PreflightError, match=r"wants other images .* registry\.k8s\.io/etcd:3\.6\.6-0") as caught:
        prepare_payload(of_modules(tmp_path), print, tools)
    assert "kubernetes/1.34.yaml" in caught.value.problems[0].hint


def test_a_kubeadm_that_names_no_image_is_not_believed(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match="it names none"):
        check_image_list(tmp_path / "kubeadm", "v1.34.3", "registry.k8s.io", REQUIRED, FakeTools([]))
    check_image_list(tmp_path / "kubeadm", "v1.34.3", "registry.k8s.io", REQUIRED, FakeTools())


def release(path: Path, *names: str) -> str:
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(name), 0o644 if name.endswith(".md") else 0o755
            archive.addfile(entry, io.BytesIO(name.encode()))
    return f"sha256:{sha256_file(path)}"


def of_urls(tmp_path: Path) -> PayloadSpec:
    inputs = []
    for name in ("kubeadm", "kubelet", "kubectl"):
        (tmp_path / name).write_text(name)
        digest = f"sha256:{sha256_bytes(name.encode())}"
        inputs.append(Input(name=name, kind="binary", version="v1.34.3", url=str(tmp_path / name), digest=digest))
    for name, files in {
        "containerd": ("bin/containerd", "bin/containerd-shim-runc-v2", "bin/ctr", "bin/containerd-stress"),
        "cni": ("./bridge", "./loopback", "./README.md"),
        "crictl": ("crictl",),
    }.items():
        path = tmp_path / f"{name}.tgz"
        digest = release(path, *files)
        inputs.append(Input(name=name, kind="archive", version="v1", url=str(path), digest=digest))
    options = Options(
        kubernetes=KubernetesOptions(source="url"),
        images=ImagesOptions(source="none"),
        containerd=ContainerdOptions(source="url"),
        cni=CniOptions(source="url"),
    )
    return PayloadSpec(lock(*inputs), options, ImageRequest("none", ()), cache=tmp_path / "cache")


def test_everything_from_urls(tmp_path: Path) -> None:
    tools = FakeTools()
    made = prepare_payload(of_urls(tmp_path), print, tools)
    assert sorted(made.files) == [
        "bin/crictl",
        "bin/kubeadm",
        "bin/kubectl",
        "bin/kubelet",
        "cni/bridge",
        "cni/loopback",
        "containerd/bin/containerd",
        "containerd/bin/containerd-shim-runc-v2",
        "containerd/bin/ctr",
    ]
    assert made.images_mode == "none"
    assert (made.path / "bin/kubelet").read_text() == "kubelet"
    assert (made.path / "cni/bridge").stat().st_mode & 0o777 == 0o755
    assert tools.started == []


def test_a_release_without_its_program_is_named(tmp_path: Path) -> None:
    spec = of_urls(tmp_path)
    digest = release(tmp_path / "containerd.tgz", "bin/containerd")
    changed = [
        entry.model_copy(update={"digest": digest}) if entry.name == "containerd" else entry
        for entry in spec.lock.inputs
    ]
    with pytest.raises(PreflightError, match=r"there is no containerd-shim-runc-v2, ctr in it"):
        prepare_payload(replace(spec, lock=lock(*changed)), print, FakeTools())


def test_a_download_that_is_not_what_the_lock_says(tmp_path: Path) -> None:
    spec = of_urls(tmp_path)
    (tmp_path / "kubelet").write_text("other")
    with pytest.raises(PreflightError, match="checksum mismatch"):
        prepare_payload(spec, print, FakeTools())


def test_packages_alone_need_an_empty_payload(tmp_path: Path) -> None:
    spec = PayloadSpec(lock(), Options(), ImageRequest("none", ()), cache=tmp_path / "cache")
    made = prepare_payload(spec, print, FakeTools())
    assert names_in(made.path) == ["payload.json"]


def test_a_pin_that_changed_after_the_lock_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_store(monkeypatch)
    spec = of_modules(tmp_path)
    changed = [
        entry.model_copy(update={"digest": "sha256:" + "0" * 64}) if entry.name == "cni" else entry
        for entry in spec.lock.inputs
    ]
    with pytest.raises(PreflightError, match="no longer what the lock says"):
        prepare_payload(replace(spec, lock=lock(*changed)), print, FakeTools())


def test_own_images_alone_are_loaded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_store(monkeypatch)
    (tmp_path / "program").write_text("program")
    write_archive(tmp_path / "own.tar", ["agent:7"], ImageContent({"/agent": tmp_path / "program"}))
    request = ImageRequest("none", (), extra_archives=(tmp_path / "own.tar",))
    spec = PayloadSpec(lock(*resolve_images(request)), Options(), request, cache=tmp_path / "cache")
    made = prepare_payload(spec, print, FakeTools())
    assert made.images_mode == "import"
    assert made.image_names == ("docker.io/library/agent:7",)
    assert [image.name for image in read_archive(made.path / "images/00-own.tar")] == ["docker.io/library/agent:7"]


def test_the_disk_is_as_large_as_its_content(tmp_path: Path) -> None:
    made = prepare_payload(of_urls(tmp_path), print, FakeTools())
    calls: list[list[str]] = []

    def mke2fs(argv: Sequence[str | Path], _: Spec) -> Completed:
        calls.append([str(word) for word in argv])
        return Completed(tuple(calls[-1]), 0, "", (), 0.0)

    payload_disk(made, tmp_path / "disks/payload.img", mke2fs)
    assert calls[0][-1] == "17M"
    assert calls[0][-2] == str(tmp_path / "disks/payload.img")
    assert calls[0][calls[0].index("-L") + 1] == "PAYLOAD"
    assert calls[0][calls[0].index("-d") + 1] == str(made.path)


def test_a_disk_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    made = prepare_payload(of_urls(tmp_path), print, FakeTools())

    def full(argv: Sequence[str | Path], _: Spec) -> Completed:
        Path(argv[-2]).write_text("half")
        raise BuildError("no space left")

    with pytest.raises(BuildError, match="no space left"):
        payload_disk(made, tmp_path / "payload.img", full)
    assert not (tmp_path / "payload.img").exists()
