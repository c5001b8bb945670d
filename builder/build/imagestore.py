"""Load image archives into a ready containerd store on this machine, so that no slow guest has to unpack them."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from builder.core.errors import BuildError
from builder.core.run import Spec, run, spawn, stop_group, which
from builder.resolve.golang import Runner

NAMESPACE = "k8s.io"
START_SECONDS = 60
STOP_SECONDS = 60
IMPORT_SECONDS = 1800
# What makes up a store: images and their names, manifests and layers, unpacked layers. All else in the folder is of
# one daemon, such as the uuid by which it introduces itself, which two nodes must not share.
KEPT = ("io.containerd.metadata.v1.bolt", "io.containerd.content.v1.content", "io.containerd.snapshotter.v1.overlayfs")
# It dies with us, whatever ends us: nothing may write to a folder that is a cache entry by then.
APART = ("setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
UNUSED_PLUGINS = (
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.grpc.v1.cri",
    "io.containerd.internal.v1.opt",
    "io.containerd.nri.v1.nri",
    "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.erofs",
    "io.containerd.snapshotter.v1.native",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.tracing.processor.v1.otlp",
)

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image in a store: its name and the digest of its manifest or index."""

    name: str
    digest: str


def why_no_store(near: Path, runner: Runner = run) -> str:
    """Say why this process cannot make a store in the folder `near`, "" when it can.

    It takes root, mounts in a namespace of its own, and a file system that an overlay can lie on.
    """
    if os.geteuid() != 0:
        return "only root can unpack layers with the owners of their files"
    for tool in ("unshare", "setpriv"):
        if which(tool) is None:
            return f"{tool} (package util-linux) is not installed"
    with tempfile.TemporaryDirectory(prefix=".probe-", dir=near) as folder:
        script = 'cd "$0" && mkdir l u w m && mount -t overlay overlay -o "lowerdir=l,upperdir=u,workdir=w" m'
        done = runner([*APART, "sh", "-c", script, folder], Spec(timeout=60, check=False))
    return "" if done.returncode == 0 else f"no overlay can be mounted in {near}, in namespaces of our own"


def make_store(
    containerd: Path, archives: Sequence[Path], out: Path, note: Note, log: Path | None = None
) -> tuple[StoredImage, ...]:
    """Make `out`, the content of a /var/lib/containerd that has the images of all archives, unpacked.

    `containerd` is the folder of the binaries that the node will run, so that the store is of its own format. The
    daemon runs in mount and process namespaces of its own and is gone afterwards. Compressed layers are dropped
    once they are unpacked, as CRI's own option `discard_unpacked_layers` does: containers start from the unpacked
    ones, and the store is half as large. CRI adds its labels when it first starts on the store.

    Raises BuildError when containerd does not start or an archive cannot be loaded; `out` is then gone.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="build-image-") as folder:
            with _daemon(containerd, out, Path(folder), log) as client:
                for archive in archives:
                    note(f"loading {archive.name} into containerd's store")
                    client.import_archive(archive)
                client.collect_garbage()
                images = client.images()
            for entry in out.iterdir():
                if entry.name not in KEPT:
                    shutil.rmtree(entry)
            shutil.rmtree(out / KEPT[1] / "ingest", ignore_errors=True)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    return images


def parse_listing(text: str) -> tuple[StoredImage, ...]:
    """Return the images of `ctr images ls` by name; the entries that CRI keeps by image id are left out."""
    rows = [line.split() for line in text.splitlines()[1:] if line.strip()]
    images = [StoredImage(row[0], row[2]) for row in rows if not row[0].startswith("sha256:")]
    return tuple(sorted(images, key=lambda image: image.name))


@dataclass(frozen=True, slots=True)
class _Client:
    """The `ctr` of a running daemon."""

    command: tuple[str, ...]
    log: Path | None
    import_options: tuple[str, ...]

    def call(self, *arguments: str | Path, what: str) -> str:
        return run([*self.command, *arguments], Spec(timeout=IMPORT_SECONDS, log=self.log, what=what)).stdout

    def import_archive(self, archive: Path) -> None:
        self.call("images", "import", *self.import_options, archive, what=f"import of {archive.name}")

    def collect_garbage(self) -> None:
        # Dropping a lease with --sync is the way to wait for a full collection.
        self.call("leases", "create", "--id", "store", what="garbage collection")
        self.call("leases", "rm", "--sync", "store", what="garbage collection")

    def images(self) -> tuple[StoredImage, ...]:
        return parse_listing(self.call("images", "ls", what="listing of images"))


@contextmanager
def _daemon(containerd: Path, root: Path, state: Path, log: Path | None) -> Iterator[_Client]:
    # In a folder of /tmp: the path of a socket may have no more than 107 bytes.
    socket, config = state / "containerd.sock", state / "config.toml"
    root.mkdir(parents=True)
    config.write_text(_config(root, state, socket))
    output = log or state / "containerd.log"
    process = spawn([*APART, containerd / "containerd", "--config", config], Spec(log=output))
    command = (str(containerd / "ctr"), "--address", str(socket), "--namespace", NAMESPACE)
    try:
        _wait_until_ready(command, lambda: process.poll() is None, output)
        yield _Client(command, log, _import_options(command))
    finally:
        stop_group(process.pid, signal.SIGTERM)
        end = time.monotonic() + STOP_SECONDS
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        stop_group(process.pid)
        process.wait()


def _config(root: Path, state: Path, socket: Path) -> str:
    """Return a configuration that every containerd since 1.3 reads: version 2 (newer ones migrate it)."""
    plugins = ", ".join(f'"{name}"' for name in UNUSED_PLUGINS)
    return (
        f'version = 2\nroot = "{root}"\nstate = "{state}/state"\ndisabled_plugins = [{plugins}]\n'
        f'[grpc]\n  address = "{socket}"\n[ttrpc]\n  address = "{socket}.ttrpc"\n'
    )


def _wait_until_ready(command: Sequence[str], alive: Callable[[], bool], log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if not alive():
            break
        if run([*command, "images", "ls", "-q"], Spec(timeout=30, check=False)).returncode == 0:
            return
        time.sleep(0.1)
    lines = log.read_text(errors="replace").splitlines()[-15:] if log.is_file() else []
    raise BuildError("\n".join(["containerd does not start on this machine", *(f"  | {line}" for line in lines)]))


def _import_options(command: Sequence[str]) -> tuple[str, ...]:
    """Return the options of `ctr images import` that this version has: the first since 1.7, the second since 2.0."""
    text = run([*command, "images", "import", "--help"], Spec(timeout=30)).stdout
    return tuple(option for option in ("--local", "--discard-unpacked-layers") if option in text)
