"""`status`: what the operator found. Written by one writer, in one call, only when changed."""

from typing import Annotated, Any, Literal

from pydantic import Field

from disagg_operator import names
from disagg_operator.api.base import ApiModel
from disagg_operator.api.rules import SET, keyed_by
from disagg_transfer import contract

Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
Count = Annotated[int, Field(ge=0)]
Small = Annotated[int, Field(ge=0, le=100000)]
Message = Annotated[str, Field(max_length=4096)]


class Condition(ApiModel):
    """One aspect of the resource, as in metav1.Condition."""

    type: str = Field(max_length=316, description="What the condition is about.")
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it holds.")
    observed_generation: Count | None = Field(
        None, description="Generation of the spec that this was found for."
    )
    last_transition_time: Time = Field(description="When status last changed.")
    reason: str = Field(max_length=1024, description="Why, in one word.")
    message: Message = Field(description="Why, for people.")


class GroupStatus(ApiModel):
    """A group that was replaced."""

    group: Small = Field(description="Index of the group.")
    restarts: Count = Field(description="How often since it last was ready for long.")
    time: Time = Field(description="When it was last.")
    reason: str = Field(max_length=512, description="Why.")


class RoleStatus(ApiModel):
    """Groups of one role."""

    name: str = Field(max_length=16, description="prefill or decode.")
    desired: Small = Field(description="Groups that the spec asks for.")
    ready: Small = Field(description="Groups whose pods are all ready.")
    updated: Small = Field(description="Groups of the newest revision.")
    restarts: Count = Field(0, description="Restarts of containers of the pods that there are.")
    groups: tuple[GroupStatus, ...] = Field(
        (),
        max_length=16,
        description="Groups that were replaced; the worst 16.",
        json_schema_extra=keyed_by("group"),
    )


class RolloutStatus(ApiModel):
    """A revision on its way."""

    revision: str = Field(
        max_length=16,
        description="Which one; with + and its templates while pods of it are made anew.",
    )
    step: Small = Field(description="Steps that are ready.")
    steps: Small = Field(description="Steps there are.")
    progress_time: Time = Field(description="When the last step was done.")


class RouterStatus(ApiModel):
    """Pods of the router."""

    desired: Small = Field(description="Pods that the spec asks for.")
    ready: Small = Field(description="Pods that are ready.")


class TransferFailure(ApiModel):
    """The newest failure of a state type."""

    time: Time = Field(description="When it failed.")
    stage: str = Field(
        max_length=32,
        description="Where it failed: bootstrap, queue, notify, allocate, post, wire or scatter.",
    )
    cause: str = Field(max_length=64, description="Why, such as Timeout or DigestMismatch.")
    component: str = Field("", max_length=253, description="Component of the model's cache.")
    prefill_pod: str = Field("", max_length=253, description="Pod that state came from.")
    decode_pod: str = Field("", max_length=253, description="Pod that state went to.")
    message: Message = Field("", description="Details, for people.")


class StateTypeStatus(ApiModel):
    """What moved of one state type, counted by decode pods."""

    type: str = Field(
        max_length=contract.MAX_STATE_TYPE, description="State type, such as kv or mamba."
    )
    transfers: Count = Field(0, description="Payloads that arrived whole.")
    bytes: Count = Field(0, description="Bytes that arrived.")
    timeouts: Count = Field(0, description="Payloads that missed a deadline.")
    failures: Count = Field(0, description="Payloads that failed for any cause, timeouts too.")
    last_success_time: Time | None = Field(None, description="When one last arrived.")
    last_failure: TransferFailure | None = Field(None, description="The newest failure.")


class TransferStatus(ApiModel):
    """What the agents report."""

    reporting_agents: Small = Field(0, description="Agents that answer.")
    expected_agents: Small = Field(0, description="Agents that should answer.")
    transport: str = Field(
        "unknown", max_length=16, description="rdma, cuda_ipc, shm, cma, tcp, mixed, unknown."
    )
    state_types: tuple[StateTypeStatus, ...] = Field(
        (),
        max_length=16,
        description="One row for each state type.",
        json_schema_extra=keyed_by("type"),
    )
    active_faults: tuple[Annotated[str, Field(max_length=128)], ...] = Field(
        (),
        max_length=32,
        description="Faults that somebody switched on, such as withhold:mamba.",
        json_schema_extra=SET,
    )


class FailedPair(ApiModel):
    """Two pods whose newest sample failed."""

    prefill_pod: str = Field(max_length=253, description="Pod that it came from.")
    decode_pod: str = Field(max_length=253, description="Pod that it went to.")
    cause: str = Field(max_length=64, description="Why, such as Timeout or DigestMismatch.")


class PreflightStatus(ApiModel):
    """Samples that decode pods pull from prefill pods."""

    pairs: str = Field(max_length=16, description="Pairs of pods that passed, and all.")
    slowest_gbps: float | None = Field(
        None,
        alias="slowestGBps",
        ge=0,
        description="10^9 bytes a second of the slowest pair that passed; told anew when it has"
        " halved or doubled.",
    )
    failed: tuple[FailedPair, ...] = Field(
        (), max_length=10, description="Pairs that failed, the first 10."
    )


class KeysStatus(ApiModel):
    """The keys that the operator wrote last, without the keys."""

    generation: Count = Field(description="Counts the rotations, from 1.")
    key: str = Field(max_length=16, description="Name of the newest key, as agents log it.")
    time: Time = Field(description="When it was written.")


class DisaggDeploymentStatus(ApiModel):
    """What the operator found at observedGeneration."""

    observed_generation: Count | None = Field(
        None, description="Generation of the spec that this status is about."
    )
    phase: str = Field(
        names.PHASE_PENDING, max_length=32, description="For people; programs read conditions."
    )
    current_revision: str = Field("", max_length=16, description="Revision that serves.")
    update_revision: str = Field("", max_length=16, description="Revision that the spec asks for.")
    url: str = Field("", max_length=512, description="Where requests go.")
    prefill: str = Field("", max_length=16, description="Ready and desired prefill groups.")
    decode: str = Field("", max_length=16, description="Ready and desired decode groups.")
    transport: str = Field("", max_length=16, description="What state moves over.")
    reason: str = Field("", max_length=1024, description="Reason of the condition Ready.")
    message: Message = Field("", description="Message of the condition Ready.")
    roles: tuple[RoleStatus, ...] = Field(
        (), max_length=2, description="Groups by role.", json_schema_extra=keyed_by("name")
    )
    rollout: RolloutStatus | None = Field(None, description="While a revision is on its way.")
    router: RouterStatus | None = Field(None, description="Pods of the router.")
    transfer: TransferStatus | None = Field(None, description="What the agents report.")
    keys: KeysStatus | None = Field(None, description="The agents' keys, without the keys.")
    preflight: PreflightStatus | None = Field(
        None, description="Samples between pods; while there are any."
    )
    conditions: tuple[Condition, ...] = Field(
        (),
        max_length=16,
        description="Ready sums up; PrefillReady, DecodeReady, RouterReady and TransferHealthy say"
        " where it fails. PreflightPassed tells what samples between pods came to.",
        json_schema_extra=keyed_by("type"),
    )

    def to_object(self) -> dict[str, Any]:
        """The status as the API server takes it: camelCase, nothing that is None."""
        return self.model_dump(by_alias=True, exclude_none=True, mode="json")
