"""Prints what is in this machine as JSON: kernel, packages, versions of the Kubernetes components.

Runs in the image with whatever Python it has (3.6 or later), and only asks programs that are there.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

VERSION = re.compile(r"v?\d+\.\d+[^\s,\"]*")
# What a CNI plugin says when it is asked nothing; one that was built without a version says "unknown" or nothing.
CNI_VERSION = re.compile(r"^CNI \S+ plugin (v?\d\S*)", re.MULTILINE)
# How each program says its version; the first version-like word of its answer counts.
PROGRAMS = {
    "kubeadm": ["kubeadm", "version", "-o", "short"],
    "kubelet": ["kubelet", "--version"],
    "kubectl": ["kubectl", "version", "--client"],
    "containerd": ["containerd", "--version"],
    "runc": ["runc", "--version"],
    "crictl": ["crictl", "--version"],
}


def output(argv):
    """Return what a program prints on both streams, or nothing when it fails to start."""
    try:
        done = subprocess.run(
            argv, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace")


def version(name, argv):
    """Return the version in a program's answer; containerd puts the path of its module, with a v2, before it."""
    for word in output(argv).replace(name + "/v2", name).split():
        if VERSION.fullmatch(word):
            return word
    return ""


def components(installed):
    """Return {component: version} of the programs that are there; `installed` are the packages."""
    found = {name: version(name, argv) for name, argv in PROGRAMS.items() if shutil.which(argv[0])}
    plugin = CNI_VERSION.search(output(["/opt/cni/bin/loopback"]))
    packaged = [p["version"] for p in installed if p["name"] in ("kubernetes-cni", "containernetworking-plugins")]
    if plugin or packaged:
        found["cni"] = plugin.group(1) if plugin else packaged[-1]
    return {name: text for name, text in found.items() if text}


def packages():
    """Return the installed packages of dpkg, sorted by name."""
    rows = output(
        ["dpkg-query", "--show", "--showformat", "${db:Status-Status} ${Package} ${Version} ${Architecture}\n"]
    )
    fields = [row.split() for row in rows.splitlines() if row.startswith("installed ")]
    return sorted(({"name": f[1], "version": f[2], "arch": f[3]} for f in fields), key=lambda p: (p["name"], p["arch"]))


def kernel():
    """Return the release of the kernel that boots: the one /vmlinuz leads to, else the last in /boot."""
    for link in (Path("/vmlinuz"), Path("/boot/vmlinuz")):
        if link.is_symlink():
            return link.resolve().name.split("-", 1)[1]
    releases = sorted(path.name.split("-", 1)[1] for path in Path("/boot").glob("vmlinuz-*"))
    return releases[-1] if releases else ""


INSTALLED = packages()
print(json.dumps({"kernel": kernel(), "packages": INSTALLED, "components": components(INSTALLED)}))
