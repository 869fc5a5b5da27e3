"""Which chunks a request must have, which it has, and the verdict. Pure.

A request's expected set comes from decode's own layout: component -> items. The chunks of a
component must cover [have, items) exactly: what lies wholly below `have` is in decode's hands
already and counts for nothing, and one chunk may straddle it, since prefill may have offered it
before it knew. Offers are counted, so what nobody offers is missing as soon as the offer marked
last has come with all before it, and merely late until then.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field

from disagg_transfer.contract import Cause
from disagg_transfer.protocol import Offer


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One component that a request must have."""

    component: str
    state_type: str
    item_bytes: int
    items: int
    have: int = 0  # leading items that decode holds already

    @property
    def nbytes(self) -> int:
        return self.items * self.item_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why a request can never be complete."""

    cause: Cause
    component: str | None
    state_type: str | None
    detail: str


@dataclass(slots=True)
class _Cover:
    """What one component's offers cover so far, and how much of it has arrived."""

    starts: list[int] = field(default_factory=list)  # of chunks, ascending, with `ends`
    ends: list[int] = field(default_factory=list)
    numbers: set[int] = field(default_factory=set)
    final: bool = False
    offered: int = 0  # items at or above have
    arrived: int = 0

    def insert(self, first: int, end: int) -> None:
        place = bisect_left(self.starts, first)
        self.starts.insert(place, first)
        self.ends.insert(place, end)

    def overlapping(self, first: int, end: int) -> tuple[int, int] | None:
        """The chunk that shares items with [first, end), if there is one."""
        place = bisect_left(self.starts, end)
        if first < end and place and self.ends[place - 1] > first:
            return self.starts[place - 1], self.ends[place - 1]
        return None

    def gap(self, start: int, end: int) -> tuple[int, int]:
        """The first items of [start, end) that no chunk has."""
        for first, stop in zip(self.starts, self.ends, strict=True):
            if first > start:
                return start, first
            start = max(start, stop)
        return start, end


class Ledger:
    """The accounts of one request."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self._parts = dict(parts)
        self._covers = {name: _Cover() for name in parts}
        self._indices: set[int] = set()
        self._highest = -1
        self._total: int | None = None
        self._under_way = 0
        self.aux = b""

    def offer(self, offer: Offer) -> Fault | None:
        """Account for one offer; the fault, if it dooms the request."""
        fault = self._placed(offer) or self._sized(offer) or self._laid(offer)
        if fault is not None:
            return fault
        part, cover = self._parts[offer.component], self._covers[offer.component]
        self._indices.add(offer.index)
        self._highest = max(self._highest, offer.index)
        self._under_way += 1
        cover.numbers.add(offer.chunk)
        cover.final |= offer.final
        first, end = max(offer.first, part.have), offer.first + offer.items
        if first < end:
            cover.insert(first, end)
            cover.offered += end - first
        if offer.last:
            self._total = offer.index + 1
            self.aux = offer.aux
        return self._shortfall()

    def arrived(self, offer: Offer) -> None:
        """The chunk of an accepted offer is here whole, or need not come. Once for each offer."""
        part = self._parts[offer.component]
        first, end = max(offer.first, part.have), offer.first + offer.items
        self._covers[offer.component].arrived += max(end - first, 0)
        self._under_way -= 1

    def needless(self, offer: Offer) -> bool:
        """Whether it brings nothing: all of it is held already, or it has no bytes."""
        return offer.first + offer.items <= self._parts[offer.component].have or not offer.nbytes

    @property
    def parts(self) -> Mapping[str, Part]:
        return self._parts

    @property
    def unoffered(self) -> tuple[Part, ...]:
        """What more offers must come for."""
        return tuple(part for part in self._parts.values() if not self._is_offered(part))

    @property
    def outstanding(self) -> tuple[Part, ...]:
        """What has not arrived whole, offered or not."""
        return tuple(
            part
            for name, part in self._parts.items()
            if self._covers[name].arrived < part.items - part.have or not self._is_offered(part)
        )

    @property
    def complete(self) -> bool:
        """Every offer is here, and what each stands for has arrived."""
        return self._all_here and not self._under_way

    @property
    def _all_here(self) -> bool:
        return self._total is not None and len(self._indices) == self._total

    def _is_offered(self, part: Part) -> bool:
        cover = self._covers[part.component]
        held = part.have == part.items > 0  # then prefill need not speak of it
        return held or (cover.final and cover.offered == part.items - part.have)

    def _placed(self, offer: Offer) -> Fault | None:
        part = self._parts.get(offer.component)
        if part is None:
            known = ", ".join(sorted(self._parts)) or "none"
            return _fault(
                Cause.EXTRA_STATE, offer, None, f"is offered but not expected; expected: {known}"
            )
        if offer.index in self._indices:
            detail = f"is offered a second time, as offer {offer.index}"
            return _fault(Cause.DUPLICATE_PAYLOAD, offer, part, detail)
        if offer.chunk in self._covers[offer.component].numbers:
            return _fault(
                Cause.DUPLICATE_PAYLOAD, offer, part, f"is offered a second time, {_chunk(offer)}"
            )
        if self._total is not None and (offer.last or offer.index >= self._total):
            return _fault(Cause.EXTRA_STATE, offer, part, "is offered after the last offer")
        if offer.last and self._highest > offer.index:
            return _fault(Cause.EXTRA_STATE, offer, part, "is marked last but is not")
        return None

    def _sized(self, offer: Offer) -> Fault | None:
        part = self._parts[offer.component]
        end, wanted = offer.first + offer.items, offer.items * part.item_bytes
        if offer.nbytes != wanted:
            cause = Cause.SHORT_PAYLOAD if offer.nbytes < wanted else Cause.LONG_PAYLOAD
            detail = f"has {offer.nbytes} bytes, {wanted} are expected, {_chunk(offer)}"
            return _fault(cause, offer, part, detail)
        if end > part.items:
            detail = f"has {end} items or more, {part.items} are expected"
            return _fault(Cause.LONG_PAYLOAD, offer, part, detail)
        if offer.final and end < part.items:
            detail = f"has {end} items, {part.items} are expected"
            return _fault(Cause.SHORT_PAYLOAD, offer, part, detail)
        return None

    def _laid(self, offer: Offer) -> Fault | None:
        part, cover = self._parts[offer.component], self._covers[offer.component]
        if offer.final and cover.final:
            detail = f"has a second final chunk, {_chunk(offer)}"
            return _fault(Cause.DUPLICATE_PAYLOAD, offer, part, detail)
        if not offer.items and not offer.final:
            detail = f"has an empty chunk that is not its final one, {_chunk(offer)}"
            return _fault(Cause.PROTOCOL_ERROR, offer, part, detail)
        first, end = max(offer.first, part.have), offer.first + offer.items
        other = cover.overlapping(first, end)
        if other is None:
            return None
        detail = f"has items {first}..{end - 1} offered over {other[0]}..{other[1] - 1}"
        return _fault(Cause.OVERLAPPING_PAYLOAD, offer, part, detail)

    def _shortfall(self) -> Fault | None:
        if not self._all_here or not self.unoffered:
            return None
        names = ", ".join(self._lacking(part) for part in self.unoffered)
        part = self.unoffered[0]
        return Fault(
            cause=Cause.MISSING_STATE,
            component=part.component,
            state_type=part.state_type,
            detail=f"the peer's {self._total} offers are all here and lack: {names}",
        )

    def _lacking(self, part: Part) -> str:
        cover = self._covers[part.component]
        if not cover.numbers:
            return part.component
        if cover.offered == part.items - part.have:
            return f"the final chunk of {part.component}"
        first, end = cover.gap(part.have, part.items)
        return f"items {first}..{end - 1} of {part.component}"


def _chunk(offer: Offer) -> str:
    return f"chunk {offer.chunk} of {offer.items} items from {offer.first}"


def _fault(cause: Cause, offer: Offer, part: Part | None, detail: str) -> Fault:
    return Fault(
        cause=cause,
        component=offer.component,
        state_type=None if part is None else part.state_type,
        detail=f"component {offer.component} {detail}",
    )
