"""The real Go, skopeo, mke2fs and containerd: what is compiled and packed here works elsewhere."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from builder.build.compile import compilation, compile_module, find_compiled
from builder.build.imagestore import make_store, why_no_store
from builder.build.oci import ImageContent, copy_archive, write_archive
from builder.build.payload import Payload, payload_disk
from builder.core.errors import BuildError, PreflightError
from builder.core.run import Spec, run, spawn, which
from builder.resolve.archive import read_archive
from builder.resolve.golang import Go, find_go
from builder.resolve.gomodule import pinned

NAME = "registry.k8s.io/pause:3.10.1"
CONTAINERD = "v2.1.4"


@pytest.fixture(scope="session")
def go() -> Go:
    try:
        return find_go()
    except PreflightError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def pause(go: Go, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pin = pinned("pause", "3.10.1")
    assert pin is not None
    return compile_module(compilation(pin, go), print, cache=tmp_path_factory.mktemp("modules")) / "pause"


@pytest.fixture
def archive(pause: Path, tmp_path: Path) -> Path:
    write_archive(tmp_path / "pause.tar", [NAME], ImageContent({"/pause": pause}, ("/pause",)))
    return tmp_path / "pause.tar"


def containerd(go: Go) -> Path:
    pin = pinned("containerd", CONTAINERD)
    assert pin is not None
    found = find_compiled(compilation(pin, go))
    if found is None:
        pytest.skip(f"containerd {CONTAINERD} is not compiled on this machine yet")
    return found


def test_pause_is_static_and_the_same_every_time(go: Go, pause: Path, tmp_path: Path) -> None:
    assert pause.read_bytes()[:4] == b"\x7fELF"
    assert b"ld-linux" not in pause.read_bytes()
    pin = pinned("pause", "3.10.1")
    assert pin is not None
    again = compile_module(compilation(pin, go), print, cache=tmp_path) / "pause"
    assert again.read_bytes() == pause.read_bytes()


@pytest.mark.parametrize("wanted", [signal.SIGTERM, signal.SIGINT])
def test_pause_waits_until_it_is_told(pause: Path, wanted: signal.Signals, tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = spawn([pause], Spec(log=log))
    while "first process" not in (log.read_text() if log.exists() else ""):
        assert process.poll() is None
    os.kill(process.pid, wanted)
    assert process.wait(10) == 0


def test_the_compiler_has_the_last_word(go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pause").mkdir()
    (tmp_path / "pause/go.mod").write_text("module build-image/tools/pause\n\ngo 1.24\n")
    (tmp_path / "pause/main.go").write_text("package main\n\nfunc main() { undefined() }\n")
    monkeypatch.setattr("builder.core.paths.share", lambda _: tmp_path)
    pin = pinned("pause", "1")
    assert pin is not None
    with pytest.raises(BuildError, match=r"main\.go:3:15: undefined: undefined"):
        compile_module(compilation(pin, go), print, cache=tmp_path / "modules")


def test_skopeo_reads_what_is_written(archive: Path, tmp_path: Path) -> None:
    if which("skopeo") is None:
        pytest.skip("skopeo is not installed")
    digest = read_archive(archive)[0].digest
    shown = run(["skopeo", "inspect", "--format", "{{.Digest}} {{.Architecture}}", f"oci-archive:{archive}"])
    assert shown.stdout.strip() == f"{digest} amd64"
    for kind in ("oci-archive", "docker-archive"):
        out = tmp_path / f"{kind}.tar"
        run(["skopeo", "copy", "--quiet", f"oci-archive:{archive}", f"{kind}:{out}:{NAME}"])
        assert [image.name for image in read_archive(out)] == [NAME]
        assert [image.name for image in copy_archive(out, tmp_path / f"{kind}-copy.tar")] == [NAME]


@pytest.mark.root
def test_a_store_has_the_images_unpacked_and_nothing_of_one_daemon(go: Go, archive: Path, tmp_path: Path) -> None:
    why = why_no_store(tmp_path)
    if why:
        pytest.skip(why)
    out = tmp_path / "store"
    images = make_store(containerd(go), [archive], out, print)
    assert [(image.name, image.digest) for image in images] == [(NAME, read_archive(archive)[0].digest)]
    assert sorted(path.name for path in out.iterdir()) == [
        "io.containerd.content.v1.content",
        "io.containerd.metadata.v1.bolt",
        "io.containerd.snapshotter.v1.overlayfs",
    ]
    program = next(out.glob("io.containerd.snapshotter.v1.overlayfs/snapshots/*/fs/pause"))
    assert program.stat().st_mode & 0o777 == 0o755
    # The layer itself is dropped: what is left of the content is a manifest and a configuration.
    blobs = list(out.glob("io.containerd.content.v1.content/blobs/sha256/*"))
    assert len(blobs) == 2
    assert all(blob.stat().st_size < 10_000 for blob in blobs)
    assert str(tmp_path).encode() not in (out / "io.containerd.metadata.v1.bolt/meta.db").read_bytes()


@pytest.mark.root
def test_an_archive_that_containerd_refuses_leaves_no_store(go: Go, tmp_path: Path) -> None:
    why = why_no_store(tmp_path)
    if why:
        pytest.skip(why)
    (tmp_path / "bad.tar").write_bytes(b"no archive" * 1000)
    with pytest.raises(BuildError, match=r"import of bad\.tar failed"):
        make_store(containerd(go), [tmp_path / "bad.tar"], tmp_path / "store", print)
    assert not (tmp_path / "store").exists()


def test_a_payload_disk_holds_every_file(tmp_path: Path) -> None:
    folder = tmp_path / "payload"
    (folder / "bin").mkdir(parents=True)
    for number in range(300):
        (folder / "bin" / f"{number}").write_text(f"{number}\n" * 100)
    (folder / "bin/large").write_bytes(os.urandom(5 << 20))
    disk = payload_disk(Payload(folder, "key", "none", (), {}), tmp_path / "payload.img")
    shown = run(["dumpe2fs", "-h", disk]).stdout
    assert "PAYLOAD" in shown
    assert "has_journal" not in shown
    run(["e2fsck", "-fn", disk])
    for name in ("bin/299", "bin/large"):
        copy = tmp_path / "copy"
        run(["debugfs", "-R", f"dump /{name} {copy}", disk])
        assert copy.read_bytes() == (folder / name).read_bytes()
