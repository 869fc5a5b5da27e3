"""Objects of a deployment, from its spec alone: pure functions that return plain dicts."""

from disagg_operator.render.agents import state_types, transport_policy
from disagg_operator.render.gangs import is_gang, pod_group
from disagg_operator.render.guards import disruption_budget, role_policy, router_policy
from disagg_operator.render.images import Images
from disagg_operator.render.pods import pod, pod_gate
from disagg_operator.render.revisions import revision, template
from disagg_operator.render.routers import (
    router_deployment,
    router_service,
    router_url,
    trimmed_router,
)
from disagg_operator.render.scalers import leader_selector, role_scaler, role_scaler_status
from disagg_operator.render.services import key_secret, peer_service

__all__ = [
    "Images",
    "disruption_budget",
    "is_gang",
    "key_secret",
    "leader_selector",
    "peer_service",
    "pod",
    "pod_gate",
    "pod_group",
    "revision",
    "role_policy",
    "role_scaler",
    "role_scaler_status",
    "router_deployment",
    "router_policy",
    "router_service",
    "router_url",
    "state_types",
    "template",
    "transport_policy",
    "trimmed_router",
]
