"""`kubeadm init` on the image, without any network: what is inside has to be enough for a working node."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from builder.check.guest import Guest, started
from builder.core.errors import CheckError
from tests.image.cluster import (
    ASK,
    CNI,
    KUBECTL,
    PATIENCE,
    Patience,
    diagnosis,
    give_route_and_name_server,
    kubeadm_config,
    loaded_images,
)
from tests.image.conftest import SpecMaker


@pytest.fixture(scope="module")
def patience(acceleration: str) -> Patience:
    return PATIENCE[acceleration]


@pytest.fixture(scope="module")
def machine(make_spec: SpecMaker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A guest of the image that has not seen kubeadm yet."""
    work = tmp_path_factory.mktemp("kubeadm")
    spec = make_spec(hostname="control-plane", memory_mib=3072, overlay=work / "overlay.qcow2")
    with started(spec, work) as guest:
        guest.wait()
        guest.run("cloud-init status --wait >/dev/null; systemctl is-active containerd", root=True, timeout=600)
        yield guest
    (work / "overlay.qcow2").unlink()


@pytest.fixture(scope="module")
def version(machine: Guest) -> str:
    return machine.output("kubeadm version -o short")


@pytest.fixture(scope="module")
def node(machine: Guest, version: str, patience: Patience) -> Guest:
    """The same guest as a one-node cluster."""
    give_route_and_name_server(machine)
    machine.write("/etc/cni/net.d/10-test.conflist", json.dumps(CNI))
    machine.write("/root/kubeadm.yaml", kubeadm_config(version, patience))
    must(machine, "kubeadm init --config /root/kubeadm.yaml", 3 * patience.control_plane)
    return machine


def must(guest: Guest, command: str, minutes: int) -> str:
    """Run a command as root; when it fails, show the state of the cluster with it."""
    try:
        return guest.run(command, root=True, timeout=60.0 * minutes).stdout
    except CheckError as error:
        (guest.work / "diagnosis.txt").write_text(diagnosis(guest))
        pytest.fail(f"{error}\n{(guest.work / 'diagnosis.txt').read_text()}", pytrace=False)


def test_every_image_that_init_and_join_need_is_loaded(machine: Guest, version: str) -> None:
    wanted = machine.output(f"kubeadm config images list --kubernetes-version {version}").split()
    assert wanted
    assert set(wanted) <= set(loaded_images(machine))


def test_the_node_gets_ready(node: Guest, patience: Patience) -> None:
    must(node, f"{KUBECTL} wait --for=condition=Ready node --all --timeout={patience.addons}m", patience.addons + 2)
    nodes = json.loads(node.output(f"{KUBECTL} get nodes -o json", root=True))["items"]
    assert [item["metadata"]["name"] for item in nodes] == ["control-plane"]
    info = nodes[0]["status"]["nodeInfo"]
    assert info["kubeletVersion"] == node.output("kubelet --version").split()[-1]
    assert info["containerRuntimeVersion"].startswith("containerd://")


@pytest.mark.parametrize("name", ["daemonset/kube-proxy", "deployment/coredns"])
def test_the_addons_become_ready(node: Guest, patience: Patience, name: str) -> None:
    must(node, f"{KUBECTL} -n kube-system rollout status {name} --timeout={patience.addons}m", patience.addons + 2)


def test_every_pod_of_the_cluster_runs(node: Guest) -> None:
    pods = json.loads(node.output(f"{KUBECTL} get pods -A -o json", root=True))["items"]
    phases = {pod["metadata"]["name"]: pod["status"]["phase"] for pod in pods}
    assert len(phases) == 7, "etcd, three of the control plane, kube-proxy, two of CoreDNS"
    assert set(phases.values()) == {"Running"}, phases


def test_a_service_address_leads_to_a_pod_that_answers(node: Guest) -> None:
    """kube-proxy's rules, the bridge and CoreDNS, all at once."""
    service = node.output(f"{KUBECTL} -n kube-system get service kube-dns -o jsonpath={{.spec.clusterIP}}", root=True)
    node.write("/root/ask.py", ASK)
    answer = must(node, f"python3 /root/ask.py {service} kubernetes.default.svc.cluster.local", 2)
    assert answer.strip() == node.output(f"{KUBECTL} get service kubernetes -o jsonpath={{.spec.clusterIP}}", root=True)


def test_only_images_of_the_list_are_used(node: Guest, version: str) -> None:
    wanted = set(node.output(f"kubeadm config images list --kubernetes-version {version}").split())
    pods = json.loads(node.output(f"{KUBECTL} get pods -A -o json", root=True))["items"]
    used = {container["image"] for pod in pods for container in pod["spec"]["containers"]}
    assert used
    assert used <= wanted
