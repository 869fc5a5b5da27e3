"""`spec`: what a user writes.

Every limit is in the schema or is a CEL rule, so that it is refused at apply; nothing here is
checked a second time in Python.
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from disagg_operator import names
from disagg_operator.api import spec_rules
from disagg_operator.api.base import (
    Amount,
    ApiModel,
    Duration,
    Image,
    Port,
    PositiveAmount,
    Replicas,
)
from disagg_operator.api.hardware import HardwareSpec
from disagg_operator.api.owned import EngineType
from disagg_operator.api.pods import Args, Env, Resources, Template
from disagg_operator.api.rules import SET, immutable, keyed_by, rules
from disagg_operator.api.scheduling import SchedulingSpec
from disagg_operator.api.transfer import TransferSpec
from disagg_transfer import contract

_STATE_TYPE = Annotated[
    str,
    Field(
        max_length=contract.MAX_STATE_TYPE,
        json_schema_extra=rules(spec_rules.STATE_TYPE_RULE),
    ),
]


class ModelSpec(ApiModel):
    """The model that both roles serve."""

    source: str = Field(
        min_length=1,
        max_length=512,
        description="Name or path of the model, as the engine takes it.",
    )
    served_name: str | None = Field(
        None,
        min_length=1,
        max_length=253,
        description="Model name that SGLang answers to; the resource's name when left out.",
    )
    state_types: tuple[_STATE_TYPE, ...] = Field(
        ("kv",),
        min_length=1,
        max_length=8,
        description="State types of the model's cache, such as kv, mamba, swa and nsa, or vendor/name"
        " of one installed in the agent's image. Pods whose engine has others are refused.",
        json_schema_extra={**SET, **rules(*spec_rules.STATE_TYPE_RULES)},
    )


class PullSecret(ApiModel):
    """A Secret with registry credentials."""

    name: str = Field(min_length=1, max_length=253, description="Name of the Secret.")


class EngineSpec(ApiModel):
    """The inference engine of both roles."""

    type: EngineType = Field(
        "reference",
        description="reference: the built-in engine, runs anywhere. sglang: SGLang. custom: any"
        " engine that embeds the agent client.",
    )
    image: Image | None = Field(
        None, description="Image of the engine; required unless engine.type is reference."
    )
    image_pull_policy: Literal["IfNotPresent", "Always", "Never"] = Field(
        "IfNotPresent", description="When the engine's and the agent's images are pulled."
    )
    image_pull_secrets: tuple[PullSecret, ...] = Field(
        (),
        max_length=8,
        description="Secrets with registry credentials, for all pods.",
        json_schema_extra=keyed_by("name"),
    )
    port: Port = Field(
        30000,
        description="HTTP port of the engine.",
        json_schema_extra=rules(spec_rules.ENGINE_PORT_RULE),
    )
    args: Args = Field((), description="More arguments of the engine, both roles.")
    env: Env = Field((), description="More environment of the engine, both roles.")


_Degree = Annotated[int, Field(ge=1, le=1024)]


class Parallelism(ApiModel):
    """How one replica splits the model over its GPUs."""

    tp: _Degree = Field(1, description="Tensor parallel degree.")
    pp: _Degree = Field(1, description="Pipeline parallel degree.")
    dp: _Degree = Field(1, description="Data parallel attention degree; divides tp.")
    ep: _Degree = Field(1, description="Expert parallel degree; divides tp.")


class ScalingSpec(ApiModel):
    """Who says how many groups there are."""

    mode: Literal["Static", "External"] = Field(
        "Static",
        description="Static: replicas. External: the DisaggRoleScaler NAME-ROLE, for autoscalers;"
        " replicas is what it begins with.",
    )


class RoleSpec(ApiModel):
    """One role: replicas of equal groups of pods."""

    replicas: Replicas = Field(1, description="Groups of this role.")
    scaling: ScalingSpec = Field(ScalingSpec(), description="Who says how many groups there are.")
    nodes_per_replica: int = Field(
        1,
        ge=1,
        le=64,
        description="Pods of one group, one per node. Cannot change.",
        json_schema_extra=rules(immutable("nodesPerReplica")),
    )
    gpus_per_node: int = Field(
        0,
        ge=0,
        le=16,
        description="GPUs of each pod; 0 for the cpu profile. Cannot change.",
        json_schema_extra=rules(immutable("gpusPerNode")),
    )
    parallelism: Parallelism = Field(
        Parallelism(), description="tp * pp must be gpusPerNode * nodesPerReplica on GPUs."
    )
    args: Args = Field((), description="More arguments of the engine, this role only.")
    env: Env = Field((), description="More environment of the engine, this role only.")
    resources: Resources = Field(
        Resources(), description="Resources of the engine container, over the profile's."
    )
    template: Template = Field(Template(), description="Overlay on the pods of this role.")


class RolesSpec(ApiModel):
    """Both roles."""

    prefill: RoleSpec = Field(RoleSpec(), description="Pods that compute prompts.")
    decode: RoleSpec = Field(RoleSpec(), description="Pods that generate tokens.")


class RestartSpec(ApiModel):
    """How a group of pods is replaced when a member is lost."""

    base_delay: Duration = Field(
        "30s", description="Pause before the second restart; doubled for each further one."
    )
    max_delay: Duration = Field("10m", description="The longest pause.")
    max_restarts: Annotated[int, Field(ge=0, le=1000)] = Field(
        0, description="Restarts before the group is left down; 0 for any number."
    )
    reset_after: Duration = Field(
        "1h", description="A group that was ready for so long counts anew."
    )


class RolloutSpec(ApiModel):
    """How a new revision takes over from the one that serves."""

    strategy: Literal["Coherent", "Recreate"] = Field(
        "Coherent",
        description="Coherent: both roles step by step, beside the old revision. Recreate: the old"
        " one goes first; for clusters without room for one more group of each role.",
    )
    max_surge: PositiveAmount = Field(
        1, description="Groups of each role above replicas: a number or a percentage."
    )
    max_unavailable: Amount = Field(
        0, description="Groups of each role that may be missing: a number or a percentage."
    )
    max_skew: Annotated[int, Field(ge=1, le=100)] = Field(
        1, description="Steps that new groups may be ahead of what is ready."
    )
    progress_deadline: Duration = Field(
        "1h", description="A step that takes longer ends the rollout; what serves stays."
    )
    drain: Duration = Field(
        "20s", description="Time that a router gets to finish requests before it or a worker goes."
    )


class DisruptionSpec(ApiModel):
    """What drains of nodes may take away."""

    budget: Literal["Group", "None"] = Field(
        "Group",
        description="Group: a PodDisruptionBudget for each role, one group at a time. None: none.",
    )


class RouterSpec(ApiModel):
    """What requests come in through."""

    type: Literal["sglang", "external", "none"] = Field(
        "sglang",
        description="sglang: sglang-router, run by the operator. external: one of yours."
        " none: no router, for engines driven directly.",
    )
    image: Image | None = Field(
        None, description="Image of the router; the operator's own default when left out."
    )
    replicas: Annotated[int, Field(ge=1, le=32)] = Field(1, description="Pods of the router.")
    port: Port = Field(8000, description="Port of the router and of the Service.")
    args: Args = Field(
        (),
        description="More arguments of the router.",
        json_schema_extra=rules(spec_rules.ROUTER_ARGS_RULE),
    )


class DisaggDeploymentSpec(ApiModel):
    """Disaggregated serving of one model: prefill pods, decode pods, a router."""

    model_config = ConfigDict(json_schema_extra=rules(*spec_rules.SPEC_RULES))

    model: ModelSpec = Field(description="The model that both roles serve.")
    engine: EngineSpec = Field(EngineSpec(), description="The inference engine of both roles.")
    roles: RolesSpec = Field(RolesSpec(), description="Prefill and decode.")
    hardware: HardwareSpec = Field(HardwareSpec(), description="What the pods run on.")
    scheduling: SchedulingSpec = Field(
        SchedulingSpec(), description="How the pods of a group are placed."
    )
    transfer: TransferSpec = Field(TransferSpec(), description="How state moves between pods.")
    router: RouterSpec = Field(RouterSpec(), description="What requests come in through.")
    rollout: RolloutSpec = Field(RolloutSpec(), description="Change from revision to revision.")
    disruption: DisruptionSpec = Field(DisruptionSpec(), description="Drains of nodes.")
    network_policy: Literal["Enabled", "Disabled"] = Field(
        "Enabled",
        description="Enabled: NetworkPolicies let agents reach agents, routers reach engines, and"
        " anybody the router, reports and metrics; nothing else comes in.",
    )
    restart: RestartSpec = Field(RestartSpec(), description="Replacement of broken groups.")
    paused: bool = Field(
        False,
        description="True: nothing is created, changed or deleted; the status is kept up.",
    )

    def role(self, role: str) -> RoleSpec:
        return self.roles.prefill if role == names.PREFILL else self.roles.decode


class DisaggDeployment(ApiModel):
    """A whole manifest."""

    api_version: Literal["disagg.dev/v1alpha1"]
    kind: Literal["DisaggDeployment"]
    metadata: dict[str, Any]
    spec: DisaggDeploymentSpec
