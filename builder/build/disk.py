"""A bootable GPT disk (BIOS and UEFI) from a root tree: no loop device, no mount, no installer, no root."""

from __future__ import annotations

import os
import shlex
import shutil
import struct
import tarfile
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from builder.build.bootstrap import rootless, unshared
from builder.build.filesystem import SECTOR, ExtFileSystem, is_ext, read_table
from builder.core.errors import BuildError, PreflightError
from builder.core.run import Spec, run

MIB = 1 << 20
BIOS_LBA = 2048
ESP_MIB, ESP_SIZE_MIB = 2, 62
ROOT_MIB = ESP_MIB + ESP_SIZE_MIB
BOOT_CODE_BYTES = 440

HOST_GRUB = Path("/usr/lib/grub")
# fmt: off
MODULES = (
    "part_gpt", "part_msdos", "fat", "ext2", "normal", "configfile", "search", "search_label", "search_fs_uuid",
    "linux", "echo", "test", "all_video", "gzio", "ls", "cat", "halt", "reboot", "minicmd", "sleep", "loadenv",
    "serial", "terminal", "probe", "regexp", "font", "gfxterm",
)
# fmt: on
EFI_MODULES = ("efi_gop", "efi_uga")
FIND_ROOT = "search.fs_label root root\nset prefix=($root)/boot/grub\nconfigfile $prefix/grub.cfg\n"
CONSOLE = "console=tty0 console=ttyS0,115200"
GRUB_CFG = f"""\
# The names are links that the kernel packages keep up to date, so this file holds for every kernel.
set timeout=0
if serial --unit=0 --speed=115200; then
  terminal_input console serial
  terminal_output console serial
fi
search.fs_label root root
linux {{kernel}} root=LABEL=root ro {CONSOLE}{{cmdline}}
initrd {{initrd}}
boot
"""
KERNEL_NAMES = (("/vmlinuz", "/initrd.img"), ("/boot/vmlinuz", "/boot/initrd.img"))
SHIM = "/usr/lib/shim/shimx64.efi.signed"
SIGNED_GRUB = "/usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"

TABLE = f"""\
label: gpt
label-id: {{disk}}
start={BIOS_LBA}, size=2048, type=21686148-6449-6E6F-744E-656564454649, uuid={{bios}}, name=bios
start={ESP_MIB * 2048}, size={ESP_SIZE_MIB * 2048}, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, uuid={{esp}}, name=ESP
start={ROOT_MIB * 2048}, size={{root_sectors}}, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, uuid={{root}}, name=root
"""

# In a private mount namespace: the layers, read-only, so that no work folder is needed and nothing can change them.
# A bind, given as FOLDER PATH, stands for what the layers have at that path; the list ends with --.
OVERLAY_SCRIPT = (
    'mount -t overlay overlay -o "ro,lowerdir=$1" root; shift; '
    'while [ "$1" != -- ]; do mount --bind "$1" "root/$2"; shift 2; done; shift; exec "$@"'
)
# Device nodes cannot be made in a user namespace; the kernel mounts its own /dev at boot.
UNPACK_SCRIPT = (
    "trap 'rm -rf root' EXIT; mkdir root; "
    "tar -x --preserve-permissions --numeric-owner --xattrs --xattrs-include='*' --exclude='./dev/?*' -C root; "
    '"$@"'
)


@dataclass(frozen=True, slots=True)
class DiskSpec:
    """How a disk is laid out. `cmdline` is added to the kernel's command line.

    `vendor` is the folder of the ESP that the distribution's signed GRUB reads. `seed` decides all UUIDs: equal seeds
    give equal partition tables; an empty one gives random UUIDs. `bootable` is off for a tree without a kernel.
    """

    size_mib: int
    cmdline: str = ""
    secure_boot: bool = False
    vendor: str = "debian"
    seed: str = ""
    bootable: bool = True

    def uuid(self, what: str) -> uuid.UUID:
        """Return the UUID of a part of the disk."""
        if not self.seed:
            return uuid.uuid4()
        return uuid.uuid5(uuid.NAMESPACE_OID, f"{self.seed}/{what}")


def make_disk(tree: Path, disk: Path, spec: DiskSpec) -> None:
    """Write a raw disk that boots by BIOS and UEFI from a root tree: a directory (root only) or a tar archive.

    Layout: BIOS boot partition at 1 MiB, ESP at 2 MiB, root file system from 64 MiB to the end less 1 MiB. The file
    is sparse and appears whole or not at all. Raises BuildError when the tree does not fit or lacks a boot file,
    PreflightError when a tool is missing.
    """
    if tree.is_dir():
        _assemble(_Source(("sh", "-euc", '"$@"', "sh"), str(tree.absolute())), disk, spec)
        return
    inner = shlex.join(str(word) for word in unshared(["sh", "-euc", UNPACK_SCRIPT, "sh"]))
    # The outer shell opens the archive: the mapped user may not enter the folder where it lies.
    outer = f'archive=$1; shift; exec {inner} "$@" <"$archive"'
    _assemble(_Source(("sh", "-euc", outer, "sh", str(tree.absolute())), "root"), disk, spec)


def disk_from_overlay(
    lowers: Sequence[Path], upper: Path, disk: Path, spec: DiskSpec, binds: Mapping[str, Path] = MappingProxyType({})
) -> None:
    """Write a disk from a tree and what was changed over it (overlayfs layers, the topmost of `lowers` first).

    `binds` maps paths inside the tree, which must exist there, to the folders that replace them.
    Root only; the layers are mounted in a mount namespace of their own, so nothing is left when it is killed.
    """
    layers = [upper, *lowers]
    names = [f"layer{number}" for number in range(len(layers))]
    bound = {f"bind{number}": (path, folder) for number, (path, folder) in enumerate(sorted(binds.items()))}
    words = [word for name, (path, _) in bound.items() for word in (name, path.strip("/"))]
    prefix = ("unshare", "--mount", "sh", "-euc", OVERLAY_SCRIPT, "sh", ":".join(names), *words, "--")
    links = [*zip(names, layers, strict=True), *((name, folder) for name, (_, folder) in bound.items())]
    _assemble(_Source(prefix, "root", tuple(links)), disk, spec)


def export_boot_files(tree: Path, out: Path) -> tuple[Path, Path]:
    """Copy kernel and initramfs of a tree (directory or archive) into `out`; return (vmlinuz, initrd.img)."""
    out.mkdir(parents=True, exist_ok=True)
    pair = out / "vmlinuz", out / "initrd.img"
    if not tree.is_dir():
        _export_from_archive(tree, pair)
        return pair
    for names in KERNEL_NAMES:
        if all((tree / name[1:]).is_symlink() for name in names):
            for name, target in zip(names, pair, strict=True):
                link = tree / name[1:]
                shutil.copyfile(_inside(tree, link), target)
            return pair
    raise BuildError("no kernel in the tree", str(tree), "the kernel package is missing from its package list")


def extract_boot_files(disk: Path, out: Path) -> tuple[Path, Path]:
    """Copy kernel and initramfs out of a raw disk's ext4 file system; return (vmlinuz, initrd.img)."""
    out.mkdir(parents=True, exist_ok=True)
    for partition in read_table(disk):
        system = ExtFileSystem(disk, partition.start)
        names = _kernel_names(system) if is_ext(disk, partition.start) else None
        if names:
            pair = out / "vmlinuz", out / "initrd.img"
            for name, target in zip(names, pair, strict=True):
                system.dump(name, target)
            return pair
    raise BuildError("no kernel in an ext4 partition", str(disk))


@dataclass(frozen=True, slots=True)
class _Source:
    """How mke2fs sees the tree: `prefix` runs it, `folder` is what it reads, `links` are put beside the disk."""

    prefix: tuple[str, ...]
    folder: str
    links: tuple[tuple[str, Path], ...] = ()


def _assemble(source: _Source, disk: Path, spec: DiskSpec) -> None:
    if spec.size_mib <= ROOT_MIB + 1:
        raise BuildError(f"a disk of {spec.size_mib} MiB has no room for a root file system")
    disk.parent.mkdir(parents=True, exist_ok=True)
    # mkdtemp keeps others out of `work`; inside it, the mapped user of a rootless run may write.
    work = Path(tempfile.mkdtemp(prefix=".disk-", dir=disk.parent))
    try:
        inner = work / "fs"
        inner.mkdir()
        raw = inner / "disk.raw"
        with raw.open("wb") as file:
            file.truncate(spec.size_mib * MIB)
        if rootless():
            inner.chmod(0o1777)
            raw.chmod(0o666)
        run(["sfdisk", "--quiet", raw], Spec(input=partition_script(spec), what="partitioning"))
        _make_root(source, raw, spec)
        if spec.bootable:
            _install_boot_loaders(raw, work, spec)
        raw.chmod(0o644)
        raw.replace(disk)
    finally:
        _remove(work)


def partition_script(spec: DiskSpec) -> str:
    """Return the sfdisk script of the disk."""
    parts = {name: str(spec.uuid(name)) for name in ("disk", "bios", "esp", "root")}
    return TABLE.format(root_sectors=_root_mib(spec) * 2048, **parts)


def _root_mib(spec: DiskSpec) -> int:
    return spec.size_mib - 1 - ROOT_MIB  # the last MiB holds the backup of the partition table


def _make_root(source: _Source, raw: Path, spec: DiskSpec) -> None:
    inner = raw.parent
    for name, target in source.links:
        (inner / name).symlink_to(target.absolute())
    if source.links:
        (inner / "root").mkdir()
    extended = f"offset={ROOT_MIB * MIB},lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0"
    if spec.seed:
        extended += f",hash_seed={spec.uuid('hash')}"
    features = mkfs_features(" ".join(run(["mke2fs", "-V"]).tail))
    argv = [
        "mke2fs",
        "-q",
        "-t",
        "ext4",
        "-b",
        "4096",
        "-L",
        "root",
        "-U",
        str(spec.uuid("filesystem")),
        "-E",
        extended,
    ]
    argv += ["-O", features, "-d", source.folder, raw.name, f"{_root_mib(spec)}M"]
    hint = "raise disk.size_gib when it says that there is no space"
    run([*source.prefix, *argv], Spec(cwd=inner, env=_sbin_path(), what="making the root file system", hint=hint))


def mkfs_features(version: str) -> str:
    """Return what to switch off for this `mke2fs -V` text.

    GRUB 2.06 cannot read a file system with metadata_csum_seed, and an older e2fsck in a guest refuses orphan_file,
    which e2fsprogs knows (and may switch on) from 1.47 on.
    """
    numbers = [int(part) for part in version.split("mke2fs ", 1)[-1].split(" ")[0].split(".")[:2] if part.isdigit()]
    return "^metadata_csum_seed,^orphan_file" if numbers >= [1, 47] else "^metadata_csum_seed"


def _sbin_path() -> dict[str, str]:
    return {"PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"}


def _remove(work: Path) -> None:
    """Delete our work folder; a killed rootless run leaves files there that only the mapped root may delete."""
    with suppress(PermissionError):
        shutil.rmtree(work)
    if work.exists():
        run(unshared(["rm", "-rf", "root"]), Spec(cwd=work / "fs", check=False))
        shutil.rmtree(work, ignore_errors=True)


def _install_boot_loaders(raw: Path, work: Path, spec: DiskSpec) -> None:
    system = ExtFileSystem(raw, ROOT_MIB * MIB)
    names = _kernel_names(system)
    if names is None:
        looked = " or ".join("{} with {}".format(*pair) for pair in KERNEL_NAMES)
        raise BuildError(f"the tree has no kernel to boot: neither {looked}", hint="is a kernel in its package list?")
    cmdline = f" {spec.cmdline}" if spec.cmdline else ""
    config = work / "grub.cfg"
    config.write_text(GRUB_CFG.format(kernel=names[0], initrd=names[1], cmdline=cmdline))
    system.write_file("/boot/grub/grub.cfg", config)
    _install_bios(raw, work)
    _install_efi(raw, work, spec, system)


def _kernel_names(system: ExtFileSystem) -> tuple[str, str] | None:
    for names in KERNEL_NAMES:
        if all(system.resolve(name) for name in names):
            return names
    return None


def _install_bios(raw: Path, work: Path) -> None:
    core_file, find_root = work / "core.img", work / "find-root.cfg"
    find_root.write_text(FIND_ROOT)
    folder = _grub_folder("i386-pc")
    command: list[str | Path] = [
        "grub-mkimage",
        "-O",
        "i386-pc",
        "-d",
        folder,
        "-o",
        core_file,
        "-c",
        find_root,
        "-p",
        "/boot/grub",
    ]
    run([*command, "biosdisk", *MODULES], Spec(what="making GRUB for BIOS"))
    core = patch_core(core_file.read_bytes())
    if len(core) > MIB:
        raise BuildError("GRUB's core image is larger than its partition of 1 MiB")
    with raw.open("r+b") as file:
        file.write(patch_boot((folder / "boot.img").read_bytes()))
        file.seek(BIOS_LBA * SECTOR)
        file.write(core)


def patch_core(core: bytes) -> bytes:
    """Tell core.img where the rest of it lies; what grub-install does on a mounted disk.

    The block list of diskboot.img ends at byte 512; its first entry (12 bytes) begins with the 64-bit sector number.
    https://git.savannah.gnu.org/cgit/grub.git/tree/util/setup.c
    """
    patched = bytearray(core)
    struct.pack_into("<Q", patched, SECTOR - 12, BIOS_LBA + 1)
    return bytes(patched)


def patch_boot(boot: bytes) -> bytes:
    """Return the boot code of the MBR: where core.img begins (0x5C), and no test for a floppy drive (0x66).

    Only the code is returned: the partition table of the MBR, behind byte 440, stays as it is on the disk.
    https://git.savannah.gnu.org/cgit/grub.git/tree/include/grub/i386/pc/boot.h
    """
    patched = bytearray(boot[:BOOT_CODE_BYTES])
    struct.pack_into("<Q", patched, 0x5C, BIOS_LBA)
    patched[0x66:0x68] = b"\x90\x90"
    return bytes(patched)


def _install_efi(raw: Path, work: Path, spec: DiskSpec, system: ExtFileSystem) -> None:
    at = f"{raw}@@{ESP_MIB * MIB}"
    serial = spec.uuid("esp-serial").hex[:8]
    run(["mformat", "-i", at, "-F", "-v", "ESP", "-N", serial, "-T", str(ESP_SIZE_MIB * 2048), "::"])
    run(["mmd", "-i", at, "::EFI", "::EFI/BOOT", f"::EFI/{spec.vendor}"])
    first, find_root = work / "BOOTX64.EFI", work / "find-root.cfg"
    if spec.secure_boot:
        signed = work / "grubx64.efi"
        for path, target, package in ((SHIM, first, "shim-signed"), (SIGNED_GRUB, signed, "grub-efi-amd64-signed")):
            if system.resolve(path) is None:
                raise BuildError(f"Secure Boot needs {path} in the tree", hint=f"add the package {package}")
            system.dump(path, target)
        run(["mcopy", "-i", at, signed, "::EFI/BOOT/grubx64.efi"])
    else:
        command: list[str | Path] = ["grub-mkimage", "-O", "x86_64-efi", "-d", _grub_folder("x86_64-efi")]
        command += ["-o", first, "-c", find_root]
        run([*command, "-p", f"/EFI/{spec.vendor}", *MODULES, *EFI_MODULES], Spec(what="making GRUB for UEFI"))
    run(["mcopy", "-i", at, first, "::EFI/BOOT/BOOTX64.EFI"])
    run(["mcopy", "-i", at, find_root, f"::EFI/{spec.vendor}/grub.cfg"])


def _grub_folder(target: str) -> Path:
    folder = HOST_GRUB / target
    if not folder.is_dir():
        package = {"i386-pc": "grub-pc-bin", "x86_64-efi": "grub-efi-amd64-bin"}[target]
        raise PreflightError(f"GRUB's modules for {target} are not installed", str(folder), f"apt install {package}")
    return folder


def _inside(tree: Path, link: Path) -> Path:
    target = link.readlink()
    return tree / str(target).lstrip("/") if target.is_absolute() else link.parent / target


def _export_from_archive(tree: Path, pair: tuple[Path, Path]) -> None:
    with tarfile.open(tree) as archive:
        members = {"/" + name.removeprefix("./").rstrip("/"): member for name, member in _named(archive)}
        for names in KERNEL_NAMES:
            if all(name in members for name in names):
                for name, target in zip(names, pair, strict=True):
                    _copy_member(archive, members, name, target)
                return
    raise BuildError("no kernel in the tree", str(tree), "the kernel package is missing from its package list")


def _named(archive: tarfile.TarFile) -> list[tuple[str, tarfile.TarInfo]]:
    return [(member.name, member) for member in archive.getmembers()]


def _copy_member(archive: tarfile.TarFile, members: dict[str, tarfile.TarInfo], name: str, target: Path) -> None:
    member = members[name]
    if member.issym():
        member = members[os.path.normpath(PurePosixPath(name).parent / member.linkname)]
    source = archive.extractfile(member)
    if source is None:
        raise BuildError(f"{name} is not a file in the tree", str(archive.name))
    with source, target.open("wb") as file:
        shutil.copyfileobj(source, file)
