"""What a campaign does, step by step, from its seed. Pure: the same seed is the same plan.

A step is a few requests at once and at most two faults that strike them. What a plan fixes is
what is asked for; when exactly a fault meets a request is the machine's doing.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from disagg_faults.model import NAMES
from disagg_faults.relay import Blow, Corruption, Direction

PREFILLS: Final = ("prefill-0", "prefill-1")
DECODE: Final = "decode-0"
PODS: Final = (*PREFILLS, DECODE)
STAGE_S: Final = 3.0  # every deadline of every stage but scatter
SCATTER_S: Final = 6.0  # engines hold chunks for up to 1.6 s, on machines that are busy
ARENA_BYTES: Final = 64 << 20  # of each agent; the largest request takes a third of it
SHORT_STOP_S: Final = 0.8  # no deadline is shorter: it must harm nothing
LONG_STOP_S: Final = (3.5, 5.0)  # past the heartbeat limit
_FAULT_TYPES: Final = ("kv", "mamba", "nsa", "swa")
_ROLES: Final = ("prefill", "decode")
_ABORT_SHARE: Final = 0.03  # for each role
_WHOLE_SHARE: Final = 0.2
_HAVE_SHARE: Final = 0.2
_ASKS_SHARE: Final = 0.3
_CHUNK_BYTES: Final = (256 << 10, 1 << 20, 4 << 20, 1 << 30)
_PACE_S: Final = 0.02
_HOLD_SHARE: Final = 0.3
_APART_S: Final = 0.3  # a router hands both copies of a request out at once


class Kind(StrEnum):
    NOTHING = "nothing"
    KILL_AGENT = "kill-agent"
    STOP_AGENT = "stop-agent"
    LATE_BYTES = "late-bytes"  # stop-agent, with requests made for it: see _late
    KILL_ENGINE = "kill-engine"
    STOP_ENGINE = "stop-engine"
    LOSE_PACKETS = "lose-packets"
    CORRUPT = "corrupt"
    WITHHOLD = "withhold"
    DUPLICATE = "duplicate"
    ZERO = "zero"


STANDING: Final = frozenset(
    {Kind.WITHHOLD, Kind.DUPLICATE, Kind.ZERO}
)  # from before a step until after it

_WEIGHTS: Final = {
    Kind.NOTHING: 10,
    Kind.KILL_AGENT: 10,
    Kind.STOP_AGENT: 12,
    Kind.LATE_BYTES: 5,
    Kind.KILL_ENGINE: 12,
    Kind.STOP_ENGINE: 6,
    Kind.LOSE_PACKETS: 14,
    Kind.CORRUPT: 24,
    Kind.WITHHOLD: 6,
    Kind.DUPLICATE: 6,
    Kind.ZERO: 6,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    kind: Kind
    target: str  # a pod
    after_s: float = 0.0  # from the step's beginning
    on_wire: bool = False  # then, as soon as bytes of a request of the target are under way
    lasting_s: float = 0.0
    percent: int = 100  # of packets
    state_type: str = ""
    blow: Blow | None = None

    def __str__(self) -> str:
        words = [self.kind.value, self.target]
        if self.state_type:
            words.append(self.state_type)
        if self.kind is Kind.LOSE_PACKETS:
            words.append(f"{self.percent}%")
        if self.blow is not None:
            words.append(f"{self.blow.corruption} {self.blow.direction} after {self.blow.after}")
        if self.kind not in STANDING:
            words.append(f"at {self.after_s:.2f} s{' on wire' if self.on_wire else ''}")
            words.append(f"for {self.lasting_s:.2f} s")
        return " ".join(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    room: int
    prefill: str  # the pod
    items: Mapping[str, int]
    prefill_lag_s: float
    decode_lag_s: float
    chunk_bytes: int
    pace_s: float
    have: Mapping[str, int]
    hold_s: float
    whole: bool
    asks: bool
    abort: str  # the role whose engine gives up after the first chunk; empty: none does


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    number: int
    requests: tuple[Request, ...]
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        faults = "; ".join(str(fault) for fault in self.faults) or "no fault"
        return f"step {self.number}: {len(self.requests)} requests, {faults}"


def make_plan(*, seed: int, requests: int) -> tuple[Step, ...]:
    """Steps with exactly so many requests together."""
    dice = random.Random(seed)  # noqa: S311  (a plan is to be repeated, not to be secret)
    return tuple(_steps(dice, requests))


def _steps(dice: random.Random, requests: int) -> Iterator[Step]:
    made = number = 0
    while made < requests:
        number += 1
        faults = _faults(dice)
        count = min(dice.randint(5, 11), requests - made)
        make = _late if any(fault.kind is Kind.LATE_BYTES for fault in faults) else _request
        batch = tuple(make(dice, made + at + 1, faults) for at in range(count))
        made += count
        yield Step(number=number, requests=batch, faults=faults)


def _faults(dice: random.Random) -> tuple[Fault, ...]:
    kind = dice.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
    if kind is Kind.NOTHING:
        return ()
    first = _fault(dice, kind, dice.choice(PODS))
    if kind is Kind.KILL_AGENT and dice.random() < 0.25:
        return (first, _fault(dice, kind, dice.choice([p for p in PODS if p != first.target])))
    return (first,)


def _fault(dice: random.Random, kind: Kind, target: str) -> Fault:
    after_s, on_wire = dice.uniform(0, 0.25), dice.random() < 0.5
    match kind:
        case Kind.WITHHOLD | Kind.DUPLICATE | Kind.ZERO:
            target = dice.choice(PREFILLS)
            return Fault(kind=kind, target=target, state_type=dice.choice(_FAULT_TYPES))
        case Kind.LATE_BYTES:
            target, lasting_s = dice.choice(PREFILLS), dice.uniform(4.7, LONG_STOP_S[1])
            return Fault(kind=kind, target=target, on_wire=True, lasting_s=lasting_s)
        case Kind.CORRUPT:
            return Fault(
                kind=kind,
                target=dice.choice(PREFILLS),
                after_s=dice.uniform(0, 0.05),
                lasting_s=dice.uniform(0.5, 1.5),
                blow=_blow(dice),
            )
        case Kind.LOSE_PACKETS if dice.random() < 0.4:
            percent = dice.choice((10, 25, 40))
            lasting_s = dice.uniform(0.5, 3)
        case Kind.LOSE_PACKETS:
            percent, lasting_s = 100, dice.uniform(0.3, 6)
        case Kind.STOP_AGENT | Kind.STOP_ENGINE if dice.random() < 0.5:
            percent, lasting_s = 100, dice.uniform(0.1, SHORT_STOP_S)
        case Kind.STOP_AGENT | Kind.STOP_ENGINE:
            percent, lasting_s = 100, dice.uniform(*LONG_STOP_S)
        case _:
            percent, lasting_s = 100, dice.uniform(0, 1)
    return Fault(
        kind=kind,
        target=target,
        after_s=after_s,
        on_wire=on_wire,
        lasting_s=lasting_s,
        percent=percent,
    )


def _blow(dice: random.Random) -> Blow:
    return Blow(
        corruption=dice.choice(list(Corruption)),
        direction=dice.choice(list(Direction)),
        after=dice.randint(0, 12),
        bit=dice.getrandbits(16),
        stall_s=dice.uniform(0.1, 5),
    )


def _request(dice: random.Random, room: int, faults: tuple[Fault, ...]) -> Request:
    # Some come while the fault lasts, into memory that may have been given back by then.
    lag_s = dice.uniform(0, max([0.1, *(f.lasting_s for f in faults if dice.random() < 0.3)]))
    items = _items(dice)
    shares = (1 - 2 * _ABORT_SHARE, _ABORT_SHARE, _ABORT_SHARE)
    abort = dice.choices(("", *_ROLES), shares)[0]
    return Request(
        room=room,
        prefill=dice.choice(PREFILLS),
        items=items,
        prefill_lag_s=lag_s + dice.uniform(0, _APART_S),
        decode_lag_s=lag_s + dice.uniform(0, _APART_S),
        hold_s=dice.uniform(0, 0.5) if dice.random() < _HOLD_SHARE else 0.0,
        chunk_bytes=dice.choice(_CHUNK_BYTES),
        pace_s=dice.choice((0.0, 0.0, dice.uniform(0, _PACE_S))),
        have=_have(dice, items),
        whole=dice.random() < _WHOLE_SHARE and abort != "decode",
        asks=dice.random() < _ASKS_SHARE,
        abort=abort,
    )


def _late(dice: random.Random, room: int, faults: tuple[Fault, ...]) -> Request:
    """One that is read from the agent that is stopped, or one that gets memory after that read.

    Reads of the stopped agent are given up at the heartbeat limit (3 s) and go on when it does (5
    s). In between the other agent's requests get memory, are checked, and lie in it until after:
    memory given back too early would then be overwritten.
    """
    (stopped,) = (fault.target for fault in faults)
    plain = _request(dice, room, ())
    pages = dice.randint(2048, 4096)
    items = {**plain.items, "kv": pages, "nsa": 0, "swa": 0}
    large = replace(
        plain, items=items, chunk_bytes=4 << 20, pace_s=0.0, have={}, whole=False, abort=""
    )
    if room % 2:
        return replace(large, prefill=stopped, prefill_lag_s=0.0, decode_lag_s=0.0)
    (other,) = set(PREFILLS) - {stopped}
    lag_s = dice.uniform(3.7, 4.1)
    return replace(large, prefill=other, prefill_lag_s=lag_s, decode_lag_s=lag_s, hold_s=1.6)


def _items(dice: random.Random) -> dict[str, int]:
    pages = dice.choices(
        (0, dice.randint(1, 16), dice.randint(128, 1024), dice.randint(1536, 4096)),
        (8, 60, 22, 10),
    )[0]
    slot = dice.randint(0, 1)
    counts = {
        "kv": pages,
        "mamba.conv": slot,
        "mamba.temporal": slot,
        "none": 0,
        "nsa": pages if dice.random() < 0.8 else 0,
        "swa": min(pages, dice.randint(0, 8)),
    }
    return {name: counts[name] for name in NAMES}


def _have(dice: random.Random, items: Mapping[str, int]) -> dict[str, int]:
    """Leading pages that decode holds from an earlier request; state slots come whole or not."""
    if dice.random() >= _HAVE_SHARE:
        return {}
    return {name: dice.randint(0, items[name]) for name in ("kv", "nsa")}
