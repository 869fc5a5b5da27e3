"""The kinds of objects that we write, and where the API server keeps them."""

from dataclasses import dataclass
from enum import Enum
from typing import Any

from disagg_operator import names

# A Kubernetes object as JSON; typed only where it is parsed or rendered.
Json = dict[str, Any]
# (namespace, name) of a DisaggDeployment: what the labels of its children lead back to.
Owner = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectReference:
    """One DisaggDeployment, told apart from an earlier one of the same name by its uid."""

    namespace: str
    name: str
    uid: str

    @property
    def owner(self) -> Owner:
        return (self.namespace, self.name)


class Kind(Enum):
    POD = ("v1", "Pod", "pods")
    SERVICE = ("v1", "Service", "services")
    SECRET = ("v1", "Secret", "secrets")
    DEPLOYMENT = ("apps/v1", "Deployment", "deployments")
    DISRUPTION_BUDGET = ("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets")
    NETWORK_POLICY = ("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
    POD_GROUP = ("scheduling.volcano.sh/v1beta1", "PodGroup", "podgroups")
    EVENT = ("events.k8s.io/v1", "Event", "events")
    LEASE = ("coordination.k8s.io/v1", "Lease", "leases")
    SCALER = (names.API_VERSION, names.SCALER_KIND, names.SCALER_PLURAL)
    RESOURCE = (names.API_VERSION, names.KIND, names.PLURAL)

    def __init__(self, api_version: str, kind: str, plural: str) -> None:
        self.api_version = api_version
        self.kind = kind
        self.plural = plural

    def path(self, namespace: str | None, name: str = "") -> str:
        """Without a namespace the collection of all of them."""
        root = (
            f"/apis/{self.api_version}" if "/" in self.api_version else f"/api/{self.api_version}"
        )
        within = f"/namespaces/{namespace}" if namespace is not None else ""
        collection = f"{root}{within}/{self.plural}"
        return f"{collection}/{name}" if name else collection
