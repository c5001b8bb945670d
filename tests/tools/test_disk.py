"""Disks made, cleaned and converted by the real tools, from a tree of a few files; and a rootless bootstrap."""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from builder.build.aptsource import Archive, host_sources
from builder.build.convert import flatten, image_info, to_raw, to_vmdk
from builder.build.disk import MIB, ROOT_MIB, DiskSpec, disk_from_overlay, extract_boot_files, make_disk
from builder.build.filesystem import ExtFileSystem, read_table
from builder.build.sanitize import sanitize
from builder.core.errors import BuildError
from builder.core.run import Spec, run
from builder.core.search import search_bytes

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
pytestmark = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="needs qemu-utils")

CHECKOUT = Path(__file__).resolve().parents[2]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for folder in ("etc", "boot/grub", "usr/lib/shim", "usr/lib/grub/x86_64-efi-signed", "srv"):
        (root / folder).mkdir(parents=True)
    (root / "etc/hostname").write_text("localhost\n")
    for name in ("vmlinuz", "initrd.img"):
        (root / f"boot/{name}-6.1").write_text(f"this is {name}")
        (root / name).symlink_to(f"boot/{name}-6.1")
    return root


def root_of(disk: Path) -> ExtFileSystem:
    return ExtFileSystem(disk, ROOT_MIB * MIB)


def read(disk: Path, path: str) -> str:
    return root_of(disk).debugfs(f'cat "{path}"').stdout


def esp(disk: Path, path: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "file"
        run(["mcopy", "-i", f"{disk}@@{2 * MIB}", f"::{path}", target])
        return target.read_bytes()


def fsck(disk: Path) -> None:
    run(["e2fsck", "-f", "-n", root_of(disk).device], Spec(cwd=disk.parent))
    run(["sfdisk", "--verify", disk])


@pytest.fixture
def disk(tree: Path, tmp_path: Path) -> Path:
    made = tmp_path / "out/disk.raw"
    make_disk(tree, made, DiskSpec(512, cmdline="quiet", seed="test"))
    return made


@needs_root
def test_a_disk_has_both_boot_loaders_and_the_files_of_the_tree(disk: Path, tmp_path: Path) -> None:
    fsck(disk)
    assert [part.name for part in read_table(disk)] == ["bios", "ESP", "root"]
    assert [path.name for path in disk.parent.iterdir()] == ["disk.raw"]
    assert read(disk, "/etc/hostname").endswith("localhost\n")
    config = read(disk, "/boot/grub/grub.cfg")
    assert "linux /vmlinuz root=LABEL=root ro console=tty0 console=ttyS0,115200 quiet\n" in config
    assert "User:     0" in root_of(disk).debugfs("stat /boot/grub/grub.cfg").stdout
    assert esp(disk, "/EFI/BOOT/BOOTX64.EFI")[:2] == b"MZ"
    head = disk.read_bytes()[: 2 * MIB]
    assert head[510:512] == b"\x55\xaa"
    assert head[MIB : MIB + 512].strip(b"\0")
    pair = extract_boot_files(disk, tmp_path / "boot")
    assert [file.read_text() for file in pair] == ["this is vmlinuz", "this is initrd.img"]
    assert disk.stat().st_blocks * 512 < 64 * MIB


@needs_root
def test_the_tree_is_not_changed(tree: Path, disk: Path) -> None:
    assert list((tree / "boot/grub").iterdir()) == []


@needs_root
def test_the_same_seed_gives_the_same_table_and_file_system_ids(tree: Path, tmp_path: Path) -> None:
    def identity(name: str, seed: str) -> tuple[str, str]:
        made = tmp_path / name
        make_disk(tree, made, DiskSpec(512, seed=seed))
        table = run(["sfdisk", "--dump", made]).stdout.replace(str(made), "")
        told = run(["tune2fs", "-l", root_of(made).device], Spec(cwd=tmp_path)).stdout
        return table, "".join(line for line in told.splitlines() if "UUID" in line or "Hash Seed" in line)

    assert identity("one", "a") == identity("two", "a")
    assert identity("three", "b") != identity("two", "a")


@needs_root
def test_secure_boot_takes_the_distributions_signed_files(tree: Path, tmp_path: Path) -> None:
    spec = DiskSpec(512, secure_boot=True)
    with pytest.raises(BuildError, match="shimx64"):
        make_disk(tree, tmp_path / "disk", spec)
    (tree / "usr/lib/shim/shimx64.efi.signed").write_bytes(b"MZ shim")
    (tree / "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed").write_bytes(b"MZ grub")
    make_disk(tree, tmp_path / "disk", spec)
    assert esp(tmp_path / "disk", "/EFI/BOOT/BOOTX64.EFI") == b"MZ shim"
    assert esp(tmp_path / "disk", "/EFI/BOOT/grubx64.efi") == b"MZ grub"
    assert b"search.fs_label root" in esp(tmp_path / "disk", "/EFI/debian/grub.cfg")


@needs_root
@pytest.mark.parametrize("missing", ["vmlinuz", "initrd.img", "boot/initrd.img-6.1"])
def test_a_disk_that_would_not_boot_is_an_error(tree: Path, tmp_path: Path, missing: str) -> None:
    (tree / missing).unlink()
    with pytest.raises(BuildError, match="no kernel to boot"):
        make_disk(tree, tmp_path / "out/disk", DiskSpec(512))
    assert list((tmp_path / "out").iterdir()) == []


@needs_root
def test_a_tree_that_does_not_fit_is_an_error_and_leaves_nothing(tree: Path, tmp_path: Path) -> None:
    (tree / "srv/large").write_bytes(os.urandom(MIB) * 80)
    with pytest.raises(BuildError, match="root file system failed") as caught:
        make_disk(tree, tmp_path / "out/disk", DiskSpec(128))
    assert "disk.size_gib" in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


@needs_root
@pytest.mark.root
def test_a_disk_is_made_from_overlay_layers(tree: Path, tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    (upper / "etc").mkdir(parents=True)
    (upper / "etc/hostname").write_text("changed\n")
    (upper / "etc/new").write_text("new\n")
    os.mknod(upper / "srv", 0o020000, os.makedev(0, 0))  # a whiteout: /srv was deleted
    bound = tmp_path / "bound"
    bound.mkdir()
    (bound / "inside").write_text("bound\n")
    (tree / "var/store").mkdir(parents=True)
    made = tmp_path / "disk.raw"
    disk_from_overlay([tree], upper, made, DiskSpec(512), {"/var/store": bound})
    fsck(made)
    assert read(made, "/etc/hostname").endswith("changed\n")
    assert root_of(made).resolve("/etc/new") == "/etc/new"
    assert root_of(made).resolve("/srv") is None
    assert read(made, "/var/store/inside").endswith("bound\n")
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


DELETED = {
    "content": b"canary-content-5e3b81",
    "name": b"canary-name-5e3b81",
    "link": b"canary-link-5e3b81",
    "attribute": b"canary-attribute-5e3b81",
    "journal": b"canary-journal-5e3b81",
}


def delete_canaries(disk: Path, folder: Path) -> None:
    """Leave every kind of remainder: data blocks, directory entries, inodes in a block with live ones, the journal."""
    system = root_of(disk)
    (folder / "secret").write_bytes(DELETED["content"] * 1000)
    (folder / "plain").write_bytes(b"x")
    secret, plain = folder / "secret", folder / "plain"
    name, link, attribute = (DELETED[kind].decode() for kind in ("name", "link", "attribute"))
    made = [f"write {secret} /srv/secret", f"write {plain} /srv/{name}", f"symlink /srv/link {link}"]
    made += [f"write {plain} /srv/marked", f"ea_set /srv/marked user.key {attribute}", f"write {plain} /srv/live"]
    removed = [f"rm /srv/{entry}" for entry in ("secret", name, "link", "marked")]
    system.debugfs(*made, *removed, write=True)
    last = int(system.debugfs("blocks <8>").stdout.split()[-1])
    with disk.open("r+b") as file:
        file.seek(system.offset + last * 4096)
        file.write(DELETED["journal"])


@needs_root
def test_nothing_that_was_deleted_stays_readable(disk: Path, tmp_path: Path) -> None:
    delete_canaries(disk, tmp_path)
    assert search_bytes(disk, DELETED).keys() == DELETED.keys()
    base = flatten(disk, tmp_path / "base.qcow2", compress=False)
    overlay = tmp_path / "overlay.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", base.path, "-F", "qcow2", overlay])
    before = hashlib.sha256(overlay.read_bytes()).digest()

    clean = tmp_path / "clean/disk.raw"
    sanitize(overlay, clean)

    assert search_bytes(clean, DELETED) == {}
    assert hashlib.sha256(overlay.read_bytes()).digest() == before
    assert clean.stat().st_size == disk.stat().st_size
    fsck(clean)
    assert read(clean, "/etc/hostname").endswith("localhost\n")
    assert root_of(clean).resolve("/srv/live") == "/srv/live"
    assert "has_journal" in run(["dumpe2fs", "-h", root_of(clean).device], Spec(cwd=clean.parent)).stdout
    assert esp(clean, "/EFI/BOOT/BOOTX64.EFI") == esp(disk, "/EFI/BOOT/BOOTX64.EFI")
    boot_code = slice(0, 2 * MIB)
    assert clean.read_bytes()[boot_code] == disk.read_bytes()[boot_code]
    assert [path.name for path in clean.parent.iterdir()] == ["disk.raw"]


def cloud_image(folder: Path, kind: str) -> Path:
    """A disk as distributions publish it: root is partition 1 and lies behind partitions 14 and 15."""
    image = folder / "cloud.raw"
    with image.open("wb") as file:
        file.truncate(256 * MIB)
    table = (
        "label: gpt\n14: start=2048, size=2048, type=21686148-6449-6E6F-744E-656564454649\n"
        "15: start=4096, size=16384, type=U\n1: start=20480, size=400000, type=L\n"
    )
    run(["sfdisk", "--quiet", image], Spec(input=table))
    if kind == "ext4":
        run(["mke2fs", "-q", "-t", "ext4", "-E", f"offset={20480 * 512}", image, "190M"])
    return image


def test_the_root_partition_of_a_cloud_image_is_found_and_cleaned(tmp_path: Path) -> None:
    image = cloud_image(tmp_path, "ext4")
    system = ExtFileSystem(image, 20480 * 512)
    (tmp_path / "secret").write_bytes(DELETED["content"] * 1000)
    (tmp_path / "kept").write_bytes(b"kept-5e3b81" * 1000)
    requests = [f"write {tmp_path}/secret /s", f"write {tmp_path}/kept /k", "rm /s"]
    system.debugfs(*requests, write=True)
    sanitize(image, tmp_path / "clean.raw")
    wanted = {"deleted": DELETED["content"], "kept": b"kept-5e3b81"}
    assert search_bytes(image, wanted).keys() == wanted.keys()
    assert search_bytes(tmp_path / "clean.raw", wanted).keys() == {"kept"}
    assert read_table(tmp_path / "clean.raw") == read_table(image)


def test_a_root_file_system_that_cannot_be_cleaned_is_refused(tmp_path: Path) -> None:
    image = cloud_image(tmp_path, "something else")
    with pytest.raises(BuildError, match=r"partition 1 .* no ext4 file system"):
        sanitize(image, tmp_path / "clean.raw")
    assert not (tmp_path / "clean.raw").exists()
    sanitize(image, tmp_path / "clean.raw", keep_unknown=True)
    assert (tmp_path / "clean.raw").read_bytes() == image.read_bytes()


def test_every_format_holds_the_same_disk(tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    raw.write_bytes(os.urandom(2 * MIB) + bytes(6 * MIB))
    for made in (
        flatten(raw, tmp_path / "plain.qcow2", compress=False),
        flatten(raw, tmp_path / "zstd.qcow2", compress=True),
        to_vmdk(raw, tmp_path / "disk.vmdk"),
    ):
        assert (made, made.backing) == (image_info(made.path), "")
        assert to_raw(made.path, tmp_path / "back.raw").size == 8 * MIB
        assert (tmp_path / "back.raw").read_bytes() == raw.read_bytes()
    assert image_info(tmp_path / "disk.vmdk").format == "vmdk"


USER = "build-image-test"
PYTHON = Path("/usr/bin/python3")
HTTP = """
import types, urllib.request
HTTPError = OSError
Timeout = lambda total, connect: total
def get(url, **_):
    with urllib.request.urlopen(url) as answer:
        return types.SimpleNamespace(content=answer.read(), is_success=True)
"""
ROOTLESS = """
import sys
from pathlib import Path
from builder.build.bootstrap import BootstrapSpec, ensure_tree
from builder.build.disk import DiskSpec, make_disk
home, suite = Path(sys.argv[1]), sys.argv[2]
spec = BootstrapSpec(distribution="debian", suite=suite, mirror="http://deb.debian.org/debian", security_mirror="",
    components=("main",), keyring="/usr/share/keyrings/debian-archive-keyring.gpg", kernel="",
    packages=("iputils-ping",))
tree = ensure_tree(spec, home / "cache", print)
assert tree.is_archive
make_disk(tree.path, home / "disk.raw", DiskSpec(768, bootable=False))
"""


def can_bootstrap() -> bool:
    """Say whether the tools are here, and a Python of the system that can run the project's code."""
    if not all(map(shutil.which, ("mmdebstrap", "newuidmap", "useradd", "runuser"))) or not PYTHON.exists():
        return False
    told = run([PYTHON, "-c", "import sys; print(*sys.version_info[:2])"]).stdout
    return tuple(map(int, told.split())) >= (3, 11)


def debian_suite() -> str:
    """This host's Debian release when its own sources can be used, else ""."""
    told = Path("/etc/os-release").read_text()
    suite = next((line.partition("=")[2] for line in told.splitlines() if line.startswith("VERSION_CODENAME=")), "")
    archive = Archive("debian", suite, "", "", ("main",), "")
    return suite if host_sources(archive) else ""


@pytest.fixture
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of a user made for the test; nobody else can enter it, as on most distributions."""
    folder = Path("/home") / USER
    run(["useradd", "--create-home", "--home-dir", folder, USER])
    try:
        folder.chmod(0o700)
        run(["usermod", "--add-subuids", "600000-665535", "--add-subgids", "600000-665535", USER])
        yield folder
    finally:
        run(["userdel", "--remove", USER], Spec(check=False))


@needs_root
@pytest.mark.root
@pytest.mark.skipif(not debian_suite(), reason="needs a Debian host")
@pytest.mark.skipif(not can_bootstrap(), reason="needs mmdebstrap, uidmap and a system Python >= 3.11")
def test_a_normal_user_makes_a_disk_with_the_right_owners(home: Path, tmp_path: Path) -> None:
    # The interpreter and packages of this test may lie where the user cannot read: the system's and a copy serve.
    code = home / "code"
    shutil.copytree(CHECKOUT / "builder", code / "builder")
    shutil.copytree(CHECKOUT / "templates/bootstrap", code / "templates/bootstrap")
    (code / "httpx2.py").write_text(HTTP)
    owner = pwd.getpwnam(USER)
    for path in (code, *code.rglob("*")):
        os.chown(path, owner.pw_uid, owner.pw_gid)
    command = ["runuser", "-u", USER, "--", "env", f"HOME={home}", f"PYTHONPATH={code}"]
    run([*command, PYTHON, "-c", ROOTLESS, home, debian_suite()], Spec(cwd=tmp_path))

    disk = home / "disk.raw"
    assert disk.stat().st_uid == owner.pw_uid
    system = root_of(disk)
    assert "User:     0   Group:    42" in system.debugfs("stat /etc/shadow").stdout
    assert "Mode:  04755" in system.debugfs("stat /usr/bin/passwd").stdout
    # A capability of version 2, as outside of user namespaces; version 3 would name the mapped root.
    assert "01 00 00 02 00 20 00 00" in system.debugfs("ea_list /usr/bin/ping").stdout
    assert sorted(path.name for path in home.iterdir() if not path.name.startswith(".")) == [
        "cache",
        "code",
        "disk.raw",
    ]
