"""`spec.transfer`: the in-pod agents and what they promise."""

from typing import Annotated, Literal

from pydantic import Field

from disagg_operator.api import transfer_rules
from disagg_operator.api.base import ApiModel, Bytes, Duration, Image
from disagg_operator.api.pods import Resources
from disagg_operator.api.rules import SET, rules
from disagg_transfer import contract

_Percent = Annotated[int, Field(ge=1, le=100)]
_Device = Annotated[str, Field(pattern=transfer_rules.DEVICE, max_length=68)]


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


class ArenaSpec(ApiModel):
    """The memory that payloads pass through."""

    memory: Literal["Host", "Device"] = Field(
        "Host",
        description="Host: main memory. Device: memory of the GPUs, which engine and agent share by"
        " gpuClaim.",
    )
    gpu_claim: str | None = Field(
        None,
        min_length=1,
        max_length=63,
        description="With memory Device: the claim in both roles' template.spec.resourceClaims that"
        " has the GPUs. Engine and agent get it instead of nvidia.com/gpu.",
    )
    bytes: Bytes | None = Field(
        None,
        description="Its size, such as 4Gi: room for the requests in flight at once. 64Mi with"
        " hardware.profile cpu and 4Gi on H200 when left out.",
    )


class PreflightSpec(ApiModel):
    """What is pulled from each peer to see that state moves, before there are requests."""

    mode: Literal["Observe", "Required", "Off"] = Field(
        "Observe",
        description="Observe: tell what was found. Required: pods are Ready only where state was"
        " seen to move; they carry the readiness gate disagg.dev/state-moves. Off: pull nothing.",
    )
    canary_interval: Duration = Field(
        "30s",
        description="Pause before a pair that moved nothing is sampled again.",
        json_schema_extra=rules(transfer_rules.CANARY_RULE),
    )


class CreditsSpec(ApiModel):
    """What one peer may have of a pod at a time; what is above waits in turn."""

    bytes: Bytes = Field("256Mi", description="Under way from one prefill pod to one decode pod.")
    reads: Annotated[int, Field(ge=1, le=4096)] = Field(
        64, description="Reads under way from one prefill pod to one decode pod."
    )
    arena_percent: _Percent = Field(
        50, description="Share of a prefill pod's arena for one decode pod, while there are others."
    )


class QuarantineSpec(ApiModel):
    """When memory that late bytes may still reach takes a pod out of service."""

    percent: _Percent = Field(50, description="Share of the arena that is too much at once.")
    lasting_percent: _Percent = Field(
        10, description="Share of the arena that is too much for longer than lastingTime."
    )
    lasting_time: Duration = Field("2m", description="How long the smaller share may last.")


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
    heartbeat: Duration = Field(
        "3s",
        description="A peer that says nothing for so long is lost.",
        json_schema_extra=rules(transfer_rules.HEARTBEAT_RULE),
    )
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
    arena: ArenaSpec = Field(
        ArenaSpec(), description="The memory that payloads pass through, in every pod."
    )
    timeouts: Timeouts = Field(Timeouts(), description="Deadlines, by stage and by state type.")
    transport: Literal["Any", "PreferRDMA", "RequireRDMA", "TCP"] | None = Field(
        None,
        description="What state may move over. PreferRDMA: a fallback to TCP is told. RequireRDMA:"
        " pods without RDMA are not Ready. Any with hardware.profile cpu and PreferRDMA on H200 when"
        " left out.",
    )
    net_devices: tuple[_Device, ...] = Field(
        (),
        max_length=16,
        description="Network devices to use, as UCX names them, such as mlx5_0:1 or eth0; any when"
        " left out.",
        json_schema_extra=SET,
    )
    data_ports: str = Field(
        f"{contract.DATA_PORTS[0]}-{contract.DATA_PORTS[1]}",
        max_length=11,
        description="TCP ports of the data plane, first-last. Prefill pods listen on them.",
        json_schema_extra=rules(transfer_rules.DATA_PORTS_RULE),
    )
    preflight: PreflightSpec = Field(
        PreflightSpec(), description="Pulling samples before there are requests."
    )
    credits: CreditsSpec = Field(
        CreditsSpec(), description="What one peer may have of a pod at a time."
    )
    quarantine: QuarantineSpec = Field(
        QuarantineSpec(), description="When memory that late bytes may reach is too much."
    )
    key_rotation: Annotated[str, Field(pattern="^(Never|[1-9][0-9]{0,3}h)$")] = Field(
        "720h",
        description="How long the keys of the agents last, in hours, or Never. No pod restarts and no"
        " transfer fails for a new one; a new revision has new keys anyway.",
    )
    integrity: Literal["Always", "Sampled", "Off"] = Field(
        "Always", description="Whether decode checks a digest of every payload, or of some."
    )
    sampled_percent: Annotated[int, Field(ge=1, le=99)] = Field(
        10, description="Share of the chunks that integrity Sampled checks."
    )
    fault_switch: Literal["Disabled", "Enabled"] = Field(
        "Disabled",
        description="Enabled lets `disagg-agent fault` withhold or zero a state type, to see that"
        " failures are told. Never for production.",
    )
