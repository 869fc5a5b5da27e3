"""Kubeconfig files, written as JSON (which is YAML) so that nothing but the standard library is needed."""

import base64
import json
from pathlib import Path
from typing import Any

from disagg_cluster.addresses import LOOPBACK
from disagg_cluster.layout import write_when_changed

CLIENTS = ("admin", "controller-manager", "scheduler", "kube-proxy", "coredns", "kwok", "kubelet")


def render_kubeconfig(*, server: str, ca: bytes, certificate: bytes, key: bytes) -> dict[str, Any]:
    def encoded(body: bytes) -> str:
        return base64.b64encode(body).decode("ascii")

    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "disagg",
                "cluster": {"server": server, "certificate-authority-data": encoded(ca)},
            }
        ],
        "users": [
            {
                "name": "disagg",
                "user": {
                    "client-certificate-data": encoded(certificate),
                    "client-key-data": encoded(key),
                },
            }
        ],
        "contexts": [{"name": "disagg", "context": {"cluster": "disagg", "user": "disagg"}}],
        "current-context": "disagg",
    }


def write_kubeconfigs(*, folder: Path, pki: Path, api_port: int) -> None:
    ca = (pki / "ca.crt").read_bytes()
    for client in CLIENTS:
        body = render_kubeconfig(
            server=f"https://{LOOPBACK}:{api_port}",
            ca=ca,
            certificate=(pki / f"{client}.crt").read_bytes(),
            key=(pki / f"{client}.key").read_bytes(),
        )
        write_when_changed(folder / f"{client}.yaml", json.dumps(body, indent=1), mode=0o600)
