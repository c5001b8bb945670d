"""The playbooks under the real Ansible: syntax, lint, and clear errors for what they do not know."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from builder.core.run import Completed, Spec, run
from tests.image.boxes import VARIABLES

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOKS = ROOT / "playbooks"
ROLES = sorted(path.name for path in (PLAYBOOKS / "roles").iterdir())


def play(folder: Path, playbook: Path, variables: dict[str, Any], *options: str, check: bool = True) -> Completed:
    """Run ansible-playbook against this machine, in check mode: a test that fails must not change it."""
    names = folder / "vars.json"
    names.write_text(json.dumps(VARIABLES | variables))
    command = ["ansible-playbook", "--check", "-i", "localhost,", "-c", "local", "-e", f"@{names}", *options]
    environment = {"ANSIBLE_HOME": str(folder), "ANSIBLE_NOCOLOR": "1", "ANSIBLE_ROLES_PATH": str(PLAYBOOKS / "roles")}
    return run([*command, str(playbook)], Spec(env=environment, cwd=folder, check=check, timeout=300))


def role_alone(folder: Path, role: str) -> Path:
    """Write a playbook of one role that needs no root."""
    path = folder / "one.yml"
    path.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "roles": [role]}]))
    return path


@pytest.mark.parametrize("name", ["base.yml", "node.yml", "sysprep.yml"])
def test_syntax(tmp_path: Path, name: str) -> None:
    play(tmp_path, PLAYBOOKS / name, {}, "--syntax-check")


def test_lint_at_the_strictest_profile(tmp_path: Path) -> None:
    environment = {"ANSIBLE_HOME": str(tmp_path), "NO_COLOR": "1"}
    run(["ansible-lint", "--offline", "--strict", *sorted(PLAYBOOKS.glob("*.yml"))], Spec(env=environment, cwd=ROOT))


@pytest.mark.parametrize("role", ROLES)
def test_an_unknown_os_family_is_named_with_the_file_that_is_missing(tmp_path: Path, role: str) -> None:
    more = {"os_family": "plan9", "images_present": [], "containerd_binary": "/usr/bin/containerd"}
    done = play(tmp_path, role_alone(tmp_path, role), more, check=False)
    assert done.returncode == 2
    assert f"Role {role} does not know the OS family 'plan9': {PLAYBOOKS}/roles/{role}/tasks/plan9.yml" in done.stdout


def test_an_unknown_infrastructure_is_named_with_the_file_that_is_missing(tmp_path: Path) -> None:
    done = play(tmp_path, role_alone(tmp_path, "providers"), {"infra": "moonbase"}, check=False)
    assert f"Role providers does not know the infrastructure 'moonbase': {PLAYBOOKS}/roles/providers" in done.stdout


@pytest.mark.parametrize(
    ("role", "name", "value", "message"),
    [
        ("containerd", "containerd_source", "snap", "value of containerd_source must be one of: packages, url, module"),
        ("containerd", "containerd_config_schema", 4, "value of containerd_config_schema must be one of: 2, 3"),
        ("kubernetes", "kubernetes_source", "source", "value of kubernetes_source must be one of"),
        ("images", "images_mode", "pull", "value of images_mode must be one of: none, store, import"),
    ],
)
def test_a_wrong_variable_is_refused_before_anything_changes(
    tmp_path: Path, role: str, name: str, value: Any, message: str
) -> None:
    done = play(tmp_path, role_alone(tmp_path, role), {name: value, "containerd_binary": "/x"}, check=False)
    assert done.returncode == 2
    assert message in done.stdout


def test_packages_without_a_key_are_refused(tmp_path: Path) -> None:
    variables = {"kubernetes_source": "packages", "kubernetes_package_versions": {"kubeadm": "1.34.3-1.1"}}
    playbook = tmp_path / "one.yml"
    include = {"role": str(PLAYBOOKS / "roles/kubernetes")}
    task = {"ansible.builtin.include_role": {"name": include["role"], "tasks_from": "debian-packages"}}
    playbook.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": [task]}]))
    done = play(tmp_path, playbook, variables, check=False)
    assert "needs kubernetes_repository.key" in done.stdout


def test_only_builtin_modules_are_used() -> None:
    allowed = {"ansible.builtin"}
    used = set()
    for path in PLAYBOOKS.glob("roles/*/tasks/*.yml"):
        for line in path.read_text().splitlines():
            name = line.strip().partition(":")[0]
            if name.count(".") == 2 and " " not in name and not name.startswith("#"):
                used.add(name.rpartition(".")[0])
    assert used == allowed


def test_the_report_runs_on_any_machine() -> None:
    script = (PLAYBOOKS / "roles/report/files/report.py").read_text()
    done = run(["/usr/bin/python3", "-"], Spec(input=script, env={"PATH": os.environ["PATH"]}))
    assert set(json.loads(done.stdout)) == {"kernel", "packages", "components"}
