"""The CEL rules of `spec`. Each names the field, the value and what is allowed."""

from collections.abc import Iterator

from disagg_operator.api.hardware_rules import HARDWARE_RULES
from disagg_operator.api.owned import OWNED_FLAGS, OWNED_ROUTER_FLAGS
from disagg_operator.api.rules import Rule, cel_list, rule
from disagg_operator.api.scheduling import QUEUE_RULE
from disagg_operator.api.transfer_rules import (
    ARENA_RULES,
    ENGINE_OUTSIDE_DATA_PORTS_RULE,
    REQUIRED_RDMA_IS_MEASURED_RULE,
)
from disagg_operator.names import ROLES
from disagg_transfer import contract

# What a manifest may name. `none` is an empty component, not a promise a model can make.
STATE_TYPES = tuple(
    name for name in (*contract.STATE_TYPES, *contract.STATE_TYPE_ALIASES) if name != "none"
)

# One item of the list. The agents of a type of one's own refuse what they do not have.
STATE_TYPE_RULE = rule(
    f"self in {cel_list(STATE_TYPES)} || self.matches(r'^{contract.OWN_STATE_TYPE}$')",
    f"state type %s is not known; known: {', '.join(STATE_TYPES)}; one that is installed in the"
    " agent's image is named vendor/name, such as example.com/ring",
    "self",
)

STATE_TYPE_RULES = (
    rule("'kv' in self", "stateTypes %s lacks kv: every model has it; add kv", "self"),
    *(
        rule(
            f"!('{name}' in self && '{alias}' in self)",
            f"stateTypes has both {name} and {alias}, which are one type; keep {name}",
        )
        for alias, name in contract.STATE_TYPE_ALIASES.items()
    ),
)

ENGINE_PORT_RULE = rule(
    f"!(self in [{contract.CONTROL_PORT}, {contract.HTTP_PORT}])",
    "engine.port %s is a port of the transfer agent in the same pod; choose any but"
    f" {contract.CONTROL_PORT} and {contract.HTTP_PORT}",
    "self",
)


def _owned_rule(path: str, arguments: str, flags: tuple[str, ...], *, when: str = "true") -> Rule:
    """None of the list `arguments` may be one of `flags`, with or without =VALUE."""
    pattern = "|".join(flag.removeprefix("--") for flag in flags)
    is_owned = f"x.matches('^--({pattern})(=|$)')"
    return rule(
        f"!({when}) || !{arguments}.exists(x, {is_owned})",
        f"{path}: %s is set by the operator from the rest of the spec; remove it",
        f"{arguments}.filter(x, {is_owned})",
    )


ROUTER_ARGS_RULE = _owned_rule("router.args", "self", OWNED_ROUTER_FLAGS)


def _owned_flag_rules() -> Iterator[Rule]:
    for engine, flags in OWNED_FLAGS.items():
        for path in ("engine.args", *(f"roles.{role}.args" for role in ROLES)):
            if flags:
                when = f"self.engine.type == '{engine}'"
                yield _owned_rule(path, f"self.{path}", flags, when=when)


def _parallelism_rules(role: str) -> Iterator[Rule]:
    path = f"roles.{role}.parallelism"
    nodes, gpus = f"self.roles.{role}.nodesPerReplica", f"self.roles.{role}.gpusPerNode"
    tp, pp, dp, ep = (f"self.{path}.{degree}" for degree in ("tp", "pp", "dp", "ep"))
    yield rule(
        f"self.hardware.profile == 'cpu' || {tp} * {pp} == {gpus} * {nodes}",
        f"{path}: tp %s * pp %s must be gpusPerNode %s * nodesPerReplica %s",
        *(tp, pp, gpus, nodes),
    )
    yield rule(
        f"{tp} % {dp} == 0 && {tp} % {ep} == 0",
        f"{path}: dp %s and ep %s must both divide tp %s",
        *(dp, ep, tp),
    )
    yield rule(
        f"self.hardware.profile != 'cpu' || {gpus} == 0 && {tp} * {pp} == 1",
        f"roles.{role}: gpusPerNode %s, parallelism.tp %s, parallelism.pp %s need GPUs: with"
        " hardware.profile cpu gpusPerNode must be 0, tp and pp must be 1",
        *(gpus, tp, pp),
    )
    yield rule(
        f"self.engine.type != 'reference' || {nodes} == 1",
        f"roles.{role}.nodesPerReplica %s must be 1 for engine.type reference, which runs in one"
        " pod",
        nodes,
    )


_PREFILL, _DECODE = (f"self.roles.{role}.replicas" for role in ROLES)
_BOTH_ROLES_RULE = rule(
    f"({_PREFILL} == 0) == ({_DECODE} == 0)",
    "roles.prefill.replicas %s and roles.decode.replicas %s must be both 0 or both above 0: one"
    " role serves nothing without the other",
    *(_PREFILL, _DECODE),
)
# An autoscaler could only begin with a number that its scaler takes.
_SCALED_RULES = tuple(
    rule(
        f"self.roles.{role}.scaling.mode != 'External' || self.roles.{role}.replicas > 0",
        f"roles.{role}.replicas 0 must be at least 1 with scaling.mode External, which begins with"
        " it; to stop serving set scaling.mode Static",
    )
    for role in ROLES
)
# Here and not at spec.engine: the server checks a default of {} before nested defaults fill it.
_IMAGE_RULE = rule(
    "self.engine.type == 'reference' || has(self.engine.image)",
    "engine.image is missing and engine.type %s has no default image; set engine.image",
    "self.engine.type",
)
_TIMEOUTS = "self.transfer.timeouts.stateTypes"
_TIMEOUT_KEYS_RULE = rule(
    f"{_TIMEOUTS}.all(k, k in self.model.stateTypes)",
    "transfer.timeouts.stateTypes: %s not in model.stateTypes %s; give deadlines only for those",
    *(f"{_TIMEOUTS}.map(k, k).filter(k, !(k in self.model.stateTypes))", "self.model.stateTypes"),
)
SPEC_RULES = (
    _IMAGE_RULE,
    _BOTH_ROLES_RULE,
    *_SCALED_RULES,
    _TIMEOUT_KEYS_RULE,
    *ARENA_RULES,
    QUEUE_RULE,
    *HARDWARE_RULES,
    ENGINE_OUTSIDE_DATA_PORTS_RULE,
    REQUIRED_RDMA_IS_MEASURED_RULE,
    *(item for role in ROLES for item in _parallelism_rules(role)),
    *_owned_flag_rules(),
)
