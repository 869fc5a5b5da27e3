"""Extents whose bytes may still move, and when they are too many: then the lane is poisoned.

An extent leaves only when nothing can write it any more: the NIXL read into it is in a terminal
state, or the engine's mapping of it is gone. Nothing else is proof. A peer's new incarnation is
not (the old process may live on, cut off, and its bytes may be in the kernel's buffers), nor is
time, nor a handle's release, nor the peer's removal: NIXL lands the bytes after all of these.
"""

from dataclasses import dataclass

from disagg_transfer.arena import Span
from disagg_transfer.limits import QuarantineLimits


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsettled:
    span: Span
    writer: str  # who may still write it, in words
    since: float


class Quarantine:
    def __init__(self, limits: QuarantineLimits, *, arena_bytes: int) -> None:
        self._limits, self._arena_bytes = limits, arena_bytes
        self._held: dict[int, Unsettled] = {}

    def put(self, span: Span, *, writer: str, now: float) -> None:
        self._held[span.number] = Unsettled(span=span, writer=writer, since=now)

    def take(self, span: Span) -> None:
        del self._held[span.number]

    def poison(self, now: float) -> str | None:
        """Why the lane is poisoned: how many bytes, whose, for how long; None when it is not."""
        limits = self._limits
        every = tuple(self._held.values())
        if _bytes(every) > limits.share * self._arena_bytes:
            return self._told(every, f"the limit is {limits.share:.0%}", now)
        lasting = tuple(held for held in every if now - held.since > limits.lasting_s)
        if _bytes(lasting) > limits.lasting_share * self._arena_bytes:
            limit = (
                f"the limit for longer than {limits.lasting_s:g} s is {limits.lasting_share:.0%}"
            )
            return self._told(lasting, limit, now)
        return None

    def _told(self, extents: tuple[Unsettled, ...], limit: str, now: float) -> str:
        by_writer: dict[str, int] = {}
        for held in extents:
            by_writer[held.writer] = by_writer.get(held.writer, 0) + held.span.nbytes
        worst = max(by_writer, key=lambda writer: by_writer[writer])
        oldest = now - min(held.since for held in extents)
        share = _bytes(extents) / self._arena_bytes
        return (
            f"{_bytes(extents)} bytes ({share:.0%} of the arena) may still be written, "
            f"{by_writer[worst]} of them by {worst}, the oldest for {oldest:.0f} s; {limit}"
        )


def _bytes(extents: tuple[Unsettled, ...]) -> int:
    return sum(held.span.nbytes for held in extents)
