"""The CEL rules of `spec.transfer`, and what one of them needs from the rest of `spec`."""

from disagg_operator.api.rules import at_least, rule

MIN_DATA_PORTS = 16  # as the agent asks: one for each device of each rank
DEVICE = "^[A-Za-z0-9_.-]{1,64}(:[0-9]{1,3})?$"

CANARY_RULE = at_least(
    "transfer.preflight.canaryInterval", "1s", because="each canary reads every component"
)
HEARTBEAT_RULE = at_least("timeouts.heartbeat", "300ms", because="three beats fit into it")

_FIRST, _LAST = (f"int(self.split('-')[{place}])" for place in (0, 1))
DATA_PORTS_RULE = rule(
    f"self.matches('^[1-9][0-9]{{3,4}}-[1-9][0-9]{{3,4}}$') && {_FIRST} >= 1024 &&"
    f" {_LAST} <= 65535 && {_LAST} - {_FIRST} >= {MIN_DATA_PORTS - 1}",
    "dataPorts %s must be first-last, such as 21000-21999: within 1024-65535 and at least"
    f" {MIN_DATA_PORTS} ports",
    "self",
)

# At spec, as nested defaults are filled in there only.
REQUIRED_RDMA_IS_MEASURED_RULE = rule(
    "!has(self.transfer.transport) || self.transfer.transport != 'RequireRDMA' ||"
    " self.transfer.preflight.mode != 'Off'",
    "transfer.transport RequireRDMA needs transfer.preflight.mode Observe or Required, not %s: the"
    " transport is found out by moving something",
    "self.transfer.preflight.mode",
)

# At spec, where both ports are in sight.
_PORTS = "self.transfer.dataPorts.split('-')"
ENGINE_OUTSIDE_DATA_PORTS_RULE = rule(
    f"self.engine.port < int({_PORTS}[0]) || self.engine.port > int({_PORTS}[1])",
    "engine.port %s is one of transfer.dataPorts %s, which the agent of the same pod listens on",
    "self.engine.port",
    "self.transfer.dataPorts",
)
_ARENA = "self.transfer.arena"
ARENA_RULES = (
    rule(
        f"({_ARENA}.memory == 'Device') == has({_ARENA}.gpuClaim)",
        "transfer.arena: memory %s %s gpuClaim: with Device name the claim of the GPUs, which engine"
        " and agent share; with Host leave it out",
        f"{_ARENA}.memory",
        f"has({_ARENA}.gpuClaim) ? 'with' : 'without'",
    ),
    rule(
        f"{_ARENA}.memory == 'Host' || self.hardware.profile != 'cpu'",
        "transfer.arena.memory Device needs GPUs, hardware.profile is %s; set it to h200 or"
        " custom, or memory to Host",
        "self.hardware.profile",
    ),
)
