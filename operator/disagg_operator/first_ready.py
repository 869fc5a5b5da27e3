"""How long a resource took to become Ready: from its creation, or from a change of its spec.

A wait that began before this process did has no known start, and is not measured, unless it is
that of the first generation, which began with the object.
"""

from dataclasses import dataclass

from disagg_operator import names
from disagg_operator.api.status import DisaggDeploymentStatus


@dataclass(slots=True)
class ReadyWait:
    """One resource's; `seconds` is asked once a pass."""

    _generation: int | None = None
    _since: float | None = None

    def seconds(
        self,
        status: DisaggDeploymentStatus,
        *,
        previous: DisaggDeploymentStatus,
        created_at: float,
        now: float,
    ) -> float | None:
        """Seconds of a wait that ends with this status, at Unix seconds `now`; else None."""
        if status.observed_generation != self._generation:
            self._since = self._begun(status, previous, created_at=created_at, now=now)
            self._generation = status.observed_generation
        if self._since is None or not _is_ready(status):
            return None
        waited, self._since = now - self._since, None
        return waited

    def _begun(
        self,
        status: DisaggDeploymentStatus,
        previous: DisaggDeploymentStatus,
        *,
        created_at: float,
        now: float,
    ) -> float | None:
        current = previous.observed_generation == status.observed_generation
        if current and _is_ready(previous):
            return None
        if status.observed_generation == 1:
            return created_at
        return None if self._generation is None else now


def _is_ready(status: DisaggDeploymentStatus) -> bool:
    return any(item.type == names.READY and item.status == "True" for item in status.conditions)
