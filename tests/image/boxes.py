"""Tree boxes for tests: a small bootstrapped tree, boxes over it, playbooks and commands inside them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import socket
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.build.bootstrap import BootstrapSpec, ensure_tree
from builder.build.treebox import TreeBox, treebox_command
from builder.core.paths import cache_home, share
from builder.core.run import Completed, Spec, run, spawn, stop_group
from builder.model.event import Event

ROOT = Path(__file__).resolve().parents[2]
PAUSE = "registry.k8s.io/pause:3.10.1"
# No kernel: the tree never boots, and half of the bootstrap is the kernel's initramfs.
SMALL_TREE = BootstrapSpec(
    distribution="debian",
    suite="bookworm",
    mirror="http://deb.debian.org/debian",
    security_mirror="http://deb.debian.org/debian-security",
    components=("main",),
    keyring="/usr/share/keyrings/debian-archive-keyring.gpg",
    kernel="",
    packages=(
        "cloud-init",
        "dbus",
        "openssh-server",
        "procps",
        "python3-apt",
        "python3-minimal",
        "sudo",
        "systemd-sysv",
    ),
    max_age_days=365,
)
VARIABLES: dict[str, Any] = {
    "ansible_python_interpreter": "/usr/bin/python3",
    "os_family": "debian",
    "distribution": "debian",
    "distribution_version": "12",
    "distribution_codename": "bookworm",
    "architecture": "amd64",
    "infra": "qemu",
    "build_stage": "node",
    "base_packages": [],
    "cloud_init_datasources": ["NoCloud", "ConfigDrive", "None"],
    "kubernetes_version": "v1.34.3",
    "kubernetes_source": "module",
    "kubernetes_package_versions": {},
    "kubernetes_repository": {"url": "", "key": ""},
    "containerd_source": "packages",
    "containerd_version": "",
    "containerd_config_schema": 2,
    "containerd_pause_image": PAUSE,
    "cni_source": "packages",
    "cni_version": "",
    "crictl_source": "none",
    "images_mode": "none",
    "images_expected": [],
    "node_in_chroot": True,
    "builder_user": "builder",
    "apt_proxy": "",
    "payload_path": "/run/build-image/payload",
    "payload_device": "",
    "contents_file": "/nonexistent",
}


@dataclass(frozen=True, slots=True)
class Machine:
    """A running box, and the private key that opens it."""

    box: TreeBox
    key: Path

    def ssh(self, command: str, check: bool = True) -> Completed:
        """Run a shell command as root inside the box."""
        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        argv = ["ssh", "-F", "none", "-i", str(self.key), "-p", str(self.box.port), *options, "root@127.0.0.1", command]
        return run(argv, Spec(check=check, timeout=120))

    def play(self, playbook: str, variables: Mapping[str, Any], check: bool = True) -> list[Event]:
        """Run a playbook the way Packer does, through the wrapper; return the events of this run."""
        events, names = self.box.folder / "events.jsonl", self.box.folder / "vars.json"
        events.unlink(missing_ok=True)
        names.write_text(json.dumps(VARIABLES | dict(variables)))
        inventory = self.box.folder / "inventory"
        inventory.write_text(f"default ansible_host=127.0.0.1 ansible_port={self.box.port} ansible_user=root\n")
        command = [sys.executable, "-m", "builder.build.wrapper", "--ssh-extra-args", "-o IdentitiesOnly=yes"]
        command += ["-e", f"@{names}", "-e", f"ansible_ssh_private_key_file={self.key}", "-i", str(inventory)]
        environment = {"BUILD_IMAGE_EVENTS": str(events), "BUILD_IMAGE_STAGE": "node", "PYTHONPATH": str(ROOT)}
        run([*command, str(share("playbooks") / playbook)], Spec(env=environment, check=check, timeout=900, cwd=ROOT))
        return [Event.model_validate_json(line) for line in events.read_text().splitlines()]


def small_tree() -> Path:
    """Return a bootstrapped tree without a kernel, cached beside the product's own trees."""
    return ensure_tree(SMALL_TREE, cache_home() / "trees", lambda _: None).path


def free_port() -> int:
    """Return a port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def new_key(folder: Path) -> Path:
    """Make an ssh key pair; return the private key, the public one is beside it."""
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", folder / "id"])
    return folder / "id"


def answers(port: int) -> bool:
    """Say whether something listens on a port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition: Any, seconds: float = 20) -> None:
    """Wait until a condition holds; fail after some seconds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


@contextlib.contextmanager
def running(box: TreeBox, key: Path) -> Iterator[Machine]:
    """Run a box; its processes and mounts are gone at the end."""
    log = box.folder.with_suffix(".log")
    process = spawn(treebox_command(box), Spec(log=log))
    try:
        wait_until(lambda: answers(box.port) or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield Machine(box, key)
    finally:
        stop_group(process.pid)
        process.wait()


def stats(events: list[Event]) -> dict[str, int]:
    """Return the counts of a playbook run."""
    return next(event.data for event in events if event.kind == "stats")


def failures(events: list[Event]) -> list[dict[str, Any]]:
    """Return the tasks that failed."""
    return [event.data for event in events if event.kind == "task" and event.data["result"] == "failed"]


def says(text: str) -> str:
    """Return a program that prints a text whatever it is asked."""
    return f"#!/bin/sh\ncat <<'TEXT'\n{text}\nTEXT\n"


def write_programs(folder: Path, programs: Mapping[str, str]) -> None:
    """Write executable scripts into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


def kubernetes_programs(folder: Path, version: str = "v1.34.3") -> None:
    """Write stand-ins of kubeadm, kubelet and kubectl that say a version."""
    write_programs(folder, {
        "kubeadm": says(version),
        "kubelet": says(f"Kubernetes {version}"),
        "kubectl": says(f"Client Version: {version}\nKustomize Version: v5.7.1"),
    })  # fmt: skip


def write_image(path: Path, name: str) -> str:
    """Write an OCI archive of one tiny image with two layers, the second of which removes a file; return its digest.

    The removal becomes a whiteout in containerd's store, which must survive all that the build does with the store.
    """
    blobs: dict[str, bytes] = {}

    def add(data: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{digest}"] = data
        return {"digest": f"sha256:{digest}", "size": len(data), "mediaType": f"application/vnd.oci.image.{kind}"}

    layers = [
        add(_tar({"etc/one": b"1", "etc/two": b"2"}), "layer.v1.tar"),
        add(_tar({"etc/.wh.one": b""}), "layer.v1.tar"),
    ]
    rootfs = {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs}).encode()
    body = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": layers}
    manifest = add(json.dumps(body | {"config": add(config, "config.v1+json")}).encode(), "manifest.v1+json")
    named = manifest | {"annotations": {"io.containerd.image.name": name}}
    blobs["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [named]}).encode()
    blobs["oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_tar(blobs))
    return str(manifest["digest"])


def _tar(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()
