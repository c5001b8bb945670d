"""The box of the tree lane: its command, what keeps it from running, and the layers it leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from builder.build import treebox
from builder.build.treebox import CONTAINERD, TreeBox, finish_tree, treebox_command
from builder.core.errors import PreflightError
from builder.core.paths import share


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TreeBox:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(treebox, "which", lambda tool: Path("/usr/bin") / tool)
    for name in ("base", "tree", "payload"):
        (tmp_path / name).mkdir()
    (tmp_path / "key.pub").write_text("ssh-ed25519 AAAA build\n")
    lowers = (tmp_path / "base", tmp_path / "tree")
    return TreeBox(lowers, tmp_path / "box", 22022, tmp_path / "key.pub", tmp_path / "payload")


def replaced(box: TreeBox, **fields: object) -> TreeBox:
    values = {name: getattr(box, name) for name in TreeBox.__slots__}
    return TreeBox(**(values | fields))


def test_the_command_dies_with_its_starter_and_takes_all_with_it(box: TreeBox, tmp_path: Path) -> None:
    command = treebox_command(box)
    script = command.index("sh")
    assert command[:script] == [
        *("setpriv", "--pdeathsig", "KILL", "--"),
        *("unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child=KILL", "--"),
    ]
    assert command[script + 1 :] == [
        str(share("templates") / "treebox/treebox.sh"),
        f"{tmp_path}/base:{tmp_path}/tree",
        f"{tmp_path}/box",
        "22022",
        f"{tmp_path}/key.pub",
        f"{tmp_path}/payload",
        f"{tmp_path}/box/containerd",
    ]
    assert (tmp_path / "box/containerd").is_dir()


def test_payload_and_store_are_optional(box: TreeBox) -> None:
    assert treebox_command(replaced(box, payload=None, containerd_store=False))[-2:] == ["", ""]
    assert not box.store.exists()


def test_without_root_the_hint_names_the_other_lane(box: TreeBox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(PreflightError) as caught:
        treebox_command(box)
    assert [problem.hint for problem in caught.value.problems] == [treebox.VM_LANE]
    assert "qemu.lane=vm" in treebox.VM_LANE


def test_all_problems_are_told_at_once(box: TreeBox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(treebox, "which", lambda tool: None if tool == "unshare" else Path(tool))
    with pytest.raises(PreflightError) as caught:
        treebox_command(replaced(box, folder=tmp_path / "a:b", payload=tmp_path / "gone"))
    whats = [problem.what for problem in caught.value.problems]
    assert whats == [
        "unshare is not installed",
        f"{tmp_path}/a:b has a character that overlayfs mount options cannot hold (, : \\)",
        f"{tmp_path}/gone does not exist",
    ]


def test_finishing_removes_mount_points_of_the_box_only(box: TreeBox) -> None:
    treebox_command(box)
    (box.upper / "usr/sbin").mkdir(parents=True)
    (box.upper / "etc").mkdir()
    (box.upper / "usr/sbin/policy-rc.d").write_text("")
    (box.upper / "etc/resolv.conf").write_text("nameserver 192.0.2.1\n")
    layers = finish_tree(box)
    assert not (box.upper / "usr/sbin/policy-rc.d").exists()
    assert (box.upper / "etc/resolv.conf").exists()
    assert (layers.lowers, layers.upper, layers.binds) == (box.lowers, box.upper, {})


def test_a_used_store_is_a_bind_over_the_layers(box: TreeBox) -> None:
    treebox_command(box)
    (box.store / "meta").write_text("x")
    assert finish_tree(box).binds == {CONTAINERD: box.store}
