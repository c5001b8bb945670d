"""The lock: every input exact, a bad one named before anything starts, all of all parts at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import httpx2
import pytest
import stamina

from builder.core.digest import sha256_bytes
from builder.core.errors import BuildImageError, ConfigError, PreflightError
from builder.model.lock import Input, Lock
from builder.resolve.binaries import file_input, fill
from builder.resolve.lock import resolve_lock
from builder.resolve.request import ResolveRequest
from builder.resolve.web import NotThere, Web, local_path
from builder.target.request import Ask
from builder.target.select import Models, select
from providers.qemu.settings import OsFacts, Settings

MODELS = Models({"qemu": Settings}, {"qemu": OsFacts})
MODULES = ("kubernetes.source=module", "containerd.source=module", "cni.source=module")
HEX = "ab" * 32


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    with stamina.set_testing(True, attempts=1):
        yield


def web(files: Mapping[str, bytes] | None = None) -> Web:
    def answer(request: httpx2.Request) -> httpx2.Response:
        content = (files or {}).get(str(request.url))
        return httpx2.Response(404) if content is None else httpx2.Response(200, content=content)

    return Web(lambda: httpx2.Client(transport=httpx2.MockTransport(answer)))


def module(name: str, version: str) -> Input:
    return Input(name=name, kind="module", version=version, digest=f"sha256:{HEX}")


def no_images(_: ResolveRequest) -> Sequence[Input]:
    return []


def request(
    *sets: str,
    k8s: str = "v1.34.3",
    files: Mapping[str, bytes] | None = None,
    images: Callable[[ResolveRequest], Sequence[Input]] = no_images,
) -> ResolveRequest:
    selection = select(Ask("debian-12", k8s, "qemu", sets=(*MODULES, *sets)), MODELS)
    facts = selection.facts
    assert isinstance(facts, OsFacts)
    return ResolveRequest(selection, facts.bootstrap, images, web(files), module)


def named(lock: Lock) -> list[tuple[str, str, str]]:
    return [(entry.kind, entry.name, entry.version) for entry in lock.inputs]


def refusal(asked: ResolveRequest) -> BuildImageError:
    with pytest.raises(BuildImageError) as caught:
        resolve_lock(asked)
    return caught.value


def test_a_lock_of_modules_needs_no_network_and_is_sorted() -> None:
    lock = resolve_lock(request(images=lambda _: [Input(name="pause", kind="image", version="3.10.1")]))
    assert named(lock) == [
        ("image", "pause", "3.10.1"),
        ("module", "cni", "v1.7.1"),
        ("module", "containerd", "v2.1.4"),
        ("module", "kubernetes", "v1.34.3"),
        ("package", "runc", "1.1.5"),
        ("suite", "base", "bookworm"),
    ]
    assert lock.flavour == "self-built"
    assert lock.digest == resolve_lock(request(images=lambda _: [lock.inputs[0]])).digest
    assert lock.digest != resolve_lock(request()).digest


def test_a_vendors_version_has_no_go_module() -> None:
    error = refusal(request(k8s="v1.34.3+vmware.1"))
    assert isinstance(error, ConfigError)
    assert "the Go module k8s.io/kubernetes has no version of flavour vmware" in str(error)


def programs(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True)
    for name in names:
        (folder / name).write_bytes(name.encode())
        (folder / f"{name}.sha256").write_text(f"{sha256_bytes(name.encode())}  {name}\n")


def test_programs_of_a_folder_are_read_and_compared(tmp_path: Path) -> None:
    programs(tmp_path / "v1.34.3+acme.1/amd64", "kubeadm", "kubelet", "kubectl")
    asked = request("kubernetes.source=url", f"kubernetes.url={tmp_path}/{{version}}/{{arch}}", k8s="v1.34.3+acme.1")
    lock = resolve_lock(asked)
    kubelet = lock.find("binary", "kubelet")
    assert kubelet is not None
    assert kubelet.digest == f"sha256:{sha256_bytes(b'kubelet')}"
    assert kubelet.url == f"{tmp_path}/v1.34.3+acme.1/amd64/kubelet"
    assert lock.flavour == "acme"


def test_programs_that_are_missing_or_damaged_are_all_named(tmp_path: Path) -> None:
    programs(tmp_path / "bin", "kubeadm", "kubelet")
    (tmp_path / "bin/kubelet").write_bytes(b"other")
    error = refusal(request("kubernetes.source=url", f"kubernetes.url={tmp_path}/bin"))
    assert isinstance(error, PreflightError)
    assert f"{tmp_path}/bin/kubelet: checksum mismatch" in str(error)
    assert f"{tmp_path}/bin/kubectl: there is no kubectl.sha256 beside it" in str(error)


def test_a_version_that_the_server_does_not_have_is_named_for_each_program() -> None:
    error = refusal(request("kubernetes.source=url", k8s="v1.34.99"))
    assert len(error.problems) == 3
    assert "https://dl.k8s.io/release/v1.34.99/bin/linux/amd64/kubeadm: there is no kubeadm.sha256 beside it" in str(
        error
    )
    assert "is v1.34.99 there at all? the option is kubernetes.url" in str(error)


def test_release_archives_of_components() -> None:
    base = "https://github.com/containerd/containerd/releases/download/v2.1.5/containerd-2.1.5-linux-amd64.tar.gz"
    crictl = "https://github.com/kubernetes-sigs/cri-tools/releases/download/v1.34.0/crictl-v1.34.0-linux-amd64.tar.gz"
    files = {
        f"{base}.sha256sum": f"{HEX}  containerd-2.1.5-linux-amd64.tar.gz\n".encode(),
        base: b"",
        f"{crictl}.sha256": HEX.encode(),
        crictl: b"",
    }
    sets = ("containerd.source=url", "containerd.version=2.1.5", "crictl.source=url")
    lock = resolve_lock(request(*sets, files=files))
    assert [entry for entry in named(lock) if entry[0] == "archive"] == [
        ("archive", "containerd", "v2.1.5"),
        ("archive", "crictl", "v1.34.0"),
    ]
    found = lock.find("archive", "containerd")
    assert found is not None
    assert found.digest == f"sha256:{HEX}"


def test_cloud_image_by_path(tmp_path: Path) -> None:
    disk = tmp_path / "debian.qcow2"
    disk.write_bytes(b"disk")
    good = ("base.source=image", f"base.url={disk}", f"base.sha256={sha256_bytes(b'disk')}")
    assert ("disk", "base", "debian.qcow2") in named(resolve_lock(request(*good)))
    error = refusal(request("base.source=image", f"base.url={disk}", f"base.sha256={HEX}"))
    assert isinstance(error, PreflightError)
    assert f"{disk}: checksum mismatch: expected sha256 {HEX}, the file has {sha256_bytes(b'disk')}" in str(error)


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (("base.source=image",), "base.url: base.source image needs a file"),
        (("base.source=iso", "base.url=x.iso"), "base.sha256: base.source iso needs its checksum"),
        (("base.source=iso", "base.url=/gone.iso", f"base.sha256={HEX}"), "/gone.iso: no such file"),
        (("base.source=image", "base.url=http://x/d", f"base.sha256={HEX}"), "http://x/d: no such file on the server"),
        (("base.url=http://x/d",), "base.url and base.sha256 have no effect with base.source bootstrap"),
    ],
)
def test_a_base_that_cannot_be_had_is_refused(sets: tuple[str, ...], words: str) -> None:
    assert words in str(refusal(request(*sets)))


def test_an_os_without_bootstrap_facts_says_what_else_there_is() -> None:
    asked = request()
    error = refusal(ResolveRequest(asked.selection, None, no_images, asked.web, module))
    assert "base.source: debian-12 cannot be bootstrapped for qemu\n  -> --set base.source=image" in str(error)


def test_problems_of_all_parts_come_in_one_error() -> None:
    def images(_: ResolveRequest) -> Sequence[Input]:
        raise PreflightError("unreadable archive", "/a.tar")

    sets = ("base.source=image", "kubernetes.source=url", "cni.source=url", "containerd.source=url")
    text = str(refusal(request(*sets, images=images)))
    for words in ("base.url:", "base.sha256:", "kubelet.sha256", "cni-plugins-linux", "containerd-2.1.4", "/a.tar"):
        assert words in text


def test_packages_that_have_no_crictl(tmp_path: Path) -> None:
    url = "https://pkgs.k8s.io/core:/stable:/v1.34/deb/"
    rows = [
        f"Package: {name}\nVersion: 1.34.3-1.1\nArchitecture: amd64\nFilename: {name}.deb\nSHA256: {HEX}\n"
        for name in ("kubeadm", "kubelet", "kubectl")
    ]
    files = {
        f"{url}Packages": "\n".join(rows).encode(),
        f"{url}InRelease": b"",
        f"{url}Release.key": b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n",
    }
    lock = resolve_lock(request("kubernetes.source=packages", files=files))
    assert lock.flavour == "upstream"
    assert ("suite", "kubernetes-repository", "/") in named(lock)
    error = refusal(request("kubernetes.source=packages", "crictl.source=packages", files=files))
    assert "the repository has no cri-tools" in str(error)


@pytest.mark.parametrize(
    ("text", "digest"),
    [
        (HEX, HEX),
        (f"{HEX}\n", HEX),
        (f"{HEX.upper()} *f.tgz\n", HEX),
        (f"{'cd' * 32}  g.tgz\n{HEX}  ./f.tgz\n", HEX),
        (f"SHA2-256 (f.tgz) = {HEX}", HEX),
    ],
)
def test_shapes_of_checksum_files(text: str, digest: str) -> None:
    source = web({"http://x/f.tgz": b"", "http://x/f.tgz.sha256": text.encode()})
    found = file_input("http://x/f.tgz", (".sha256sum", ".sha256"), ("archive", "f", "v1.0.0"), source)
    assert found.digest == f"sha256:{digest}"


@pytest.mark.parametrize("text", ["", "<html>", "abc", f"{HEX}  a\n{HEX}  b\n"])
def test_a_checksum_file_that_names_no_digest_of_the_file(text: str) -> None:
    source = web({"http://x/f.tgz": b"", "http://x/f.tgz.sha256": text.encode()})
    with pytest.raises(PreflightError, match=r"f\.tgz\.sha256: it names no sha256 of f\.tgz"):
        file_input("http://x/f.tgz", (".sha256",), ("archive", "f", "v1.0.0"), source)


def test_a_checksum_without_its_file_is_not_enough() -> None:
    source = web({"http://x/f.tgz.sha256": HEX.encode()})
    with pytest.raises(NotThere, match=r"http://x/f\.tgz: no such file on the server"):
        file_input("http://x/f.tgz", (".sha256",), ("archive", "f", "v1.0.0"), source)


def test_places_of_files(tmp_path: Path) -> None:
    assert local_path("file:///a/b") == Path("/a/b")
    assert local_path("a/b") == Path("a/b")
    assert local_path("https://x/a") is None
    assert fill("{version} {number} {arch} {other}", "v1.2.3", "amd64") == "v1.2.3 1.2.3 amd64 {other}"
    with pytest.raises(PreflightError, match="Is a directory"):
        Web().read(str(tmp_path))
    with pytest.raises(NotThere):
        Web().check(str(tmp_path / "gone"))
