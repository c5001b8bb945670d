"""Which files of the playbooks count in a stage's fingerprint."""

from __future__ import annotations

from builder.build.ingredients import role_digests


def test_playbooks_their_roles_and_shared_scripts_count() -> None:
    node = set(role_digests("node"))
    assert {"node.yml", "sysprep.yml", "roles/images/files/place-store.sh", "files/with-containerd.sh"} <= node
    assert {"base.yml", "roles/base/files/sysctl.conf", "files/install-files.sh"} <= set(role_digests("base"))


def test_roles_of_another_stage_do_not_count() -> None:
    assert not [path for path in role_digests("base") if path.startswith("roles/kubernetes/")]
    assert not [path for path in role_digests("node") if path.startswith("roles/base/")]
