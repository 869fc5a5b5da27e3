"""What pods of a revision share: the headless Service of a role, and the key."""

from typing import Any

from disagg_operator.api.resource import Deployment


def peer_service(deployment: Deployment, *, role: str, revision: str) -> dict[str, Any]:
    """Headless Service of one role and revision: stable names, also of pods not ready yet."""
    raise NotImplementedError


def key_secret(deployment: Deployment, *, revision: str, key: bytes) -> dict[str, Any]:
    """Secret with the key that agents of this revision know one another by; created, never changed."""
    raise NotImplementedError
