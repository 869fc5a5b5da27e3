"""Pods of a group."""

from typing import Any

from disagg_operator.api.resource import Deployment
from disagg_operator.render.images import Images


def pod(
    deployment: Deployment, *, role: str, group: int, rank: int, revision: str, images: Images
) -> dict[str, Any]:
    """One pod of a group; immutable, so a changed spec means another revision."""
    raise NotImplementedError
