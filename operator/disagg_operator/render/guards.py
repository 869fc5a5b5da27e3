"""What guards the pods of a deployment, whatever their revision: disruption budgets and network
policies.
"""

from typing import Any

from disagg_operator import names
from disagg_operator.api.resource import Deployment
from disagg_operator.render.metadata import labels, metadata, stamped
from disagg_operator.render.routers import METRICS_PORT
from disagg_transfer import contract

Object = dict[str, Any]


def disruption_budget(deployment: Deployment, *, role: str) -> Object:
    """One pod of a role at a time may be evicted.

    That is one group at a time, also of several nodes: the operator replaces a group that lost a
    pod as a whole, and until all of it is ready again no further eviction is allowed. Given as the
    pods that must stay: for pods of a controller without a scale subresource the server takes no
    maxUnavailable, and would let nobody drain a node.
    """
    spec = deployment.spec.role(role)
    least = max(0, spec.replicas * spec.nodes_per_replica - 1)
    return stamped(
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": _metadata(deployment, component=role),
            "spec": {
                "minAvailable": least,
                "selector": {"matchLabels": _pods(deployment, role=role)},
                # A pod that is not ready serves nobody: it must not hold a drain of its node up.
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
            },
        }
    )


def role_policy(deployment: Deployment) -> Object:
    """Into prefill and decode pods: engines by routers, agents by agents, reports by anybody.

    Reports and metrics are read by the operator and by Prometheus, wherever they run.
    """
    spec = deployment.spec
    first, _, last = spec.transfer.data_ports.partition("-")
    peers = [{"podSelector": {"matchLabels": _pods(deployment, role=role)}} for role in names.ROLES]
    router = [{"podSelector": {"matchLabels": _pods(deployment, role=names.ROUTER)}}]
    # A group of several nodes talks to itself on ports that the engine chooses.
    wide = any(spec.role(role).nodes_per_replica > 1 for role in names.ROLES)
    from_peers: Object = {"from": peers}
    if not wide:
        data = {**_port(int(first)), "endPort": int(last)}
        from_peers["ports"] = [_port(contract.CONTROL_PORT), data]
    from_routers: Object = {"ports": [_port(spec.engine.port)]}
    if spec.router.type == "sglang":
        from_routers["from"] = router
    return _policy(
        deployment,
        component="pods",
        selector={
            "matchLabels": {names.LABEL_DEPLOYMENT: deployment.name},
            "matchExpressions": [
                {"key": names.LABEL_ROLE, "operator": "In", "values": list(names.ROLES)}
            ],
        },
        ingress=[from_peers, from_routers, {"ports": [_port(contract.HTTP_PORT)]}],
    )


def router_policy(deployment: Deployment) -> Object:
    """Into the router: requests and metrics, from anywhere."""
    ports = [_port(deployment.spec.router.port), _port(METRICS_PORT)]
    return _policy(
        deployment,
        component=names.ROUTER,
        selector={"matchLabels": _pods(deployment, role=names.ROUTER)},
        ingress=[{"ports": ports}],
    )


def _policy(
    deployment: Deployment, *, component: str, selector: Object, ingress: list[Object]
) -> Object:
    return stamped(
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": _metadata(deployment, component=component),
            "spec": {"podSelector": selector, "policyTypes": ["Ingress"], "ingress": ingress},
        }
    )


def _metadata(deployment: Deployment, *, component: str) -> Object:
    own = labels(deployment, component=component)
    return metadata(deployment, name=f"{deployment.name}-{component}", labels=own)


def _pods(deployment: Deployment, *, role: str) -> dict[str, str]:
    return {names.LABEL_DEPLOYMENT: deployment.name, names.LABEL_ROLE: role}


def _port(number: int) -> Object:
    return {"port": number, "protocol": "TCP"}
