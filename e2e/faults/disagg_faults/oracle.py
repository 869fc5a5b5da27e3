"""What may become of a request under which fault. Pure: the judgement of what was seen.

A request is exact on both sides or failed with a cause on both, each within its time. What a fault
does not touch must be exact; a cause must be one that the fault explains.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from disagg_faults.model import ITEM_BYTES, NAMES, STATE_TYPES, Piece, cut
from disagg_faults.orders import Ending, Outcome
from disagg_faults.plan import (
    DECODE,
    SCATTER_S,
    SHORT_STOP_S,
    STAGE_S,
    STANDING,
    Fault,
    Kind,
    Request,
    Step,
)
from disagg_faults.relay import Corruption
from disagg_transfer.contract import Cause, Stage

SLACK_S: Final = 3.0  # a busy machine's
RELAY_S: Final = 1.0  # a failure of one side is told to the other within this
_RELAY_SLACK_S: Final = 1.0
_STAGES: Final = 5  # the most that follow one another: bootstrap, queue, allocate, wire, confirm
_RESTART_S: Final = 10.0  # a process that was killed is up again within this

_LOST: Final = frozenset(
    {
        Cause.PEER_LOST,
        Cause.PEER_UNREACHABLE,
        Cause.ENGINE_LOST,
        Cause.TRANSPORT_ERROR,
        Cause.TIMEOUT,
        Cause.EPOCH_MISMATCH,
    }
)
_CAUSES: Final[Mapping[Kind, frozenset[str]]] = {
    Kind.NOTHING: frozenset(),
    Kind.KILL_AGENT: _LOST | {"AgentUnavailable"},
    Kind.STOP_AGENT: _LOST,
    Kind.LATE_BYTES: _LOST,
    Kind.KILL_ENGINE: frozenset({Cause.ENGINE_LOST, Cause.EPOCH_MISMATCH, Cause.TIMEOUT}),
    Kind.STOP_ENGINE: frozenset({Cause.TIMEOUT}),
    Kind.LOSE_PACKETS: _LOST,
    Kind.CORRUPT: _LOST | {Cause.AUTHENTICATION_FAILED},
    Kind.WITHHOLD: frozenset({Cause.TIMEOUT}),
    Kind.DUPLICATE: frozenset({Cause.DUPLICATE_PAYLOAD}),
    Kind.ZERO: frozenset({Cause.DIGEST_MISMATCH}),
}
# The control connection stays: both sides hear of a failure together.
_CONNECTED: Final = STANDING | {Kind.NOTHING}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One request and what either engine says of it; None: it had not ended in its time."""

    request: Request
    prefill: Outcome | None
    decode: Outcome | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """What an agent says it has moved whole, and failed, by state type, since it started."""

    incarnation: str
    transfers: Mapping[str, int]
    failures: Mapping[str, int]


def patience_s(step: Step) -> float:
    """How long after its order any side of the step's requests may take."""
    lag_s = max(
        request.prefill_lag_s + request.decode_lag_s + request.hold_s + _paces_s(request)
        for request in step.requests
    )
    blow_s = sum(fault.after_s + fault.lasting_s + _stall_s(fault) for fault in step.faults)
    restart_s = _RESTART_S if any(_restarts(fault) for fault in step.faults) else 0.0
    return lag_s + blow_s + restart_s + _STAGES * STAGE_S + SCATTER_S + SLACK_S


def judge(step: Step, seen: Iterable[Seen], *, struck_at: Mapping[Fault, float]) -> Iterator[str]:
    """Every violation, in words; `struck_at` says when each passing fault came (monotonic)."""
    for one in seen:
        verdicts = (_judge_request(step, one), _judge_detection(one, struck_at))
        for words in itertools.chain.from_iterable(verdicts):
            yield f"room {one.request.room} ({one.request.prefill}): {words}"


def judge_counts(
    *, before: Counted, after: Counted, seen: Iterable[Seen], pod: str
) -> Iterator[str]:
    """Whether an agent that lived through the step has counted what its engine saw."""
    if before.incarnation != after.incarnation:
        return
    seen = list(seen)
    yield from _judge_failures(before=before, after=after, seen=seen, pod=pod)
    least = Counter(_types(one for one in seen if _took(one, pod) is True))
    most = least + Counter(_types(one for one in seen if _took(one, pod) is None))
    counted = Counter(after.transfers)
    counted.subtract(before.transfers)
    if any(not least[name] <= counted[name] <= most[name] for name in STATE_TYPES.values()):
        yield f"{pod} counts {dict(counted)} transfers, its engine saw {dict(least)}"


def _judge_failures(
    *, before: Counted, after: Counted, seen: list[Seen], pod: str
) -> Iterator[str]:
    """A failure counts once for each state type that it kept back; without one nothing counts.

    Prefill's agent does not count a request that ended before its engine had begun it.
    """
    counted = sum(after.failures.values()) - sum(before.failures.values())
    sides = [side for one in seen for side in (one.prefill, one.decode)]
    told = [
        one.decode for one in seen if one.decode is not None and one.decode.ending is Ending.FAILED
    ]
    if pod == DECODE and counted < sum(side.cause in set(Cause) for side in told):
        yield f"{pod} counts {counted} failures, its engine saw {len(told)}"
    if counted and all(side is not None and side.ending is Ending.EXACT for side in sides):
        yield f"{pod} counts {counted} failures, and every request was exact"


def _types(seen: Iterable[Seen]) -> Iterator[str]:
    return (STATE_TYPES[name] for _ in seen for name in NAMES)


def _took(one: Seen, pod: str) -> bool | None:
    """Whether the pod's engine saw the request through; None: perhaps it moved whole, unseen."""
    if pod not in (DECODE, one.request.prefill):
        return False
    outcome = one.decode if pod == DECODE else one.prefill
    if outcome is None or outcome.ending is Ending.DIED:
        return None
    if outcome.ending is Ending.FAILED and (outcome.stage == Stage.SCATTER or one.request.abort):
        return None
    return outcome.ending is Ending.EXACT


def _judge_request(step: Step, one: Seen) -> Iterator[str]:
    if one.prefill is None or one.decode is None:
        sides = [name for name in ("prefill", "decode") if getattr(one, name) is None]
        yield f"{' and '.join(sides)} did not end within {patience_s(step):.1f} s"
        return
    faults = [fault for fault in step.faults if _touches(fault, one.request)]
    for side, outcome in (("prefill", one.prefill), ("decode", one.decode)):
        yield from (f"{side} {words}" for words in _judge_ending(one.request, faults, outcome))
    endings = {one.prefill.ending, one.decode.ending}
    if not faults and len(endings) > 1:
        yield f"prefill ended {one.prefill.ending}, decode {one.decode.ending}"
    if all(fault.kind in _CONNECTED for fault in faults):
        yield from _judge_relay(one.request, one.prefill, one.decode)


def _judge_ending(request: Request, faults: list[Fault], outcome: Outcome) -> Iterator[str]:
    causes = {cause for fault in faults for cause in _CAUSES[fault.kind]}
    if request.abort:
        causes |= {Cause.ABORTED}
    match outcome.ending:
        case Ending.WRONG:
            yield "took wrong bytes for good"
        case Ending.DIED if not any(fault.kind is Kind.KILL_ENGINE for fault in faults):
            yield "died of itself"
        case Ending.FAILED if outcome.cause not in causes:
            allowed = ", ".join(sorted(causes)) or "none"
            yield (
                f"failed with {outcome.cause} in {outcome.stage}: {outcome.detail} "
                f"(causes that its faults explain: {allowed})"
            )
        case Ending.EXACT if _given_up(request):
            yield f"is exact though {request.abort}'s engine gave it up"
        case Ending.EXACT if any(_dooms(fault, request) for fault in faults):
            yield "is exact though its bytes were withheld, offered twice or wiped"


def _judge_relay(request: Request, prefill: Outcome, decode: Outcome) -> Iterator[str]:
    """Neither side hears of a failure before it has come; the later one is not to blame for it."""
    came_s = prefill.began_at + request.prefill_lag_s, decode.began_at + request.decode_lag_s
    knew_s = max(min(prefill.ended_at, decode.ended_at), *came_s)
    late_s = max(prefill.ended_at, decode.ended_at) - knew_s
    failed = Ending.FAILED in (prefill.ending, decode.ending)
    if failed and late_s > RELAY_S + _RELAY_SLACK_S + request.hold_s:
        yield f"one side knew of its failure {late_s:.1f} s before the other"


def _judge_detection(one: Seen, struck_at: Mapping[Fault, float]) -> Iterator[str]:
    """Who was connected to a pod whose agent or engine is killed knows it within RELAY_S."""
    for fault, at in struck_at.items():
        if fault.kind not in (Kind.KILL_AGENT, Kind.KILL_ENGINE):
            continue
        other, unmet, came_at = _other_side(one, fault)
        if other is None or other.ending is not Ending.FAILED or other.stage in unmet:
            continue
        late_s = other.ended_at - at
        if came_at < at and late_s > RELAY_S + _RELAY_SLACK_S + one.request.hold_s:
            yield f"it was told {late_s:.1f} s after {fault.kind} {fault.target}"


def _other_side(one: Seen, fault: Fault) -> tuple[Outcome | None, frozenset[Stage], float]:
    """The side that lives on, the stages in which it has not met the other, and when it came."""
    if fault.target == DECODE and one.prefill is not None:
        came_at = one.prefill.began_at + one.request.prefill_lag_s
        return one.prefill, frozenset({Stage.BOOTSTRAP, Stage.QUEUE}), came_at
    if fault.target == one.request.prefill and one.decode is not None:
        came_at = one.decode.began_at + one.request.decode_lag_s
        return one.decode, frozenset({Stage.BOOTSTRAP}), came_at
    return None, frozenset(), 0.0


def _touches(fault: Fault, request: Request) -> bool:
    """Whether the fault may cost this request anything."""
    if fault.kind in (Kind.STOP_AGENT, Kind.STOP_ENGINE) and fault.lasting_s <= SHORT_STOP_S:
        return False
    if fault.kind in STANDING:
        return fault.target == request.prefill
    return fault.target in (request.prefill, DECODE)


def _dooms(fault: Fault, request: Request) -> bool:
    """Whether no luck can make the request exact: bytes it needs are not offered, or twice, or wiped.

    Where the last offer is the one said twice, the request may be whole before the second copy.
    """
    if fault.kind is Kind.DUPLICATE and fault.state_type in _last_types(request):
        return False
    moved = any(_moves(request, name) for name in NAMES if STATE_TYPES[name] == fault.state_type)
    return moved and fault.kind in STANDING


def _last_types(request: Request) -> set[str]:
    """The state types of the last offer, whether prefill asked what decode has or not."""
    return {STATE_TYPES[_pieces(request, have)[-1].component] for have in ({}, request.have)}


def _pieces(request: Request, have: Mapping[str, int]) -> tuple[Piece, ...]:
    return cut(request.items, chunk_bytes=request.chunk_bytes, have=have, room=request.room)


def _given_up(request: Request) -> bool:
    """Decode's engine gives up at its first chunk, if one comes."""
    return request.abort == "prefill" or (
        request.abort == "decode" and any(_moves(request, name) for name in NAMES)
    )


def _moves(request: Request, name: str) -> bool:
    return ITEM_BYTES[name] > 0 and request.items[name] > request.have.get(name, 0)


def _paces_s(request: Request) -> float:
    return request.pace_s * len(_pieces(request, {}))


def _stall_s(fault: Fault) -> float:
    stalls = fault.blow is not None and fault.blow.corruption is Corruption.STALL
    return fault.blow.stall_s if stalls and fault.blow else 0.0


def _restarts(fault: Fault) -> bool:
    return fault.kind in (Kind.KILL_AGENT, Kind.KILL_ENGINE)
