"""etcd, API server, controller manager and scheduler: their arguments, and when each is ready."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from disagg_cluster.addresses import (
    CLUSTER_DOMAIN,
    LOOPBACK,
    NODE_ADDRESS,
    POD_NETWORK,
    SERVICE_NETWORK,
    Ports,
    Settings,
)
from disagg_cluster.api import is_healthy
from disagg_cluster.layout import Layout, write_when_changed
from disagg_cluster.processes import Program

# Metadata only, one stage: enough to count who wrote what, cheap enough to be always on.
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}


# Endpoints may not be loopback addresses: these would only try, again and again.
_NO_ENDPOINTS = ("-endpoints-controller", "-endpointslice-controller")


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """A program, and the check that says it is ready."""

    program: Program
    is_ready: Callable[[], bool]


def write_control_plane_files(layout: Layout) -> None:
    write_when_changed(layout.configs / "audit-policy.json", json.dumps(AUDIT_POLICY))


def etcd(layout: Layout, binaries: Path, ports: Ports) -> Component:
    client = f"http://{LOOPBACK}:{ports.etcd}"
    peer = f"http://{LOOPBACK}:{ports.etcd_peer}"
    program = Program(
        name="etcd",
        argv=(
            str(binaries / "etcd"),
            "--name=disagg",
            f"--data-dir={layout.root / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=disagg={peer}",
            "--unsafe-no-fsync",  # a cluster for tests: a power cut may lose it
            "--log-level=warn",
        ),
    )
    return Component(
        program=program, is_ready=lambda: is_healthy(ports.etcd, "/health", secure=False)
    )


def api_server(layout: Layout, binaries: Path, ports: Ports, *, with_node: bool) -> Component:
    pki = layout.pki
    arguments = {
        "advertise-address": NODE_ADDRESS,  # pods reach it here; loopback is refused
        "allow-privileged": "true",
        "audit-log-maxbackup": "1",
        "audit-log-maxsize": "100",
        "audit-log-path": layout.audit_log,
        "audit-policy-file": layout.configs / "audit-policy.json",
        "authorization-mode": "Node,RBAC",
        "bind-address": "0.0.0.0" if with_node else LOOPBACK,  # noqa: S104
        "client-ca-file": pki / "ca.crt",
        "enable-admission-plugins": "NodeRestriction",
        # Without a node nothing owns the advertised address: no endpoint for it then.
        "endpoint-reconciler-type": "lease" if with_node else "none",
        "etcd-servers": f"http://{LOOPBACK}:{ports.etcd}",
        "kubelet-certificate-authority": pki / "ca.crt",
        "kubelet-client-certificate": pki / "apiserver-kubelet.crt",
        "kubelet-client-key": pki / "apiserver-kubelet.key",
        # The node's name does not resolve here, and logs and exec would fail on it.
        "kubelet-preferred-address-types": "InternalIP,Hostname",
        "profiling": "false",
        "secure-port": ports.api,
        "service-account-issuer": f"https://kubernetes.default.svc.{CLUSTER_DOMAIN}",
        "service-account-key-file": pki / "service-account.pub",
        "service-account-signing-key-file": pki / "service-account.key",
        "service-cluster-ip-range": SERVICE_NETWORK,
        "tls-cert-file": pki / "apiserver.crt",
        "tls-private-key-file": pki / "apiserver.key",
    }
    program = Program(
        name="kube-apiserver",
        argv=_argv(binaries / "kube-apiserver", arguments),
        files=(pki / "apiserver.crt", layout.configs / "audit-policy.json"),
    )
    return Component(program=program, is_ready=lambda: is_healthy(ports.api, "/readyz"))


def controller_manager(layout: Layout, binaries: Path, settings: Settings) -> Component:
    pki, ports = layout.pki, settings.ports
    arguments = {
        "bind-address": LOOPBACK,
        "cluster-cidr": POD_NETWORK,
        "controllers": ",".join(("*", *(_NO_ENDPOINTS if settings.kwok_on_loopback else ()))),
        "cluster-signing-cert-file": pki / "ca.crt",
        "cluster-signing-key-file": pki / "ca.key",
        "kubeconfig": layout.kubeconfigs / "controller-manager.yaml",
        "leader-elect": "false",
        "root-ca-file": pki / "ca.crt",
        "secure-port": ports.controller_manager,
        "service-account-private-key-file": pki / "service-account.key",
        "use-service-account-credentials": "true",
    }
    program = Program(
        name="kube-controller-manager",
        argv=_argv(binaries / "kube-controller-manager", arguments),
    )
    return Component(
        program=program, is_ready=lambda: is_healthy(ports.controller_manager, "/healthz")
    )


def scheduler(layout: Layout, binaries: Path, ports: Ports) -> Component:
    arguments = {
        "bind-address": LOOPBACK,
        "kubeconfig": layout.kubeconfigs / "scheduler.yaml",
        "leader-elect": "false",
        "secure-port": ports.scheduler,
    }
    program = Program(name="kube-scheduler", argv=_argv(binaries / "kube-scheduler", arguments))
    return Component(program=program, is_ready=lambda: is_healthy(ports.scheduler, "/healthz"))


def _argv(binary: Path, arguments: dict[str, object]) -> tuple[str, ...]:
    return (str(binary), *(f"--{name}={value}" for name, value in arguments.items()))
