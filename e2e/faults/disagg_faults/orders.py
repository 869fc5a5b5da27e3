"""What the campaign and its engines' processes say to each other: a line of JSON each."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Ending(StrEnum):
    EXACT = "exact"  # every byte as it was made, and released
    WRONG = "wrong"  # bytes were handed out as good and are not
    FAILED = "failed"  # told so, with a cause
    DIED = "died"  # the engine's process was killed with it


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One side of a request. Decode's has a `peer`; prefill's has none."""

    room: int
    items: Mapping[str, int]
    chunk_bytes: int  # prefill cuts each component into chunks of about so much
    have: Mapping[str, int]  # decode: leading items that need not come
    peer: str = ""
    lag_s: float = 0.0  # prefill: computes before its first offer; decode: comes so much later
    pace_s: float = 0.0  # prefill: computes between two chunks
    hold_s: float = 0.0  # decode: keeps its first chunk so long before it looks at the bytes
    whole: bool = False  # decode: pulls the request at once; else it streams it
    asks: bool = False  # prefill: asks what decode wants, and offers no more
    abort: bool = False  # after the first chunk

    def to_line(self) -> str:
        return json.dumps(asdict(self)) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    room: int
    ending: Ending
    cause: str = ""
    stage: str = ""
    detail: str = ""
    began_at: float = 0.0  # monotonic, one clock for all processes of the machine
    ended_at: float = 0.0

    def to_line(self) -> str:
        return json.dumps(asdict(self)) + "\n"


def read_order(line: str) -> Order:
    return Order(**json.loads(line))


def read_outcome(line: str) -> Outcome:
    fields: dict[str, Any] = json.loads(line)
    return Outcome(**{**fields, "ending": Ending(fields["ending"])})
