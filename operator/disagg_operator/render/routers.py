"""The router of a revision and the Service that clients use."""

from typing import Any

from disagg_operator.api.resource import Deployment
from disagg_operator.render.images import Images


def router_deployment(deployment: Deployment, *, revision: str, images: Images) -> dict[str, Any]:
    """Deployment of the router, with the workers of this revision; call it only for router.type sglang
    and replicas above 0."""
    raise NotImplementedError


def router_service(deployment: Deployment, *, revision: str) -> dict[str, Any]:
    """Service `{name}`: to the router of the revision that serves."""
    raise NotImplementedError
