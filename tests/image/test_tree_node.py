"""The roles for real, in the tree lane without Packer: a base, nodes over it, a second run, what sysprep leaves."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from builder.build.treebox import CONTAINERD, MOUNT_POINTS, Layers, TreeBox, finish_tree, treebox_command
from builder.core.run import Spec, run, spawn, stop_group
from builder.model.artifact import Contents
from tests.image import boxes
from tests.image.fake_repository import build_repository, release_packages, serve, tool_packages

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="the tree lane needs root"),
]
# What a build and its machine leave; each line is a shell test that must fail after sysprep.
TRACES = """
[ -s /etc/machine-id ]
[ -e /var/lib/dbus/machine-id ]
ls /etc/ssh/ssh_host_*
[ -e /root/.ssh ]
[ -e /root/.ansible ]
[ -e /root/.bash_history ]
[ -e /home/other/.ssh/authorized_keys ]
ls /var/lib/cloud/*
ls /var/lib/apt/lists/*
ls /var/cache/apt/archives/*.deb
ls /var/cache/apt/*.bin
[ -e /etc/apt/apt.conf.d/00-build-image ]
[ -e /etc/build-image/apt.sources.final ]
[ -e /etc/apt/sources.list.d/0000main.sources ]
[ -e /var/lib/systemd/random-seed ]
[ -e /etc/shadow- ]
[ -e /var/lib/containerd/.placed-by-build ]
find /var/log -type f -size +0 | grep .
ls /var/log/journal/*
ls /var/tmp/*
ls /tmp/* | grep -v ansible
grep -rIl CANARY /etc /home /root /var --exclude-dir=containerd
"""
PLANT = """
set -e
echo 4d0e1ed1c1b44d2a8c6b5d0f6a3c2b1a >/etc/machine-id
ssh-keygen -q -t rsa -N '' -C CANARY -f /etc/ssh/ssh_host_rsa_key
mkdir -p /root/.ssh /root/.ansible/tmp /home/other/.ssh /home/builder/.ssh /var/lib/cloud/instance /var/log/journal/4d0e
echo CANARY | tee /root/.bash_history /root/.ssh/authorized_keys /home/other/.ssh/authorized_keys \
  /var/lib/cloud/instance/user-data.txt /var/log/journal/4d0e/system.journal /var/log/cloud-init.log /var/tmp/left \
  /var/lib/systemd/random-seed /etc/cloud/cloud.cfg.d/99-installer.cfg /var/log/dpkg.log /tmp/left >/dev/null
touch /home/builder/.ssh/authorized_keys /var/cache/apt/archives/x.deb
"""


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return boxes.new_key(tmp_path_factory.mktemp("key"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("boxes")


@pytest.fixture(scope="module")
def base(folder: Path, key: Path) -> Layers:
    """The base stage, finished: what node boxes have as lower layers."""
    box = TreeBox((boxes.small_tree(),), folder / "base", boxes.free_port(), Path(f"{key}.pub"))
    with boxes.running(box, key) as machine:
        machine.play("base.yml", {"build_stage": "base"})
    return finish_tree(box)


def node_box(base: Layers, folder: Path, key: Path, payload: Path | None) -> TreeBox:
    return TreeBox((base.upper, *base.lowers), folder, boxes.free_port(), Path(f"{key}.pub"), payload)


@pytest.fixture(scope="module")
def payload(folder: Path) -> Path:
    """Stand-ins of the Kubernetes programs, and one image with a whiteout."""
    boxes.kubernetes_programs(folder / "payload/bin")
    boxes.write_image(folder / "payload/images/pause.tar", boxes.PAUSE)
    (folder / "payload/payload.json").write_text(json.dumps({"files": {}}))
    return folder / "payload"


@pytest.fixture(scope="module")
def node(base: Layers, folder: Path, key: Path, payload: Path) -> Iterator[tuple[boxes.Machine, dict[str, Any]]]:
    """A node made from the payload, still running."""
    variables = {
        "images_mode": "import",
        "images_expected": [boxes.PAUSE],
        "contents_file": str(folder / "contents.json"),
    }
    with boxes.running(node_box(base, folder / "node", key, payload), key) as machine:
        machine.play("node.yml", variables)
        yield machine, variables


def test_the_base_left_nothing_of_the_box(base: Layers) -> None:
    assert not [name for name in MOUNT_POINTS if (base.upper / name).exists()]
    assert base.binds == {}
    assert not any((base.upper / name).exists() for name in ("run/build-image", "dev/null", "tmp/x"))


def test_the_base_has_what_every_node_needs(base: Layers) -> None:
    assert "br_netfilter" in (base.upper / "etc/modules-load.d/kubernetes.conf").read_text()
    assert "net.ipv4.ip_forward = 1" in (base.upper / "etc/sysctl.d/90-kubernetes.conf").read_text()
    assert (base.upper / "etc/systemd/system/swap.target").readlink() == Path("/dev/null")
    assert (base.upper / "etc/systemd/system/multi-user.target.wants/chrony.service").is_symlink()
    listed = (base.upper / "etc/cloud/cloud.cfg.d/95-build-image-datasources.cfg").read_text()
    assert 'datasource_list: ["NoCloud", "ConfigDrive", "None"]' in listed


def test_a_second_run_changes_nothing(node: tuple[boxes.Machine, dict[str, Any]]) -> None:
    machine, variables = node
    events = machine.play("node.yml", variables)
    changed = [event.data["task"] for event in events if event.kind == "task" and event.data["result"] == "changed"]
    assert changed == []
    assert boxes.stats(events)["changed"] == 0


def test_the_contents_are_what_the_node_says(node: tuple[boxes.Machine, dict[str, Any]], payload: Path) -> None:
    _, variables = node
    contents = Contents.model_validate_json(Path(variables["contents_file"]).read_text())
    assert {name: contents.components[name] for name in ("kubeadm", "kubelet", "kubectl")} == dict.fromkeys(
        ("kubeadm", "kubelet", "kubectl"), "v1.34.3"
    )
    assert contents.components["containerd"].startswith("1.6.20")
    assert {"cni", "runc"} <= set(contents.components)
    assert [(image.name, image.digest.split(":")[0]) for image in contents.images] == [(boxes.PAUSE, "sha256")]
    assert {"chrony", "conntrack", "containerd", "runc"} <= {package.name for package in contents.packages}


def test_services_wait_for_their_boot(node: tuple[boxes.Machine, dict[str, Any]]) -> None:
    machine, _ = node
    assert machine.ssh("systemctl is-enabled containerd kubelet chrony").stdout.split() == ["enabled"] * 3
    assert machine.ssh("pgrep -x containerd", check=False).returncode == 1
    machine.ssh("systemd-analyze verify /usr/local/lib/systemd/system/kubelet.service")


def test_packages_cannot_replace_the_programs(node: tuple[boxes.Machine, dict[str, Any]]) -> None:
    machine, _ = node
    policy = machine.ssh("apt-cache policy kubeadm; cat /etc/apt/preferences.d/kubernetes").stdout
    assert "Pin-Priority: -1" in policy


def test_the_store_keeps_whiteouts(node: tuple[boxes.Machine, dict[str, Any]]) -> None:
    machine, _ = node
    snapshots = machine.box.store / "io.containerd.snapshotter.v1.overlayfs/snapshots"
    assert [path.name for path in snapshots.rglob("*") if path.is_char_device()] == ["one"]


def test_a_ready_store_is_put_in_place(
    node: tuple[boxes.Machine, dict[str, Any]], base: Layers, folder: Path, key: Path
) -> None:
    machine, variables = node
    payload = folder / "ready"
    boxes.kubernetes_programs(payload / "bin")
    run(["cp", "-a", machine.box.store, payload / "containerd-store"])
    (payload / "containerd-store/.placed-by-build").unlink()
    (payload / "payload.json").write_text("{}")
    wanted = variables | {"images_mode": "store", "contents_file": str(folder / "ready.json")}
    with boxes.running(node_box(base, folder / "store", key, payload), key) as ready:
        ready.play("node.yml", wanted)
        assert boxes.stats(ready.play("node.yml", wanted))["changed"] == 0
        ready.ssh("test -c /var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/2/fs/etc/one")
    contents = Contents.model_validate_json((folder / "ready.json").read_text())
    assert [image.name for image in contents.images] == [boxes.PAUSE]


def test_a_missing_image_is_an_error_that_names_it(node: tuple[boxes.Machine, dict[str, Any]]) -> None:
    machine, variables = node
    events = machine.play(
        "node.yml", variables | {"images_expected": [boxes.PAUSE, "registry.k8s.io/etcd:9"]}, check=False
    )
    assert "registry.k8s.io/etcd:9" in boxes.failures(events)[0]["message"]
    assert boxes.PAUSE not in boxes.failures(events)[0]["message"]


def test_another_version_than_asked_is_an_error(node: tuple[boxes.Machine, dict[str, Any]]) -> None:
    machine, variables = node
    events = machine.play("node.yml", variables | {"kubernetes_version": "v1.34.9"}, check=False)
    assert boxes.failures(events)[0]["message"].startswith(
        "One or more items failed\nitem kubeadm: kubeadm says v1.34.3"
    )


def test_sysprep_leaves_no_traces(node: tuple[boxes.Machine, dict[str, Any]]) -> None:
    machine, variables = node
    machine.ssh(PLANT)
    final = machine.ssh("cat /etc/build-image/apt.sources.final").stdout
    machine.play("sysprep.yml", variables)
    found = [line for line in TRACES.strip().splitlines() if machine.ssh(f"{line} >&2", check=False).returncode == 0]
    assert found == []
    assert machine.ssh("cat /etc/apt/sources.list.d/debian.sources; ls /etc/apt/sources.list.d").stdout == (
        f"{final}debian.sources\n"
    )
    kept = "test -e /etc/machine-id -a -e /home/builder/.ssh/authorized_keys -a -e /etc/build-image/release"
    machine.ssh(kept)


def test_kubernetes_from_a_package_repository(base: Layers, folder: Path, key: Path) -> None:
    releases = [*release_packages("1.34.2"), *release_packages("1.34.3"), *release_packages("1.34.4")]
    signed_by = build_repository(folder / "repository", [*releases, *tool_packages()])
    versions = dict.fromkeys(("kubeadm", "kubelet", "kubectl"), "1.34.3-1.1")
    with (
        serve(folder / "repository") as url,
        boxes.running(node_box(base, folder / "packages", key, None), key) as machine,
    ):
        variables = {
            "kubernetes_source": "packages",
            "kubernetes_package_versions": versions | {"cri-tools": "1.34.0-1.1"},
            "kubernetes_repository": {"url": url, "key": signed_by},
            "crictl_source": "packages",
            "contents_file": str(folder / "packages.json"),
        }
        machine.play("node.yml", variables)
        assert boxes.stats(machine.play("node.yml", variables))["changed"] == 0
        components = Contents.model_validate_json((folder / "packages.json").read_text()).components
        assert {components[name] for name in versions} == {"v1.34.3"}
        assert (components["crictl"], components["cni"]) == ("v1.34.0", "v1.7.1")
        assert machine.ssh("apt-mark showhold").stdout.split() == ["cri-tools", "kubeadm", "kubectl", "kubelet"]
        # Neither a plain upgrade nor one that ignores the hold leaves the version.
        upgrade = machine.ssh("apt-mark unhold kubeadm kubelet kubectl >/dev/null; apt-get -s dist-upgrade").stdout
        assert "1.34.4" not in upgrade
        assert machine.ssh("systemctl is-enabled kubelet").stdout == "enabled\n"


def test_a_repository_with_another_key_is_refused(base: Layers, folder: Path, key: Path) -> None:
    build_repository(folder / "signed", [*release_packages("1.34.3"), *tool_packages()])
    stranger = build_repository(folder / "stranger", tool_packages())
    with (
        serve(folder / "signed") as url,
        boxes.running(node_box(base, folder / "refused", key, None), key) as machine,
    ):
        variables = {
            "kubernetes_source": "packages",
            "kubernetes_package_versions": dict.fromkeys(("kubeadm", "kubelet", "kubectl"), "1.34.3-1.1"),
            "kubernetes_repository": {"url": url, "key": stranger},
            "contents_file": str(folder / "refused.json"),
        }
        events = machine.play("node.yml", variables, check=False)
        failed = boxes.failures(events)[0]
        assert failed["role"] == "kubernetes"
        assert machine.ssh("test -e /usr/bin/kubeadm", check=False).returncode == 1


def test_a_box_and_all_of_it_dies_with_its_starter(base: Layers, folder: Path, key: Path) -> None:
    box = node_box(base, folder / "orphan", key, None)
    command = treebox_command(box)
    starter = spawn(["sh", "-c", '"$@" & wait', "sh", *command], Spec(log=folder / "orphan.log"))
    boxes.wait_until(lambda: boxes.answers(box.port))
    os.kill(starter.pid, 9)  # the starter only, not its group
    starter.wait()
    boxes.wait_until(lambda: not boxes.answers(box.port))
    assert str(box.folder) not in Path("/proc/self/mountinfo").read_text()
    stop_group(starter.pid)


def test_the_layers_are_the_tree_that_was_built(base: Layers, folder: Path, key: Path, payload: Path) -> None:
    box = node_box(base, folder / "layers", key, payload)
    with boxes.running(box, key) as machine:
        machine.ssh("echo built >/etc/built; rm /etc/sysctl.d/90-kubernetes.conf; echo x >/var/lib/containerd/x")
        assert machine.ssh("touch /run/build-image/payload/x", check=False).returncode == 1
        assert machine.ssh("echo 1 >/proc/sys/net/ipv4/ip_forward", check=False).returncode != 0
    layers = finish_tree(box)
    assert layers.lowers == box.lowers
    assert layers.binds == {CONTAINERD: box.store}
    names = ":".join(str(path) for path in (layers.upper, *layers.lowers))
    script = f'mount -t overlay -o ro,lowerdir={names} overlay "$1" && cat "$1/etc/built" && ls "$1/etc/sysctl.d"'
    (folder / "mount").mkdir()
    shown = run(["unshare", "--mount", "sh", "-euc", script, "sh", folder / "mount"]).stdout
    assert shown.startswith("built\n")
    assert "90-kubernetes.conf" not in shown
