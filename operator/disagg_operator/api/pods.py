"""Parts of pods that a manifest may set: environment, resources, and the template overlay."""

from typing import Annotated, Any

from pydantic import ConfigDict, Field
from pydantic.config import JsonDict

from disagg_operator import names
from disagg_operator.api.base import ApiModel, Argument, Quantity
from disagg_operator.api.rules import Extra, cel_list, keyed_by, quoted, rule, rules

_PRESERVE: JsonDict = {"x-kubernetes-preserve-unknown-fields": True}
_PREFIX = quoted(names.RESERVED_ENV_PREFIX)


class EnvVar(ApiModel):
    """One environment variable, as in a container."""

    name: str = Field(
        min_length=1,
        max_length=128,
        description="Name of the variable. Names that begin with DISAGG_ are the operator's.",
    )
    value: str | None = Field(None, max_length=4096, description="The value as it stands.")
    value_from: dict[str, Any] | None = Field(
        None,
        description="Where the value comes from (fieldRef, secretKeyRef, ...), as in a container.",
    )


Env = Annotated[
    tuple[EnvVar, ...],
    Field(
        max_length=64,
        json_schema_extra={
            **keyed_by("name"),
            **rules(
                rule(
                    f"!self.exists(x, x.name.startsWith({_PREFIX}))",
                    "env: %s is set by the operator, as all names that begin with"
                    f" {names.RESERVED_ENV_PREFIX}; choose another name",
                    f"self.map(x, x.name).filter(x, x.startsWith({_PREFIX}))",
                )
            ),
        },
    ),
]
Args = Annotated[tuple[Argument, ...], Field(max_length=64)]
Quantities = Annotated[dict[str, Quantity], Field(max_length=16)]


class Resources(ApiModel):
    """Compute resources of a container."""

    requests: Quantities = Field({}, description="What the scheduler sets aside, by resource.")
    limits: Quantities = Field({}, description="What the container may use, by resource.")


class ContainerOverlay(ApiModel):
    """One container, merged by name into the pod's."""

    model_config = ConfigDict(extra="allow", json_schema_extra=_PRESERVE)

    name: str = Field(min_length=1, max_length=63, description="Name of the container.")


def _reserved(*containers: str) -> Extra:
    taken = f"x.name in {cel_list(containers)}"
    return {
        **keyed_by("name"),
        **rules(
            rule(
                f"!self.exists(x, {taken})",
                "container name %s is reserved for the operator; choose another (resources of the"
                " agent: spec.transfer.agent.resources)",
                f"self.filter(x, {taken}).map(x, x.name)",
            )
        ),
    }


class PodSpecOverlay(ApiModel):
    """Any field of a pod's spec; the operator's own fields win over it."""

    model_config = ConfigDict(extra="allow", json_schema_extra=_PRESERVE)

    containers: tuple[ContainerOverlay, ...] = Field(
        (),
        max_length=16,
        description="Containers: `engine` changes the engine's, other names are added beside it.",
        json_schema_extra=_reserved(names.CONTAINER_AGENT),
    )
    init_containers: tuple[ContainerOverlay, ...] = Field(
        (),
        max_length=16,
        description="Init containers, run after the transfer agent has started.",
        json_schema_extra=_reserved(names.CONTAINER_AGENT, names.CONTAINER_ENGINE),
    )


class PodMetadataOverlay(ApiModel):
    """Labels and annotations that the pods get besides the operator's."""

    labels: dict[str, str] = Field({}, max_length=32, description="More labels.")
    annotations: dict[str, str] = Field({}, max_length=32, description="More annotations.")


class Template(ApiModel):
    """An overlay on the pods: metadata and spec are merged into what the operator makes."""

    metadata: PodMetadataOverlay = Field(
        PodMetadataOverlay(), description="Labels and annotations to add."
    )
    spec: PodSpecOverlay = Field(
        PodSpecOverlay(),
        description="Fields of the pod's spec to add or change: containers by name, the rest by"
        " field. What the operator owns (names, network identity, agent, ports) stays its own.",
    )
