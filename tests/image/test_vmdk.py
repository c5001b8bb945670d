"""The VMDK that is made from the image boots with the disk controller and network card of a VMware machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.build.convert import image_info, to_vmdk
from builder.check.guest import Guest, booted
from tests.image.conftest import Image, SpecMaker


@pytest.fixture(scope="module")
def vmdk(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("vmdk") / "node.vmdk"
    to_vmdk(image.disk, path)
    yield path
    path.unlink()


@pytest.fixture(scope="module")
def guest(vmdk: Path, make_spec: SpecMaker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    spec = make_spec(disk=vmdk, format="vmdk", bus="pvscsi", nic="vmxnet3", hostname="node-vmware")
    with booted(spec, tmp_path_factory.mktemp("pvscsi")) as machine:
        yield machine


def test_the_file_is_a_stream_optimized_vmdk_of_the_same_size(vmdk: Path, image: Image) -> None:
    assert b'createType="streamOptimized"' in vmdk.read_bytes()[: 64 << 10]
    assert image_info(vmdk).size == image_info(image.disk).size


def test_its_disk_and_network_are_driven_by_vmwares_drivers(guest: Guest) -> None:
    disk = guest.output('lsblk -no PKNAME "$(findmnt -no SOURCE /)"')
    host = guest.output(f"readlink -f /sys/block/{disk}").split("/host")[1].split("/")[0]
    assert guest.output(f"cat /sys/class/scsi_host/host{host}/proc_name") == "vmw_pvscsi"
    link = guest.output("ip -o route show 10.0.2.0/24 | sed -E 's/.* dev ([^ ]+).*/\\1/' | head -n1")
    assert guest.output(f"basename $(readlink /sys/class/net/{link}/device/driver)") == "vmxnet3"


def test_it_is_the_same_working_node(guest: Guest) -> None:
    guest.run("cloud-init status --wait", check=False, timeout=900)
    assert guest.output("systemctl is-active containerd.service") == "active"
    assert guest.output("systemctl --failed --plain --no-legend") == ""
    assert guest.output("kubeadm version -o short").startswith("v1.")
