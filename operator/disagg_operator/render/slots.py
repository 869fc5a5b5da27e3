"""A slot: the place of one pod in a deployment, and the names that follow from it."""

from collections.abc import Iterable
from dataclasses import dataclass

from disagg_operator import names
from disagg_operator.api.resource import Deployment
from disagg_operator.api.spec import RoleSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    deployment: Deployment
    role: str
    group: int
    rank: int
    revision: str

    @property
    def role_spec(self) -> RoleSpec:
        return self.deployment.spec.role(self.role)

    @property
    def name(self) -> str:
        return names.pod_name(
            self.deployment.name,
            role=self.role,
            revision=self.revision,
            group=self.group,
            rank=self.rank,
        )

    @property
    def service(self) -> str:
        """The headless Service that gives the pod its DNS name."""
        return names.role_service_name(self.deployment.name, role=self.role, revision=self.revision)

    @property
    def address(self) -> str:
        """DNS name of the pod, known before the pod is ready."""
        return f"{self.name}.{self.service}.{self.deployment.namespace}.svc"

    def leader(self) -> "Slot":
        return Slot(
            deployment=self.deployment,
            role=self.role,
            group=self.group,
            rank=0,
            revision=self.revision,
        )


def leaders(
    deployment: Deployment, *, role: str, revision: str, groups: Iterable[int]
) -> tuple[Slot, ...]:
    """Rank 0 of each group: the pods that serve HTTP."""
    return tuple(
        Slot(deployment=deployment, role=role, group=group, rank=0, revision=revision)
        for group in groups
    )
