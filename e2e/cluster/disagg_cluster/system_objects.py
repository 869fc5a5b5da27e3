"""The objects a cluster has from its start: DNS's access and Service. CoreDNS itself is a host process."""

from collections.abc import Mapping
from typing import Any

from disagg_cluster.addresses import DNS_SERVICE_ADDRESS, NODE_ADDRESS

_RBAC = "/apis/rbac.authorization.k8s.io/v1"
_SYSTEM = "namespaces/kube-system"
_DNS_PORTS = (("dns", "UDP"), ("dns-tcp", "TCP"))


def system_objects() -> dict[str, Mapping[str, Any]]:
    """API path -> intent."""
    return {**_dns_access(), **_dns_service()}


def _dns_access() -> dict[str, Mapping[str, Any]]:
    return {
        f"{_RBAC}/clusterroles/system:coredns": {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": "system:coredns"},
            "rules": [
                {
                    "apiGroups": [""],
                    "resources": ["services", "pods", "namespaces"],
                    "verbs": ["list", "watch"],
                },
                {
                    "apiGroups": ["discovery.k8s.io"],
                    "resources": ["endpointslices"],
                    "verbs": ["list", "watch"],
                },
            ],
        },
        f"{_RBAC}/clusterrolebindings/system:coredns": {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "system:coredns"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "system:coredns",
            },
            "subjects": [
                {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "User",
                    "name": "system:coredns",
                }
            ],
        },
    }


def _dns_service() -> dict[str, Mapping[str, Any]]:
    return {
        f"/api/v1/{_SYSTEM}/services/kube-dns": {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system"},
            "spec": {
                "clusterIP": DNS_SERVICE_ADDRESS,
                "ports": [
                    {"name": name, "port": 53, "protocol": protocol, "targetPort": 53}
                    for name, protocol in _DNS_PORTS
                ],
            },
        },
        f"/apis/discovery.k8s.io/v1/{_SYSTEM}/endpointslices/kube-dns": {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "kube-dns",
                "namespace": "kube-system",
                "labels": {"kubernetes.io/service-name": "kube-dns"},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [NODE_ADDRESS], "conditions": {"ready": True}}],
            "ports": [
                {"name": name, "port": 53, "protocol": protocol} for name, protocol in _DNS_PORTS
            ],
        },
    }
