"""Two machines from one image, one by BIOS and one by UEFI: both work, neither knows of the other or of the build."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from typing import get_args

import pytest

from builder.check.guest import Guest, started
from builder.check.machine import Firmware
from builder.core.paths import state_home
from builder.core.run import Spec, run
from builder.model.artifact import Manifest
from builder.target.options import BuildOptions
from tests.image.cluster import PATIENCE, give_route_and_name_server, kubeadm_config, loaded_images
from tests.image.conftest import Image, SpecMaker

BUILDER = BuildOptions().user
FIRMWARE: tuple[Firmware, ...] = ("bios", "uefi")
ANSWERS = {
    "kubeadm": "kubeadm version -o short",
    "kubelet": "kubelet --version",
    "kubectl": "kubectl version --client",
    "containerd": "containerd --version",
    "runc": "runc --version",
    "crictl": "crictl --version",
}


@pytest.fixture(scope="module")
def pair(make_spec: SpecMaker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Firmware, Guest]]:
    """Both guests, booted at the same time: emulated, a boot uses little more than one core."""
    with contextlib.ExitStack() as stack:
        guests: dict[Firmware, Guest] = {}
        for firmware in FIRMWARE:
            work = tmp_path_factory.mktemp(firmware)
            spec = make_spec(hostname=f"node-{firmware}", firmware=firmware, overlay=work / "overlay.qcow2")
            stack.callback((work / "overlay.qcow2").unlink, missing_ok=True)
            guests[firmware] = stack.enter_context(started(spec, work))
        for guest in guests.values():
            guest.wait()
        yield guests


@pytest.fixture(scope="module", params=FIRMWARE)
def guest(pair: dict[Firmware, Guest], request: pytest.FixtureRequest) -> Guest:
    assert request.param in get_args(Firmware)
    return pair[request.param]


@pytest.fixture(scope="module")
def build_keys(manifest: Manifest) -> list[str]:
    """The public keys that the image was built with; a run folder keeps them."""
    run_folder = state_home() / "runs" / manifest.run_id / manifest.target.id
    keys = [path.read_text() for path in sorted(run_folder.glob("*/key/id.pub"))]
    assert keys, f"{run_folder} has no keys: $BUILD_IMAGE_STATE names the state folder of the build"
    return keys


def test_the_first_boot_ends_well(guest: Guest) -> None:
    done = guest.run("cloud-init status --wait --long", check=False, timeout=900)
    assert "status: done" in done.stdout, done.stdout
    deadline = time.monotonic() + 300
    while (state := guest.run("systemctl is-system-running", check=False).stdout.strip()) == "starting":
        assert time.monotonic() < deadline, "still starting"
        time.sleep(3)
    assert guest.output("systemctl --failed --plain --no-legend") == ""
    assert state == "running"
    assert guest.output("hostname") == guest.spec.hostname


def test_it_booted_by_the_firmware_that_was_asked_for(guest: Guest) -> None:
    seen = guest.output("test -d /sys/firmware/efi && echo uefi || echo bios")
    assert seen == guest.spec.firmware


def test_the_root_file_system_grew_to_the_disk(guest: Guest, image: Image) -> None:
    size = json.loads(run(["qemu-img", "info", "--output=json", image.disk], Spec()).stdout)["virtual-size"]
    assert int(guest.output("df --output=size -B1 / | tail -n1")) > 0.9 * size


def test_the_machines_have_identities_of_their_own(pair: dict[Firmware, Guest]) -> None:
    for question in (
        "cat /etc/machine-id",
        "cat /etc/ssh/ssh_host_ed25519_key.pub",
        "cat /etc/ssh/ssh_host_rsa_key.pub",
        "cat /var/lib/cloud/data/instance-id",
    ):
        first, second = (guest.output(question) for guest in pair.values())
        assert first
        assert second
        assert first != second, question


def test_the_programs_are_what_the_manifest_says(guest: Guest, manifest: Manifest) -> None:
    components = manifest.contents.components
    assert {"kubeadm", "kubelet", "kubectl", "containerd", "runc"} <= set(components)
    assert components["kubeadm"] == manifest.target.kubernetes.partition("+")[0]
    for name, version in components.items():
        if name in ANSWERS:
            words = guest.output(ANSWERS[name]).split()
            assert version in words, f"{name}: {words}"


def test_the_kernel_is_what_the_manifest_says(guest: Guest, manifest: Manifest) -> None:
    assert guest.output("uname -r") == manifest.contents.kernel


def test_the_packages_are_what_the_manifest_says(guest: Guest, manifest: Manifest) -> None:
    shown = guest.output("dpkg-query -W -f '${db:Status-Status} ${Package} ${Version} ${Architecture}\\n'")
    there = {tuple(line.split()[1:]) for line in shown.splitlines() if line.startswith("installed ")}
    assert there == {(package.name, package.version, package.arch) for package in manifest.contents.packages}


def test_the_container_images_are_what_the_manifest_says(guest: Guest, manifest: Manifest) -> None:
    assert loaded_images(guest) == {image.name: image.digest for image in manifest.contents.images}


def test_services_are_as_a_node_needs_them(guest: Guest) -> None:
    assert guest.output("systemctl is-active containerd.service") == "active"
    assert guest.output("systemctl is-enabled containerd.service kubelet.service").split() == ["enabled", "enabled"]


def test_the_kernel_is_set_for_kubernetes(guest: Guest) -> None:
    loaded = {line.split()[0] for line in guest.output("cat /proc/modules").splitlines()}
    assert {"overlay", "br_netfilter"} <= loaded
    names = ("net.ipv4.ip_forward", "net.bridge.bridge-nf-call-iptables", "net.bridge.bridge-nf-call-ip6tables")
    assert guest.output(f"sysctl -n {' '.join(names)}", root=True).split() == ["1", "1", "1"]
    assert guest.output("tail -n +2 /proc/swaps") == ""


def test_every_kernel_parameter_of_the_image_is_in_effect(guest: Guest) -> None:
    lines = guest.output("cat /etc/sysctl.d/90-kubernetes.conf").splitlines()
    wanted = dict(line.replace(" ", "").split("=") for line in lines if line and not line.startswith("#"))
    assert wanted
    assert guest.output(f"sysctl -n {' '.join(wanted)}", root=True).split() == list(wanted.values())


def test_kubeadm_finds_nothing_missing(guest: Guest, manifest: Manifest) -> None:
    """All preflight checks, none ignored; without a network, so a missing image would be an error too."""
    give_route_and_name_server(guest)
    guest.write("/root/preflight.yaml", kubeadm_config(manifest.target.kubernetes, PATIENCE["tcg"], "IfNotPresent"))
    done = guest.run("kubeadm init phase preflight --config /root/preflight.yaml", root=True, timeout=900)
    assert not [line for line in done.tail if "[ERROR" in line]


def test_the_user_of_the_build_is_gone(guest: Guest) -> None:
    assert guest.run(f"getent passwd {BUILDER}", check=False).returncode == 2
    assert (
        guest.run(f"grep -rl '^{BUILDER}:' /etc/passwd* /etc/shadow* /etc/sub*id*", root=True, check=False).stdout == ""
    )
    assert guest.output("ls /home") == guest.spec.user
    assert set(guest.output("ls /etc/sudoers.d", root=True).split()) <= {"90-cloud-init-users", "README"}


def test_no_key_opens_the_machine_but_the_one_of_its_seed(guest: Guest) -> None:
    lines = guest.output(
        "find / -xdev -type f -name 'authorized_keys*' -exec cat {} + | grep -v '^#' | grep . || true", root=True
    )
    own = (guest.work / "key.pub").read_text().split()[1]
    assert [own in line for line in lines.splitlines()] == [True]


def test_the_keys_of_the_build_are_refused(guest: Guest, build_keys: list[str]) -> None:
    """The private halves were deleted at the end of the build, so the server is asked what it would do with them."""
    own = (guest.work / "key.pub").read_text()
    assert guest.accepts_key(guest.spec.user, own), "a control: it takes the key of the seed"
    for user in (BUILDER, "root", guest.spec.user):
        for key in build_keys:
            assert not guest.accepts_key(user, key), f"{user} would get in with {key}"
    for user in (BUILDER, "root"):
        assert not guest.accepts_key(user, own), f"{user} would get in"


def test_passwords_open_nothing(guest: Guest) -> None:
    secrets = [line.split(":")[1] for line in guest.output("cat /etc/shadow", root=True).splitlines()]
    assert {secret.strip("!*") for secret in secrets} == {""}
    assert "" not in secrets


def test_nothing_of_the_build_is_left(guest: Guest) -> None:
    assert guest.output("ls /var/lib/apt/lists | grep -v -e '^lock$' -e '^partial$' -e '^auxfiles$' || true") == ""
    assert guest.output("ls -A /run/build-image /etc/apt/apt.conf.d/00-build-image 2>/dev/null || true") == ""


def test_it_powers_off_cleanly(pair: dict[Firmware, Guest]) -> None:
    for guest in pair.values():
        assert guest.power_off() < 300
