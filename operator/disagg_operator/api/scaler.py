"""`DisaggRoleScaler`: the number of groups of one role, for whoever scales it from outside.

A resource can have one scale subresource and a deployment has two roles, hence an object for each
role with `scaling.mode: External`. Autoscalers own `spec`, the operator owns `status`.
"""

from typing import Annotated

from pydantic import Field

from disagg_operator.api.base import ApiModel

# One role serves nothing without the other, so an autoscaler cannot take one of them to zero.
LEAST = 1

_Groups = Annotated[int, Field(ge=0, le=1_000_000)]


class RoleScalerSpec(ApiModel):
    """What autoscalers and `kubectl scale` write."""

    replicas: Annotated[int, Field(ge=LEAST, le=1000)] = Field(description="Wanted groups.")


class RoleScalerStatus(ApiModel):
    """What the operator found."""

    observed_generation: Annotated[int, Field(ge=0)] = Field(
        0, description="Generation of the spec that the operator has taken up."
    )
    replicas: _Groups = Field(0, description="Groups that have a leader pod, of any revision.")
    selector: str = Field(
        "", max_length=1024, description="Labels of the leader pods, whose metrics count."
    )
