"""What a DisaggDeployment's status says, as pure functions of the object: the waits' predicates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One condition of the resource; absent ones read as Unknown."""

    type: str
    status: str = "Unknown"
    reason: str = ""
    message: str = ""


def condition(resource: Mapping[str, Any], kind: str) -> Condition:
    """The condition of that type, if it is of the spec that is now in the object."""
    status = resource.get("status", {})
    if status.get("observedGeneration") != resource["metadata"]["generation"]:
        return Condition(type=kind)
    for found in status.get("conditions", []):
        if found["type"] == kind:
            return Condition(
                type=kind,
                status=found["status"],
                reason=found.get("reason", ""),
                message=found.get("message", ""),
            )
    return Condition(type=kind)


def is_true(resource: Mapping[str, Any], kind: str) -> bool:
    """The condition holds for the current generation."""
    return condition(resource, kind).status == "True"


def state_row(resource: Mapping[str, Any], state_type: str) -> Mapping[str, Any]:
    """The row of a state type in status.transfer.stateTypes; empty when there is none."""
    rows = resource.get("status", {}).get("transfer", {}).get("stateTypes", [])
    return next((row for row in rows if row["type"] == state_type), {})


def moved_bytes(resource: Mapping[str, Any]) -> dict[str, int]:
    """Bytes moved by state type."""
    rows = resource.get("status", {}).get("transfer", {}).get("stateTypes", [])
    return {row["type"]: row.get("bytes", 0) for row in rows}


def pods_of(pods: list[Mapping[str, Any]], role: str, revision: str) -> list[str]:
    """Names of a role's pods of one revision, in order."""
    labels = {"disagg.dev/role": role, "disagg.dev/revision": revision}
    return sorted(
        pod["metadata"]["name"]
        for pod in pods
        if labels.items() <= pod["metadata"].get("labels", {}).items()
    )
