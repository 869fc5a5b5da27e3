"""Groups of pods that live and die together: which one is broken, and when it may be made again.

A group of several pods is one engine over several nodes: when a member is lost, or its engine was
restarted, the others hold connections to a process that is gone, so the whole group is replaced.
Nothing is remembered but the count of restarts, which the status keeps; without it a group comes
back at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from disagg_operator.observe import PodRecord

# Members of one group are created in one pass; one that is still missing after this was lost.
FORMING_S: Final = 60.0
# The kubelet of a living node has removed a pod by the end of its grace period; one that is still
# there so much later stands on a node that is dead.
STUCK_S: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Pauses before a broken group is made again: none, then `base_s`, doubled up to `limit_s`.

    `most` restarts are tried, any number when it is 0; a group that was whole for `reset_s`
    starts to count anew.
    """

    base_s: float
    limit_s: float
    most: int
    reset_s: float

    def pause_s(self, count: int) -> float:
        if count <= 1:
            return 0.0
        # 2**20 pauses are past any limit; more only overflow.
        return min(self.limit_s, self.base_s * 2.0 ** min(count - 2, 20))


@dataclass(frozen=True, slots=True, kw_only=True)
class Restart:
    """How often one group was replaced, when last (Unix seconds), and why."""

    count: int
    at: float
    reason: str

    def due_at(self, policy: Policy) -> float | None:
        """When its pods may be created; None when it was tried often enough."""
        if policy.most and self.count > policy.most:
            return None
        return self.at + policy.pause_s(self.count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The pods of one replica of a role that there are, by rank."""

    size: int
    pods: Mapping[int, PodRecord]

    @property
    def whole(self) -> bool:
        return all(
            rank in self.pods and self.pods[rank].ready and not self.pods[rank].deleting
            for rank in range(self.size)
        )

    @property
    def missing(self) -> tuple[int, ...]:
        return tuple(rank for rank in range(self.size) if rank not in self.pods)

    def forming_until(self) -> float:
        """When a member that is missing counts as lost."""
        return max((pod.created_at for pod in self.pods.values()), default=0.0) + FORMING_S


def broken(group: Group, *, now: float) -> str:
    """Why every pod of the group must be replaced; empty when it need not."""
    pods = group.pods.values()
    for pod in pods:
        if pod.ended:
            return f"pod {pod.name} ended: {pod.phase}"
    if group.size == 1 or all(pod.deleting for pod in pods):
        return ""
    for pod in pods:
        if pod.deleting:
            why = f": {pod.disruption}" if pod.disruption else ""
            return f"pod {pod.name} is being deleted{why}"
        if pod.engine is not None and pod.engine.restarts:
            return f"the engine of pod {pod.name} was restarted"
    # Members of several nodes are ready only together, so a ready one has lost the missing one.
    formed = any(pod.ready for pod in pods) or now >= group.forming_until()
    if group.missing and pods and formed:
        return f"the pod of rank {group.missing[0]} is gone"
    return ""


def stuck(pod: PodRecord, *, now: float) -> bool:
    """Deleted long ago and still there: nobody runs its node, and its name is needed."""
    return pod.deleted_at is not None and now >= pod.deleted_at + STUCK_S
