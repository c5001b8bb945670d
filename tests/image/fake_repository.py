"""A Kubernetes package repository of the shape that pkgs.k8s.io has, with tiny packages, signed, on 127.0.0.1.

Flat: `Packages`, `Release`, `InRelease`, `Release.gpg` and `Release.key` beside `amd64/NAME_VERSION_amd64.deb`. The
dependencies and fields are those of https://pkgs.k8s.io/core:/stable:/v1.34/deb/Packages.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from builder.core.run import Spec, run

CNI_PLUGINS = ("bridge", "loopback")
KUBEADM_UNIT = """\
[Service]
Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml"
EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env
ExecStart=
ExecStart=/usr/bin/kubelet $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS
"""
KUBELET_UNIT = """\
[Unit]
Description=kubelet: The Kubernetes Node Agent

[Service]
ExecStart=/usr/bin/kubelet
Restart=always

[Install]
WantedBy=multi-user.target
"""


@dataclass(frozen=True, slots=True)
class FakePackage:
    """One tiny package: `files` maps an absolute path in the target to its text; executables start with `#!`."""

    name: str
    version: str
    depends: str
    files: Mapping[str, str]


def says(text: str) -> str:
    """Return a program that prints a text whatever it is asked."""
    return f"#!/bin/sh\ncat <<'TEXT'\n{text}\nTEXT\n"


def release_packages(version: str, revision: str = "1.1") -> list[FakePackage]:
    """Return kubeadm, kubelet and kubectl of a version such as 1.34.3, as the official repository has them."""
    full, tag = f"{version}-{revision}", f"v{version}"
    return [
        FakePackage("kubeadm", full, "cri-tools (>= 1.30.0)", {
            "/usr/bin/kubeadm": says(tag),
            "/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf": KUBEADM_UNIT,
        }),
        FakePackage("kubectl", full, "", {
            "/usr/bin/kubectl": says(f"Client Version: {tag}\nKustomize Version: v5.7.1"),
        }),
        FakePackage("kubelet", full, "iptables (>= 1.4.21), kubernetes-cni (>= 1.2.0), mount, util-linux", {
            "/usr/bin/kubelet": says(f"Kubernetes {tag}"),
            "/usr/lib/systemd/system/kubelet.service": KUBELET_UNIT,
            "/etc/kubernetes/manifests/.keep": "",
        }),
    ]  # fmt: skip


def tool_packages() -> list[FakePackage]:
    """Return the two packages that the official ones depend on."""
    plugin = '#!/bin/sh\necho "CNI loopback plugin v1.7.1" >&2\n'
    return [
        FakePackage("cri-tools", "1.34.0-1.1", "", {"/usr/bin/crictl": says("crictl version v1.34.0")}),
        FakePackage("kubernetes-cni", "1.7.1-1.1", "", {f"/opt/cni/bin/{name}": plugin for name in CNI_PLUGINS}),
    ]  # fmt: skip


def build_repository(folder: Path, packages: Sequence[FakePackage]) -> str:
    """Write a signed repository into a folder; return the armored public key, which is also Release.key."""
    (folder / "amd64").mkdir(parents=True)
    index = "\n".join(_build(folder, package) for package in packages)
    (folder / "Packages").write_text(index)
    sums = f" {hashlib.sha256(index.encode()).hexdigest()} {len(index.encode())} Packages\n"
    head = f"Origin: fake\nLabel: kubernetes\nArchitectures: amd64\nDate: {formatdate(usegmt=True)}\n"
    (folder / "Release").write_text(f"{head}SHA256:\n{sums}")
    return _sign(folder)


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[str]:
    """Serve a folder on a free port of 127.0.0.1; give the base URL, with a slash at its end."""
    handler = functools.partial(_Quiet, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        return


def _build(folder: Path, package: FakePackage) -> str:
    control = {
        "Package": package.name,
        "Version": package.version,
        "Architecture": "amd64",
        "Maintainer": "Kubernetes Authors <dev@kubernetes.io>",
        **({"Depends": package.depends} if package.depends else {}),
        "Section": "admin",
        "Priority": "optional",
        "Homepage": "https://kubernetes.io",
        "Description": f"Stand-in for {package.name}",
    }
    text = "".join(f"{key}: {value}\n" for key, value in control.items())
    name = f"amd64/{package.name}_{package.version}_amd64.deb"
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary) / "root"
        for path, content in package.files.items():
            target = root / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content)
            target.chmod(0o755 if content.startswith("#!") else 0o644)
        (root / "DEBIAN").mkdir()
        (root / "DEBIAN/control").write_text(text)
        run(["dpkg-deb", "--root-owner-group", "--build", root, folder / name])
    data = (folder / name).read_bytes()
    return f"{text}Filename: {name}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"


def _sign(folder: Path) -> str:
    home = Path(tempfile.mkdtemp(prefix="gpg-", dir="/tmp"))  # short: gpg-agent's socket is in it
    gpg = ["gpg", "--homedir", str(home), "--batch", "--yes", "--quiet"]
    try:
        run([*gpg, "--passphrase", "", "--quick-generate-key", "fake repository <fake@localhost>", "ed25519", "sign"])
        release = folder / "Release"
        run([*gpg, "--clearsign", "--output", str(folder / "InRelease"), str(release)])
        run([*gpg, "--armor", "--detach-sign", "--output", str(folder / "Release.gpg"), str(release)])
        key = run([*gpg, "--armor", "--export"]).stdout
    finally:
        run(["gpgconf", "--homedir", home, "--kill", "all"], Spec(check=False))
        shutil.rmtree(home, ignore_errors=True)  # the dying agent removes its sockets at the same time
    (folder / "Release.key").write_text(key)
    return key
