"""What a test needs to make a one-node cluster: kubeadm's configuration, a CNI configuration, readable failures."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from builder.check.guest import Guest
from builder.core.errors import CheckError

ADDRESS = "10.0.2.15"  # what QEMU's own network gives its first guest
GATEWAY, NAME_SERVER = "10.0.2.2", "10.0.2.3"
POD_NETWORK, SERVICE_NETWORK = "10.244.0.0/16", "10.96.0.0/12"
KUBECTL = "kubectl --kubeconfig /etc/kubernetes/admin.conf"

CNI = {
    "cniVersion": "1.0.0",
    "name": "test",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": True,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": POD_NETWORK}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        },
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ],
}
# Asks a name server one question (argv: server, name) and prints the address it answers. RFC 1035, section 4.
ASK = r"""
import socket, struct, sys
server, name = sys.argv[1:]
question = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0\0\1\0\1"
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
    client.settimeout(20)
    client.sendto(struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + question, (server, 53))
    answer = client.recv(512)
print(".".join(str(byte) for byte in answer[-4:]) if struct.unpack(">H", answer[6:8])[0] else "no answer")
"""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long things may take, in minutes. An emulated control plane needs four to start, a real one seconds."""

    control_plane: int
    addons: int


PATIENCE = {"kvm": Patience(4, 5), "tcg": Patience(20, 25)}


def kubeadm_config(version: str, patience: Patience, pull_policy: str = "Never") -> str:
    """Return InitConfiguration and ClusterConfiguration for one node without a network, as YAML documents (JSON is).

    https://kubernetes.io/docs/reference/config-api/kubeadm-config.v1beta4/
    """
    recent = minor(version) >= 31
    api = f"kubeadm.k8s.io/{'v1beta4' if recent else 'v1beta3'}"
    init: dict[str, Any] = {
        "apiVersion": api,
        "kind": "InitConfiguration",
        "localAPIEndpoint": {"advertiseAddress": ADDRESS},
        "nodeRegistration": {
            "imagePullPolicy": pull_policy,
            "kubeletExtraArgs": _arguments({"node-ip": ADDRESS}, recent),
        },
    }
    cluster: dict[str, Any] = {
        "apiVersion": api,
        "kind": "ClusterConfiguration",
        "kubernetesVersion": version,
        "networking": {"podSubnet": POD_NETWORK, "serviceSubnet": SERVICE_NETWORK},
        # Under load a leader may miss its term and the component restarts; on one node there is nobody to elect.
        "controllerManager": {"extraArgs": _arguments({"leader-elect": "false"}, recent)},
        "scheduler": {"extraArgs": _arguments({"leader-elect": "false"}, recent)},
        "etcd": {
            "local": {
                "dataDir": "/var/lib/etcd",
                "extraArgs": _arguments({"heartbeat-interval": "1000", "election-timeout": "10000"}, recent),
            }
        },
    }
    if recent:
        limit = f"{patience.control_plane}m0s"
        names = ("controlPlaneComponentHealthCheck", "kubeletHealthCheck", "kubernetesAPICall", "tlsBootstrap")
        init["timeouts"] = dict.fromkeys(names, limit)
    else:
        cluster["apiServer"] = {"timeoutForControlPlane": f"{patience.control_plane}m0s"}
    return "---\n".join(json.dumps(document, indent=2) + "\n" for document in (init, cluster))


def minor(version: str) -> int:
    """Return the minor number of a Kubernetes version such as v1.34.3."""
    found = re.match(r"v1\.(\d+)\.", version)
    assert found, f"{version!r} is not a Kubernetes version"
    return int(found[1])


def _arguments(values: dict[str, str], recent: bool) -> Any:
    return [{"name": name, "value": value} for name, value in values.items()] if recent else values


def give_route_and_name_server(guest: Guest) -> None:
    """Give a restricted guest what any network gives a node; both lead nowhere.

    CoreDNS does not start without a name server to forward to, and the host reaches a service's address only where
    there is a route to take.
    """
    link = guest.output("ip -o route show 10.0.2.0/24 | sed -E 's/.* dev ([^ ]+).*/\\1/' | head -n1")
    guest.run(
        f"ip route replace default via {GATEWAY} dev {link} && resolvectl dns {link} {NAME_SERVER}",
        root=True,
    )


def loaded_images(guest: Guest) -> dict[str, str]:
    """Return {name: digest} of the images in containerd; its entries for their configurations are left out."""
    rows = guest.output("ctr -n k8s.io images ls", root=True).splitlines()[1:]
    return {row.split()[0]: row.split()[2] for row in rows if not row.startswith("sha256:")}


def diagnosis(guest: Guest) -> str:
    """Return what helps to see why a cluster does not come up."""
    commands = (
        "journalctl -u kubelet --no-pager -n 40 -o cat",
        f"{KUBECTL} get nodes,pods -A -o wide --request-timeout=60s",
        f"{KUBECTL} get events -A --sort-by=.lastTimestamp --request-timeout=60s | tail -n 30",
        "ctr -n k8s.io tasks ls",
        'for log in /var/log/pods/*/*/*.log; do echo "== $log"; tail -n 5 $log; done',
        "free -m; uptime",
    )
    told = []
    for command in commands:
        try:
            told.append("\n".join([f"$ {command}", *guest.run(command, root=True, check=False).tail]))
        except CheckError as error:
            told.append(f"$ {command}\n{error}")
    return "\n".join(told)
