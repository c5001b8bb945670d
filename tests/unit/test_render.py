"""Stage folders: what is in them, what never is, and that content and placement stay apart."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from syrupy.assertion import SnapshotAssertion

from builder.build.accelerator import Accelerator
from builder.build.packer import PLUGINS, Packer
from builder.build.rebuild import rebuild_script, shell_word
from builder.build.render import (
    PLAYBOOKS,
    RUN_VALUES,
    Content,
    Guest,
    Lane,
    Source,
    Stage,
    StageFolder,
    StageInputs,
    Tree,
    check_hcl,
    content_files,
    free_port,
    render_stage,
    run_values,
)
from builder.core.errors import BuildError
from builder.core.paths import share
from builder.core.run import Completed, Spec

STAGES: list[tuple[Lane, Stage, Source]] = [
    ("vm", "base", "disk"),
    ("vm", "node", "disk"),
    ("vm", "single", "disk"),
    ("vm", "base", "iso"),
    ("tree", "base", "disk"),
    ("tree", "node", "disk"),
]
NAMES = [f"{lane}-{stage}-{source}" for lane, stage, source in STAGES]
# What would publish, share, copy or look for "the newest": all that is ours to do, after the checks.
PUBLISHING = [
    "ami_groups",
    "ami_org_arns",
    "ami_ou_arns",
    "ami_product_codes",
    "ami_regions",
    "ami_users",
    "content_library_destination",
    "convert_to_template",
    "create_snapshot",
    "http_directory",
    "most_recent",
    "post-processor",
    "post-processors",
    "region_kms_key_ids",
    "replication_regions",
    "snapshot_groups",
    "snapshot_name",
    "snapshot_users",
    "source_ami_filter",
    "target_region",
]


def fake_keygen(argv: Sequence[str | Path], spec: Spec) -> Completed:
    key = Path(argv[-1])
    key.write_text("PRIVATE\n")
    key.with_name("id.pub").write_text("ssh-ed25519 AAAA build-image\n")
    return Completed(tuple(str(word) for word in argv), 0, "", (), 0.0)


def content(lane: Lane, stage: Stage, source: Source = "disk") -> Content:
    iso = source == "iso"
    return Content(
        stage=stage,
        lane=lane,
        disk_size_gib=8,
        ansible_vars={"os_family": "debian", "kubernetes_version": "v1.34.3"},
        source=source,
        boot_command=("<esc><wait>", "auto<enter>") if iso else (),
        seed_files={"preseed.cfg": "d-i debian-installer/locale string C\n"} if iso else {},
    )


def inputs(folder: Path, lane: Lane, stage: Stage, source: Source = "disk") -> StageInputs:
    disk = source == "disk"
    guest = Guest(
        source="/cache/base.qcow2" if disk else "https://example.com/installer.iso",
        checksum="sha256:" + "0" * 64,
        accelerator=Accelerator("tcg", "no KVM"),
        cpu="qemu64",
        kernel=Path("/cache/vmlinuz") if disk else None,
        initrd=Path("/cache/initrd.img") if disk else None,
    )
    return StageInputs(
        content=content(lane, stage, source),
        folder=folder,
        target_id="debian-12-v1.34.3-qemu",
        playbooks=Path("/playbooks"),
        events=folder.parent / "events.jsonl",
        machine=guest if lane == "vm" else Tree(22022),
        payload=Path("/cache/payload.img") if stage != "base" and lane == "vm" else None,
    )


def rendered(folder: Path, lane: Lane, stage: Stage, source: Source = "disk") -> StageFolder:
    return render_stage(inputs(folder, lane, stage, source), fake_keygen)


@pytest.mark.parametrize(("lane", "stage", "source"), STAGES, ids=NAMES)
def test_the_rendered_folder(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    snapshot: SnapshotAssertion,
    lane: Lane,
    stage: Stage,
    source: Source,
) -> None:
    monkeypatch.setattr("secrets.randbelow", lambda _: 7)
    monkeypatch.setattr("sys.executable", "/venv/bin/python")
    folder = rendered(tmp_path / "run" / stage, lane, stage, source)
    text = []
    for path in sorted(path for path in folder.path.rglob("*") if path.is_file()):
        mode = path.stat().st_mode & 0o777
        text.append(f"=== {path.relative_to(folder.path)} {mode:o}\n{path.read_text()}")
    assert "\n".join(text).replace(str(tmp_path), "/state") == snapshot


@pytest.mark.parametrize(("lane", "stage", "source"), STAGES, ids=NAMES)
def test_content_is_equal_for_two_runs_and_names_nothing_of_a_run(
    tmp_path: Path, lane: Lane, stage: Stage, source: Source
) -> None:
    first = rendered(tmp_path / "first", lane, stage, source)
    second = rendered(tmp_path / "second", lane, stage, source)
    files = content_files(content(lane, stage, source))
    assert {"content.auto.pkrvars.json", "content.vars.json", "variables.pkr.hcl"} < set(files)
    for name, data in files.items():
        assert (first.path / name).read_bytes() == data
        assert (second.path / name).read_bytes() == data
        assert str(tmp_path).encode() not in data
        assert not re.search(rb"/cache/|127\.0\.0\.1:\d|AAAA|debian-12-v1", data)


def test_the_accelerator_and_the_size_of_the_machine_are_placement(tmp_path: Path) -> None:
    one = inputs(tmp_path / "a", "vm", "node")
    assert isinstance(one.machine, Guest)
    other = replace(one, machine=replace(one.machine, accelerator=Accelerator("kvm", "starts"), cpu="host", cpus=8))
    values = run_values(other, "ssh-ed25519 AAAA")
    assert (values["accelerator"], values["accelerator_options"], values["cpu_model"]) == ("kvm", "kvm", "host")
    assert content_files(one.content) == content_files(other.content)


@pytest.mark.parametrize(("lane", "stage", "source"), STAGES, ids=NAMES)
def test_every_value_is_declared_and_every_declared_variable_has_a_value(
    tmp_path: Path, lane: Lane, stage: Stage, source: Source
) -> None:
    folder = rendered(tmp_path / stage, lane, stage, source).path
    declared = {
        name for path in folder.glob("*.pkr.hcl") for name in re.findall(r'^variable "(\w+)"', path.read_text(), re.M)
    }
    given = [name for path in folder.glob("*.auto.pkrvars.json") for name in json.loads(path.read_text())]
    assert sorted(given) == sorted(declared)


@pytest.mark.parametrize(("lane", "stage", "source"), STAGES, ids=NAMES)
def test_packer_leaves_one_unpublished_artifact(tmp_path: Path, lane: Lane, stage: Stage, source: Source) -> None:
    for path in rendered(tmp_path / stage, lane, stage, source).path.glob("*.pkr.hcl"):
        assert not [word for word in PUBLISHING if re.search(rf"(?<![\w-]){word}(?![\w-])", path.read_text())]


def test_no_template_holds_what_would_publish() -> None:
    for path in (share("templates") / "packer").glob("*.j2"):
        assert not [word for word in PUBLISHING if re.search(rf"(?<![\w-]){word}(?![\w-])", path.read_text())], path


def test_the_list_of_publishing_words_finds_them() -> None:
    text = 'source "x" "y" {\n  ami_regions = ["a"]\n}\n'
    assert [word for word in PUBLISHING if re.search(rf"(?<![\w-]){word}(?![\w-])", text)] == ["ami_regions"]


@pytest.mark.parametrize("stage", PLAYBOOKS)
def test_each_stage_runs_its_playbooks_in_order(stage: Stage) -> None:
    for lane, name in (("vm", "qemu.pkr.hcl"), ("tree", "tree.pkr.hcl")):
        text = content_files(content(lane, stage))[name].decode()  # type: ignore[arg-type]
        assert tuple(re.findall(r'playbook_file\s+= "\$\{var\.playbooks\}/(.+)"', text)) == PLAYBOOKS[stage]


def test_nothing_listens_on_all_addresses(tmp_path: Path) -> None:
    text = (rendered(tmp_path / "node", "vm", "node").path / "qemu.pkr.hcl").read_text()
    assert re.findall(r"hostfwd=tcp:([\d.]*):", text) == ["127.0.0.1"]
    assert '["-vnc", "none"]' in text


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "node"
    folder.mkdir()
    (folder / "something").touch()
    with pytest.raises(BuildError, match="not empty"):
        rendered(folder, "vm", "node")
    assert [path.name for path in tmp_path.iterdir()] == ["node"]


def test_a_folder_that_could_not_be_completed_does_not_appear(tmp_path: Path) -> None:
    def broken(argv: Sequence[str | Path], spec: Spec) -> Completed:
        raise BuildError("no entropy")

    with pytest.raises(BuildError, match="no entropy"):
        render_stage(inputs(tmp_path / "node", "vm", "node"), broken)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_hcl_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"bad\.pkr\.hcl"):
        check_hcl('source "qemu" {{', "bad.pkr.hcl")


def test_the_disk_is_found_again_from_the_folder_alone(tmp_path: Path) -> None:
    rendered(tmp_path / "base", "vm", "base")
    disk = StageFolder(tmp_path / "base").disk
    assert disk == tmp_path / "base" / "out" / "debian-12-v1.34.3-qemu-base.qcow2"


def test_the_payload_is_a_disk_in_a_guest_and_a_mount_in_a_tree(tmp_path: Path) -> None:
    guest = json.loads((rendered(tmp_path / "a", "vm", "node").path / "run.vars.json").read_text())
    tree = json.loads((rendered(tmp_path / "b", "tree", "node").path / "run.vars.json").read_text())
    assert (guest["payload_device"], guest["node_in_chroot"]) == ("/dev/disk/by-label/PAYLOAD", False)
    assert (tree["payload_device"], tree["node_in_chroot"], tree["builder_user"]) == ("", True, "root")


def test_a_packer_without_plugins_gets_them_by_exact_version(tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    packer = Packer(Path("/usr/bin/packer"), (1, 14, 2))
    plugins = packer.plugins_for("vm")
    folder = render_stage(replace(inputs(tmp_path / "n", "vm", "node"), plugins=plugins), fake_keygen)
    assert (folder.path / "plugins.pkr.hcl").read_text() == snapshot
    assert plugins == PLUGINS["vm"]
    assert Packer(Path("/p"), (1, 9, 5)).plugins_for("vm") == ()


def test_a_free_port_is_below_those_of_outgoing_connections() -> None:
    assert 20000 <= free_port() < 32768


@pytest.mark.parametrize("lane", ["vm", "tree"])
def test_the_rebuild_script(tmp_path: Path, snapshot: SnapshotAssertion, lane: Lane) -> None:
    folder = rendered(tmp_path / "node", lane, "node")
    box = tmp_path / "my box"
    helper = ["box", f"{tmp_path}/tree", str(box), "22022", str(folder.public_key), "", f"{box}/store"]
    packer = Packer(Path("/usr/bin/packer"), (1, 9, 4))
    if lane == "tree":
        script = rebuild_script(folder, packer, helper, box)
    else:
        disk = str(json.loads((folder.path / RUN_VALUES).read_text())["payload"])
        script = rebuild_script(
            folder, packer, payload=["mke2fs", "-L", "PAYLOAD", "-d", "/cache/pay load", disk, "64M"]
        )
    assert script.replace(str(tmp_path), "/state") == snapshot


def test_the_rebuild_script_asks_for_secrets_by_name(tmp_path: Path) -> None:
    folder = render_stage(replace(inputs(tmp_path / "n", "vm", "node"), secret_names=("TOKEN",)), fake_keygen)
    assert ': "${TOKEN:?is a secret of this build: set it}"' in rebuild_script(folder, Packer(Path("/p"), (1, 9, 4)))


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("plain", "plain"),
        ("", "''"),
        ("two words", "'two words'"),
        ("22", '"$port"'),
        ("220", "220"),
        ("122", "122"),
        ("/box", '"$work"'),
        ("/box/store dir", "\"$work\"'/store dir'"),
        ("/other:/box", '/other:"$work"'),
        ("/other/box", "/other/box"),
        ("File=/box", 'File="$work"'),
        ("File=/boxes", "File=/boxes"),
    ],
)
def test_only_whole_words_and_paths_become_variables(word: str, expected: str) -> None:
    assert shell_word(word, {"22": "$port", "/box": "$work"}) == expected
