"""Which payloads a request must have, which it has, and the verdict. Pure.

A request's expected set comes from decode's own layout: component -> items. Nothing is complete
until every expected component is there whole, once, and nothing else is. Offers are counted, so a
component that nobody offers is missing as soon as the offer marked last has come with all before
it, and merely late until then.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from disagg_transfer.contract import Cause
from disagg_transfer.protocol import Offer


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One component that a request must have."""

    component: str
    state_type: str
    item_bytes: int
    items: int

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


class Ledger:
    """The accounts of one request."""

    def __init__(self, parts: Mapping[str, Part]) -> None:
        self._parts = dict(parts)
        self._offered: dict[str, Offer] = {}
        self._indices: set[int] = set()
        self._total: int | None = None
        self._arrived: set[str] = set()
        self.aux = b""

    def offer(self, offer: Offer) -> Fault | None:
        """Account for one offer; the fault, if it dooms the request."""
        fault = self._placed(offer) or self._sized(offer)
        if fault is not None:
            return fault
        self._offered[offer.component] = offer
        self._indices.add(offer.index)
        if offer.last:
            self._total = offer.index + 1
            self.aux = offer.aux
        return self._shortfall()

    def arrived(self, component: str) -> None:
        self._arrived.add(component)

    @property
    def parts(self) -> Mapping[str, Part]:
        return self._parts

    @property
    def unoffered(self) -> tuple[Part, ...]:
        return tuple(p for name, p in self._parts.items() if name not in self._offered)

    @property
    def outstanding(self) -> tuple[Part, ...]:
        """What has not arrived, offered or not."""
        return tuple(p for name, p in self._parts.items() if name not in self._arrived)

    @property
    def complete(self) -> bool:
        return (
            self._total is not None
            and len(self._indices) == self._total
            and self._arrived == self._parts.keys()
        )

    def _placed(self, offer: Offer) -> Fault | None:
        part = self._parts.get(offer.component)
        if part is None:
            known = ", ".join(sorted(self._parts)) or "none"
            return _fault(
                Cause.EXTRA_STATE, offer, None, f"is offered but not expected; expected: {known}"
            )
        if offer.component in self._offered or offer.index in self._indices:
            return _fault(Cause.EXTRA_STATE, offer, part, "is offered a second time")
        if self._total is not None and (offer.last or offer.index >= self._total):
            return _fault(Cause.EXTRA_STATE, offer, part, "is offered after the last offer")
        if offer.last and any(index > offer.index for index in self._indices):
            return _fault(Cause.EXTRA_STATE, offer, part, "is marked last but is not")
        if (offer.chunk, offer.chunks) != (0, 1):
            return _fault(
                Cause.PROTOCOL_ERROR,
                offer,
                part,
                f"comes as chunk {offer.chunk} of {offer.chunks}; this agent takes one chunk",
            )
        return None

    def _sized(self, offer: Offer) -> Fault | None:
        part = self._parts[offer.component]
        for what, got, wanted in (
            ("items", offer.items, part.items),
            ("bytes", offer.nbytes, part.nbytes),
        ):
            if got != wanted:
                cause = Cause.SHORT_PAYLOAD if got < wanted else Cause.LONG_PAYLOAD
                return _fault(cause, offer, part, f"has {got} {what}, {wanted} are expected")
        return None

    def _shortfall(self) -> Fault | None:
        if self._total is None or len(self._indices) < self._total or not self.unoffered:
            return None
        names = ", ".join(part.component for part in self.unoffered)
        part = self.unoffered[0]
        return Fault(
            cause=Cause.MISSING_STATE,
            component=part.component,
            state_type=part.state_type,
            detail=f"the peer's {self._total} offers are all here and lack: {names}",
        )


def _fault(cause: Cause, offer: Offer, part: Part | None, detail: str) -> Fault:
    return Fault(
        cause=cause,
        component=offer.component,
        state_type=None if part is None else part.state_type,
        detail=f"component {offer.component} {detail}",
    )
