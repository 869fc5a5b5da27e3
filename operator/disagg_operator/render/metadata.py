"""What every child carries: labels, its owner, and a hash of the whole intent."""

import hashlib
import json
from typing import Any

from disagg_operator import names
from disagg_operator.api.resource import Deployment


def labels(deployment: Deployment, *, component: str, revision: str = "") -> dict[str, str]:
    found = {
        names.LABEL_NAME: "disagg",
        names.LABEL_INSTANCE: deployment.name,
        names.LABEL_COMPONENT: component,
        names.LABEL_PART_OF: "disagg",
        names.LABEL_MANAGED_BY: names.MANAGED_BY,
        names.LABEL_DEPLOYMENT: deployment.name,
        names.LABEL_ROLE: component,
    }
    return {**found, names.LABEL_REVISION: revision} if revision else found


def metadata(deployment: Deployment, *, name: str, labels: dict[str, str]) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": deployment.namespace,
        "labels": labels,
        "ownerReferences": [owner(deployment)],
    }


def owner(deployment: Deployment) -> dict[str, Any]:
    """Garbage collection deletes the children; nothing keeps the resource from being deleted."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": deployment.name,
        "uid": deployment.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def stamped(intent: dict[str, Any]) -> dict[str, Any]:
    """`intent` with its own hash as an annotation: equal hashes mean nothing to apply."""
    annotations = intent["metadata"].get("annotations", {})
    annotations = {**annotations, names.ANNOTATION_INTENT: digest(intent)[:16]}
    return {**intent, "metadata": {**intent["metadata"], "annotations": annotations}}


def digest(value: Any) -> str:
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
