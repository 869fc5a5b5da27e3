"""`spec.scheduling`: pods that are placed together or not at all."""

from typing import Literal

from pydantic import Field

from disagg_operator.api.base import ApiModel
from disagg_operator.api.rules import rule

# At spec, as nested defaults are filled in there only.
QUEUE_RULE = rule(
    "!has(self.scheduling.queue) || self.scheduling.gang == 'Volcano'",
    "scheduling.queue %s is one of Volcano: set scheduling.gang to Volcano, not %s, or leave queue"
    " out",
    "self.scheduling.queue",
    "self.scheduling.gang",
)


class SchedulingSpec(ApiModel):
    """How the pods of a group are placed."""

    gang: Literal["None", "Volcano"] = Field(
        "None",
        description="None: pod by pod. Volcano: by the scheduler of that name, groups of several"
        " pods whole or not at all, each by a PodGroup.",
    )
    queue: str | None = Field(
        None,
        pattern="^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
        max_length=253,
        description="Queue of the PodGroups; Volcano's own default when left out.",
    )
