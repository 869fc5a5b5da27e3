"""The node: containerd, kubelet, kube-proxy and CoreDNS, each with a configuration rendered here."""

import json
import socket
import subprocess
from pathlib import Path
from typing import Any

from disagg_cluster.addresses import (
    CLUSTER_DOMAIN,
    DNS_SERVICE_ADDRESS,
    LOOPBACK,
    NODE_ADDRESS,
    NODE_NAME,
    POD_NETWORK,
    Ports,
)
from disagg_cluster.api import is_healthy
from disagg_cluster.controlplane import Component
from disagg_cluster.errors import ComponentError
from disagg_cluster.layout import Layout, write_when_changed
from disagg_cluster.network import render_cni
from disagg_cluster.processes import Program

PAUSE_IMAGE = "docker.io/local/pause:1"
CONTAINER_NAMESPACE = "k8s.io"
SYSTEM_PATH = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


def render_containerd(layout: Layout) -> str:
    home = layout.root / "containerd"
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    return f"""version = 2
root = "{home}/root"
state = "{home}/state"

[grpc]
address = "{layout.containerd_socket}"

[plugins."io.containerd.internal.v1.opt"]
path = "{home}/opt"

[{cri}]
sandbox_image = "{PAUSE_IMAGE}"
# Without CAP_SYS_RESOURCE a negative score is refused, and every sandbox would end with it.
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true

[{cri}.cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{layout.configs}/cni"

[{cri}.containerd]
snapshotter = "overlayfs"

[{cri}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[{cri}.containerd.runtimes.runc.options]
Root = "{home}/runc"
SystemdCgroup = false
"""


def render_kubelet(layout: Layout, ports: Ports) -> dict[str, Any]:
    pki = layout.pki
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": NODE_ADDRESS,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{layout.cgroup}",
        "clusterDNS": [DNS_SERVICE_ADDRESS],
        "clusterDomain": CLUSTER_DOMAIN,
        "containerRuntimeEndpoint": f"unix://{layout.containerd_socket}",
        # Tests kill containers on purpose; the usual 10 s to 5 min would be their running time.
        "crashLoopBackOff": {"maxContainerRestartPeriod": "3s"},
        "enforceNodeAllocatable": [],
        "evictionHard": {
            "imagefs.available": "1%",
            "memory.available": "100Mi",
            "nodefs.available": "1%",
            "nodefs.inodesFree": "1%",
        },
        "failCgroupV1": False,
        "failSwapOn": False,
        "healthzBindAddress": LOOPBACK,
        "healthzPort": ports.kubelet_health,
        "imageGCHighThresholdPercent": 100,  # off: a removed image can be pulled from nowhere
        "imageGCLowThresholdPercent": 99,
        "makeIPTablesUtilChains": False,
        "maxPods": 250,
        "oomScoreAdj": 0,
        "podLogsDir": str(layout.logs / "pods"),
        "port": ports.kubelet,
        "readOnlyPort": 0,
        "resolvConf": str(layout.configs / "resolv.conf"),
        "serializeImagePulls": False,
        "tlsCertFile": str(pki / "kubelet-serving.crt"),
        "tlsPrivateKeyFile": str(pki / "kubelet-serving.key"),
        "volumePluginDir": str(layout.root / "kubelet" / "volume-plugins"),
    }


def render_kube_proxy(layout: Layout, ports: Ports) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(layout.kubeconfigs / "kube-proxy.yaml")},
        "clusterCIDR": POD_NETWORK,
        # Leaves the machine's own conntrack limits as they are.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpCloseWaitTimeout": "0s",
            "tcpEstablishedTimeout": "0s",
        },
        "healthzBindAddress": f"{LOOPBACK}:{ports.proxy_health}",
        "hostnameOverride": NODE_NAME,
        "metricsBindAddress": f"{LOOPBACK}:{ports.proxy_metrics}",
        "mode": "nftables",
        "oomScoreAdj": 0,
    }


def render_corefile(layout: Layout, ports: Ports) -> str:
    # No cache and no ttl: a name answers for the pods there are now.
    return f""".:53 {{
    bind {NODE_ADDRESS}
    health {LOOPBACK}:{ports.dns_health}
    ready {LOOPBACK}:{ports.dns_ready}
    errors
    kubernetes {CLUSTER_DOMAIN} in-addr.arpa {{
        kubeconfig {layout.kubeconfigs / "coredns.yaml"}
        ttl 0
    }}
}}
"""


def write_node_files(layout: Layout, ports: Ports) -> None:
    configs = layout.configs
    (configs / "cni").mkdir(exist_ok=True)
    cni = render_cni(address_folder=layout.root / "cni")
    bodies = {
        "cni/10-disagg.conflist": json.dumps(cni, indent=1),
        "containerd.toml": render_containerd(layout),
        "kubelet.json": json.dumps(render_kubelet(layout, ports), indent=1),
        "kube-proxy.json": json.dumps(render_kube_proxy(layout, ports), indent=1),
        "Corefile": render_corefile(layout, ports),
        "resolv.conf": "",
    }
    for name, body in bodies.items():
        write_when_changed(configs / name, body)


def containerd(layout: Layout) -> Component:
    program = Program(
        name="containerd",
        argv=("containerd", "--config", str(layout.configs / "containerd.toml")),
        env=SYSTEM_PATH,
        files=(layout.configs / "containerd.toml",),
    )
    return Component(program=program, is_ready=lambda: _accepts(layout.containerd_socket))


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def kubelet(layout: Layout, binaries: Path, ports: Ports) -> Component:
    program = Program(
        name="kubelet",
        argv=(
            str(binaries / "kubelet"),
            f"--config={layout.configs / 'kubelet.json'}",
            f"--hostname-override={NODE_NAME}",
            f"--kubeconfig={layout.kubeconfigs / 'kubelet.yaml'}",
            f"--node-ip={NODE_ADDRESS}",
            f"--root-dir={layout.root / 'kubelet'}",
        ),
        env=SYSTEM_PATH,
        files=(layout.configs / "kubelet.json", layout.pki / "kubelet-serving.crt"),
    )
    return Component(
        program=program,
        is_ready=lambda: is_healthy(ports.kubelet_health, "/healthz", secure=False),
    )


def kube_proxy(layout: Layout, binaries: Path, ports: Ports) -> Component:
    program = Program(
        name="kube-proxy",
        argv=(
            str(binaries / "kube-proxy"),
            f"--config={layout.configs / 'kube-proxy.json'}",
        ),
        env=SYSTEM_PATH,
        files=(layout.configs / "kube-proxy.json",),
    )
    return Component(
        program=program, is_ready=lambda: is_healthy(ports.proxy_health, "/healthz", secure=False)
    )


def coredns(layout: Layout, binaries: Path, ports: Ports) -> Component:
    program = Program(
        name="coredns",
        argv=(str(binaries / "coredns"), "-conf", str(layout.configs / "Corefile")),
        files=(layout.configs / "Corefile",),
    )
    return Component(
        program=program, is_ready=lambda: is_healthy(ports.dns_ready, "/ready", secure=False)
    )


def ctr(layout: Layout, *arguments: str) -> str:
    """containerd's own client, in the kubelet's namespace."""
    answer = subprocess.run(
        [
            "ctr",
            f"--address={layout.containerd_socket}",
            f"--namespace={CONTAINER_NAMESPACE}",
            *arguments,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode != 0:
        raise ComponentError(f"`ctr {' '.join(arguments)}` failed: {answer.stderr.strip()}")
    return answer.stdout
