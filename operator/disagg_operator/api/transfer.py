"""`spec.transfer`: the in-pod agents and what they promise."""

from typing import Annotated, Literal

from pydantic import Field

from disagg_operator.api.base import ApiModel, Bytes, Duration, Image
from disagg_operator.api.pods import Resources


class AgentSpec(ApiModel):
    """The transfer agent, a sidecar of every pod."""

    image: Image | None = Field(
        None, description="Image of the agent; the operator's own default when left out."
    )
    resources: Resources = Field(
        Resources(),
        description="Resources of the agent; its memory limit must hold the arena. A small default"
        " is used for what is left out.",
    )
    arena_bytes: Bytes | None = Field(
        None,
        description="Memory that payloads pass through, such as 4Gi: room for the requests in"
        " flight at once. 64Mi for the reference engine and 4Gi on H200 when left out.",
    )


class StageTimeouts(ApiModel):
    """Deadlines by stage of a transfer."""

    bootstrap: Duration | None = Field(
        None, description="Connecting to the prefill pod, authentication, comparing layouts."
    )
    queue: Duration = Field(
        "2m",
        description="From the wish to the first offer: prefill's queue and its computing. Load is"
        " no fault, so it has a default of its own.",
    )
    notify: Duration | None = Field(
        None, description="From the first offer to the last: prefill owes the rest of the state."
    )
    allocate: Duration | None = Field(None, description="Waiting for room in decode's arena.")
    post: Duration | None = Field(None, description="Handing the read to the transport.")
    wire: Duration | None = Field(None, description="The bytes on their way.")
    scatter: Duration | None = Field(
        None, description="The decode engine taking the payload into its own cache."
    )


class Timeouts(ApiModel):
    """Deadlines of a transfer. Each stage's begins when the stage begins."""

    default: Duration = Field("30s", description="Deadline of every stage not named below.")
    stages: StageTimeouts = Field(
        StageTimeouts(), description="Deadlines by stage; timeouts.default where left out."
    )
    state_types: Annotated[dict[str, Duration], Field(max_length=16)] = Field(
        {},
        description="Deadlines of the stages notify and wire by state type; each key must be one"
        " of model.stateTypes.",
    )


class TransferSpec(ApiModel):
    """How state moves from prefill to decode."""

    agent: AgentSpec = Field(AgentSpec(), description="The transfer agent, a sidecar of each pod.")
    timeouts: Timeouts = Field(Timeouts(), description="Deadlines, by stage and by state type.")
    integrity: Literal["Always", "Off"] = Field(
        "Always", description="Whether decode checks a digest of every payload."
    )
    fault_switch: Literal["Disabled", "Enabled"] = Field(
        "Disabled",
        description="Enabled lets `disagg-agent fault` withhold or zero a state type, to see that"
        " failures are told. Never for production.",
    )
